"""The bodies of requests and answers over HTTP.

Requests are pydantic models, which validate. Answers are dataclasses, which orjson writes without another pass; lists
of recommendations and explanations are those of `msm4sr.recommend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from msm4sr.data.items import (
    LONGEST_CATEGORY,
    LONGEST_ID,
    LONGEST_TITLE,
    MOST_CATEGORIES,
    check_characters,
    check_texts,
)
from msm4sr.recommend.explanations import Reason
from msm4sr.recommend.recommender import Recommendation, Recommendations
from msm4sr.recommend.rules import MAX_BOOST, Rules

Text = Annotated[str, AfterValidator(check_characters)]
Words = Annotated[str, Field(max_length=200), AfterValidator(check_characters)]
Modality = Annotated[str, Field(max_length=50), AfterValidator(check_characters)]
ItemId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID), AfterValidator(check_characters)]
# Many ids: their characters are checked in one search, and a list of wrong values is one error.
ItemIds = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]], Field(fail_fast=True), AfterValidator(check_texts)
]
Category = Annotated[str, Field(max_length=LONGEST_CATEGORY), AfterValidator(check_characters)]
Categories = Annotated[list[Category], Field(max_length=100)]
UserId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID), AfterValidator(check_characters)]
Boost = Annotated[float, Field(ge=-MAX_BOOST, le=MAX_BOOST, allow_inf_nan=False)]


class NewItem(BaseModel):
    """A new item, sent as a form."""

    model_config = ConfigDict(extra="forbid")
    item_id: ItemId = Field(examples=["N-1"])
    title: Text = Field("", max_length=LONGEST_TITLE, examples=["Red wooden train"])
    text: Text = Field("", examples=["Four carriages, for children from three years."])
    categories: list[Category] = Field([], max_length=MOST_CATEGORIES)
    images: list[UploadFile] = Field([], description="JPEG, PNG, WEBP, GIF, BMP or TIFF")


class RecommendOptions(BaseModel):
    """How to recommend."""

    model_config = ConfigDict(extra="forbid", strict=True)
    k: int = Field(10, ge=1, description="Number of items.")
    exclude_seen: bool = Field(True, description="Exclude the items of the history.")
    include_categories: Categories | None = Field(
        None, min_length=1, description="Only items that have one of these categories."
    )
    exclude_categories: Categories = Field([], description="No items that have one of these categories.")
    candidates: ItemIds | None = Field(
        None, min_length=1, max_length=10_000, description="Only these items. Unknown ones are ignored."
    )
    exclude_items: ItemIds = Field([], max_length=10_000, description="Not these items. Unknown ones are ignored.")
    boost_categories: dict[Category, Boost] = Field(
        {},
        max_length=100,
        description="Category to a number, which is added to the scores of its items in standard deviations of the "
        "scores after the history. Boosts of one item add up.",
    )
    boost_items: dict[ItemId, Boost] = Field({}, max_length=1_000, description="Item id to a number, likewise.")
    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0: in the order of the scores; towards 1: items that are more dissimilar to those before them "
        "(maximal marginal relevance).",
    )
    by: Modality = Field(
        "both",
        description="A modality to score by alone, among the items that have it, such as text or visual; or both.",
    )
    reasons: bool = Field(False, description="Add a short reason to each item.")

    @property
    def has_rules(self) -> bool:
        return not RULES.isdisjoint(self.model_fields_set)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Recommender.recommend`."""
        arguments = self.model_dump(include={"k", "exclude_seen", "by", "reasons"})
        if self.has_rules:
            arguments["rules"] = Rules(**self.model_dump(include=RULES))
        return arguments


RULES = {field.name for field in fields(Rules)}


class RecommendRequest(RecommendOptions):
    """A history, oldest first, or a user of the run's data."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["A-17", "B-02"], "k": 3, "reasons": True}]})
    history: ItemIds | None = Field(
        None,
        description="Item ids, oldest first. Unknown ones are reported; if none is known, the answer is popular items.",
    )
    user_id: UserId | None = Field(None, description="A user of the run's data, in place of a history.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.history is None) == (self.user_id is None):
            raise ValueError("give either history or user_id")
        return self


class BatchRequest(RecommendOptions):
    """Several histories, each oldest first, or several users of the run's data."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"histories": [["A-17"], ["B-02", "C-88"]], "k": 3}]})
    histories: Annotated[list[ItemIds], Field(fail_fast=True, min_length=1)] | None = None
    user_ids: Annotated[list[UserId], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="Users of the run's data, in place of histories."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.histories is None) == (self.user_ids is None):
            raise ValueError("give either histories or user_ids")
        return self


class ItemChange(BaseModel):
    """What changes of an item."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"available": False}]})
    available: StrictBool = Field(
        description="Whether it is recommended. In histories it stays known, and its details are still answered."
    )


class ExplainRequest(BaseModel):
    """A history and the item whose score is explained."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"history": ["A-17", "B-02"], "item_id": "C-88"}]}
    )
    history: ItemIds = Field(min_length=1)
    item_id: ItemId


@dataclass(frozen=True)
class BatchResults:
    """Recommendations in the order of the histories."""

    results: list[Recommendations]


@dataclass(frozen=True)
class SimilarItems:
    """The most similar item first; the score is a cosine."""

    items: list[Recommendation]


@dataclass(frozen=True)
class ItemDetails:
    """The details of an item. `images` counts its images; `added`: after the training; `available`: recommended."""

    item_id: str
    title: str
    text: str | None
    categories: Sequence[str]
    images: int
    added: bool
    available: bool
    keywords: list[str]


@dataclass(frozen=True)
class ItemSummary:
    """An item as lists show it; `image` and `page` are paths of this service.

    An item without an image shows its `initial` on one of six tints.
    """

    item_id: str
    title: str
    image: str | None
    page: str
    initial: str
    tint: int
    added: bool
    available: bool


@dataclass(frozen=True)
class FoundItems:
    """A slice of the items found, and their total number."""

    total: int
    items: list[ItemSummary]


@dataclass(frozen=True)
class PageRecommendations:
    """Recommended items for the page, and the reason for each item id; of a user also the latest items."""

    items: list[ItemSummary]
    reasons: dict[str, Reason | None]
    unknown: list[str]
    history: list[ItemSummary]
    popular: bool


@dataclass(frozen=True)
class Status:
    """The state of the process."""

    status: str


@dataclass(frozen=True)
class Readiness:
    """The served run.

    `recall` is that of an approximate index; `failed_index` says why an index in another process cannot be
    searched, and `failed_reload` why a newer run was not loaded.

    `failed_store` says why the store cannot be read, so that items cannot change; `state_lag` counts the seconds since
    the items were last known to be up to date; `unavailable` counts the items that are switched off.

    `skipped` names the first added items that cannot be recommended, and why. They can be removed.
    """

    status: str
    run: str
    model: str
    items: int
    added: int
    unavailable: int
    modalities: Sequence[str]
    index: str
    recall: float | None
    failed_index: str
    failed_reload: str
    failed_store: str
    state_lag: float
    skipped: dict[str, str]
