"""What is asked over HTTP, and what is answered."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from msm4sr.recommend.recommender import LONGEST_ID
from msm4sr.serving.problems import Refused
from msm4sr.serving.service import ServeSettings

ItemId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class How(_Body):
    """How to recommend."""

    k: int = Field(10, ge=1, description="How many items.")
    exclude_seen: bool = Field(True, description="Leave the items of the history out.")
    categories: list[str] | None = Field(
        None, min_length=1, max_length=100, description="Only items that have one of these categories."
    )
    candidates: list[ItemId] | None = Field(
        None, min_length=1, max_length=10_000, description="Only these items. Unknown ones are left out."
    )
    by: str = Field("both", max_length=50, description="A modality that scores alone, such as text or visual; or both.")
    reasons: bool = Field(False, description="Say of each item why, in short.")


class RecommendRequest(How):
    """A history, oldest first."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"history": ["A-17", "B-02"], "k": 3, "reasons": True}]}
    )
    history: list[ItemId] = Field(min_length=1, description="Item ids, oldest first. Unknown ones are reported.")


class BatchRequest(How):
    """Several histories, each oldest first."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"histories": [["A-17"], ["B-02", "C-88"]], "k": 3}]}
    )
    histories: list[Annotated[list[ItemId], Field(min_length=1)]] = Field(min_length=1)


class ExplainRequest(_Body):
    """A history and the item whose score is to be explained."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"history": ["A-17", "B-02"], "item_id": "C-88"}]}
    )
    history: list[ItemId] = Field(min_length=1)
    item_id: ItemId


class ReasonOut(BaseModel):
    """The past item that gives most to a score (null: each speaks against it), and what of the item counts most."""

    because: str | None
    because_title: str
    mostly: str


class ScoredItem(BaseModel):
    """An item of a list."""

    item_id: str
    title: str
    score: float
    rank: int
    reason: ReasonOut | None = None


class RecommendationsOut(BaseModel):
    """Best first. `unknown` are ids of the history that nobody knows."""

    items: list[ScoredItem]
    unknown: list[str]


class BatchOut(BaseModel):
    """In the order of the histories."""

    results: list[RecommendationsOut]


class SimilarOut(BaseModel):
    """Most alike first; the score is a cosine."""

    items: list[ScoredItem]


class ItemOut(BaseModel):
    """What is known of an item. `added`: it came after the training."""

    item_id: str
    title: str
    text: str | None
    categories: list[str]
    images: int
    added: bool
    keywords: list[str]


class PastItemOut(BaseModel):
    """An item of the history, and by how much the score falls without it."""

    item_id: str
    title: str
    weight: float


class SentenceOut(BaseModel):
    """A sentence of the item: its share in the pooling, and by how much the score falls without it."""

    text: str
    attention: float
    weight: float


class ExplanationOut(BaseModel):
    """`parts` sum to the score."""

    item_id: str
    title: str
    score: float
    parts: dict[str, float]
    history: list[PastItemOut]
    sentences: list[SentenceOut]
    keywords: list[str]
    unknown: list[str]


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])


class Ready(BaseModel):
    """What answers, and with how many items. `failed_reload` says why a newer run was not read."""

    status: str = Field(examples=["ready"])
    run: str
    model: str
    items: int
    added: int
    modalities: list[str]
    index: str
    recall: float | None
    failed_reload: str


class CardOut(BaseModel):
    """An item as a list shows it; `picture` and `page` are paths of this service."""

    item_id: str
    title: str
    picture: str | None
    page: str
    initial: str
    tint: int
    added: bool


class CardsOut(BaseModel):
    """A part of the items that were found, and how many there are."""

    total: int
    items: list[CardOut]


def check_sizes(settings: ServeSettings, how: How | None, histories: list[list[str]]) -> None:
    """Raises Refused for more than this service answers at once."""
    if how is not None and how.k > settings.max_k:
        raise Refused(422, f"k is {how.k}; ask for {settings.max_k} items at most")
    if len(histories) > settings.max_batch:
        raise Refused(422, f"{len(histories):,} histories; send {settings.max_batch} at most at once")
    for history in histories:
        if len(history) > settings.max_history:
            raise Refused(422, f"a history of {len(history):,} items; send the latest {settings.max_history:,} at most")
