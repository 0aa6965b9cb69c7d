"""The interface of models: what they are built from, and their methods for training, evaluation and serving.

Shape letters: N items, U users, M item embeddings per item (one per modality, 1 for IDs alone), D embedding dimension,
Q dimension of the vectors that are multiplied for a score, B histories, L positions, P pairs (prefix, next item).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.files import write_json, write_text
from msm4sr.models.hub import model_folder
from msm4sr.models.item_table import Shard
from msm4sr.models.layers import ItemCategories, ItemFeatures, Means, at_last
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.model_card import TrainingSummary, model_card
from msm4sr.models.whitening import Whitened, Whitening
from msm4sr.ragged import Ragged
from msm4sr.strict import Strict
from msm4sr.tensor_files import load_tensors, read_about, save_tensors

REMEDY = "`msm4sr evaluate RUN` writes it again"
RowKind = Literal["items", "users", "categories"]
KEPT_WITH_FEATURES = ("whitening.mean", "whitening.matrix", "centre", "length")
SEEN_BIAS_SCALE = 10.0  # Adam moves a weight by its learning rate at most, and the bias has far to go in few steps


def as_tensors(rows: Ragged) -> Ragged:
    """Arrays as tensors, integers as int64; what needs no conversion shares the memory (or the mapped file)."""
    values = rows.values.astype(np.int64, copy=False) if rows.values.dtype.kind in "iu" else rows.values
    return Ragged(torch.from_numpy(values), torch.from_numpy(rows.offsets))


def empty_rows(rows: int) -> Ragged:
    """`rows` rows without a value."""
    return Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(rows + 1, dtype=torch.int64))


@dataclass(frozen=True)
class Inputs:
    """The data that a model may be built from; each model uses what it needs."""

    n_items: int
    n_users: int = 0
    histories: Ragged = field(default_factory=lambda: empty_rows(0))
    """The training items of each user, oldest first: int64, U rows."""
    features: Mapping[str, Ragged] = field(default_factory=dict)
    """For each modality (text, visual, or any other name) the encoder's embeddings [R, D_in], N rows."""
    categories: Ragged | None = None
    """The category numbers of each item, int64, N rows, some of them empty; None: no item has any."""
    n_categories: int = 0
    shard: Shard = field(default_factory=Shard)
    """Which rows of the ID embeddings this process has."""

    def present_features(self, needed_by: str = "") -> dict[str, Ragged]:
        """The features of the modalities that at least one item has.

        Raises InputError for features of another number of items, or for none if a model is `needed_by` its label.
        """
        present = {name: rows for name, rows in self.features.items() if len(rows.values)}
        if needed_by and not present:
            raise InputError(f"{needed_by} needs features of at least one modality: no item has a text or an image")
        for name, rows in present.items():
            if len(rows) != self.n_items:
                raise InputError(f"features of {name} describe {len(rows)} items, the catalogue has {self.n_items}")
        return present


class Scorer(nn.Module):
    """What evaluation and serving ask of a model: the score of every item after a history."""

    max_history: int
    """The number of latest items of a history that are read."""
    ranks_seen_items: ClassVar[bool] = True
    """False: seen items are never recommended again, whatever the evaluation settings say."""
    ranks_without_history: ClassVar[bool] = False
    """Whether the scores after an empty history mean something."""

    @abstractmethod
    def encode_items(self) -> Tensor:
        """The item embeddings of the catalogue, computed once per step: [N, M, D]."""

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """The item vectors that scores are computed from: [N, M, D] to [N, Q]; by default concatenated, [N, M * D]."""
        return embeddings.flatten(1)

    @abstractmethod
    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """The score of every item after each history: [B, N].

        Args:
            histories: item numbers [B, L], padded on the right.
            lengths: number of items of each history [B], all >= 1.
            embeddings: `encode_items()`.
            item_vectors: `scoring_vectors(embeddings)`.
            users: int64 [B], the users if they are those of training, for models with user embeddings.
        """


class FactorizedScorer(Scorer):
    """A scorer whose scores are inner products, `encode_last(...) @ scoring_vectors(...).T`, plus `seen_bias`."""

    can_pad: ClassVar[bool] = False
    """Whether fine-tuning may pad pairs and items, so that its step can be compiled: `encode_some_items` reads only
    what `locate` found, and there is no auxiliary loss."""
    loss: Literal["softmax", "bce", "bpr"] = "softmax"
    """How fine-tuning compares the next item: with all items, or with one negative (see `msm4sr.objectives`)."""

    @property
    def seen_bias(self) -> Tensor | None:
        """The number that is added to the scores of the items of the history; None: no such bias."""
        return None

    def locate(self, items: Tensor) -> LocatedItems:
        """What `encode_some_items` needs to know of `items` [n], distinct and ascending; on the host."""
        return LocatedItems(items)

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """The item embeddings of n items: [n, M, D]. Override it where that is cheaper than all items."""
        return self.encode_items()[items.numbers]

    @abstractmethod
    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """A vector for each prefix of each history, [B, L, Q]; position l has read the items up to l.

        `histories` [B, L] are rows of `embeddings` [n, M, D] (of all or some items), padded on the right.
        """

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """`encode_histories` at position `lengths` - 1: [B, Q]. Override it where that is cheaper than all prefixes."""
        prefixes = self.encode_histories(histories, embeddings)  # [B, L, Q]
        return at_last(prefixes, lengths)

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """[B, N]: the history's vector times each item vector, plus `seen_bias` for the items of the history."""
        scores = self.encode_last(histories, lengths, embeddings) @ item_vectors.T
        if self.seen_bias is None:
            return scores
        read = torch.arange(histories.shape[1], device=histories.device) < lengths.unsqueeze(1)  # [B, L]
        seen = torch.zeros_like(scores, dtype=self.seen_bias.dtype)
        seen.scatter_(1, torch.where(read, histories, histories[:, :1]), 1)
        return torch.addcmul(scores, seen, self.seen_bias)

    def extend_history(self, items: Tensor, embeddings: Tensor, past: Any) -> tuple[Tensor, Any]:
        """`encode_last` of one history that may continue another one.

        Args:
            items: int64 [1, L], rows of `embeddings`: the items that are new.
            embeddings: [n, M, D].
            past: what the call for the items before has returned; (): `items` is the complete history.

        Returns:
            [1, Q], and what the next call needs; (): this model cannot continue a history.
        """
        return self.encode_last(items, torch.tensor([items.shape[1]], device=items.device), embeddings), ()

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, embeddings: Tensor) -> Tensor | None:
        """A weighted term that fine-tuning adds to the loss of a batch; None: no term.

        It gets the vectors of the prefixes [P, Q], their next items int64 [P], and the embeddings of these [P, M, D].
        """
        return None


class ModelConfig(Strict):
    """The settings of a model. A model's own class gives `name` a default, the name that it is registered under."""

    name: str


class SequentialConfig(ModelConfig):
    """The settings that all models of the order of a history share."""

    max_history: int = Field(50, ge=1, description="latest items of a history that are read")
    seen_item_bias: bool = Field(False, description="learn a number that is added to the scores of seen items")


class Model(Scorer):
    """A scorer that is built from a config and `Inputs`, and stored in a folder.

    To add a model, decorate a subclass with `msm4sr.models.registry.register_model`, in one file in `models/baselines/`
    or in another package with an entry point.
    """

    Config: ClassVar[type[ModelConfig]]
    """The class of its settings."""
    label: ClassVar[str]
    """The name in tables, such as "MV-RNN"."""
    uses_features: ClassVar[bool] = False
    """Whether `Inputs.features` are used. If so, the model keeps them in `features`; if not, none are extracted."""
    uses_categories: ClassVar[bool] = False
    """Whether `Inputs.categories` are used. If so, the model keeps them in `categories`: none if no item has any."""
    tasks: ClassVar[Mapping[str, str]] = {}
    """The training task of each stage, such as {"finetune": "next_item"}; empty: nothing is trained."""
    search: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The search space of `msm4sr tune` by dotted setting, such as {"model.layers": {"kind": "int", ...}}."""

    row_weights: ClassVar[Mapping[str, RowKind]] = {
        "item_embedding.weight": "items",
        "user_embedding.weight": "users",
        "category_embedding.weight": "categories",
    }
    """The weights with a row for each item, user or category; `*` in a name stands for any text."""
    zero_new_rows: ClassVar[bool] = True
    """Whether training may begin with rows of 0 for new items and users; not where their length is divided by."""

    features: nn.ModuleDict
    categories: ItemCategories

    def __init__(self, config: ModelConfig, inputs: Inputs) -> None:
        super().__init__()
        self.config = config
        self.n_items, self.n_users = inputs.n_items, inputs.n_users
        if hasattr(config, "max_history"):
            self.max_history = config.max_history
        if self.uses_categories:
            categories = empty_rows(inputs.n_items) if inputs.categories is None else inputs.categories
            self.categories = ItemCategories(categories, inputs.n_categories)

    def row_kind(self, name: str) -> RowKind | None:
        """What the rows of a weight belong to; None: it is a weight of the complete model."""
        return next((kind for pattern, kind in self.row_weights.items() if fnmatchcase(name, pattern)), None)

    def pretrained_scorer(self) -> Scorer:
        """The scorer that validates pre-training and ranks for a model that is only pre-trained."""
        return self

    def sizes(self) -> dict[str, Any]:
        """What `inputs_of` needs beside the tensors, as JSON."""
        sizes: dict[str, Any] = {"n_items": self.n_items, "n_users": self.n_users}
        if self.uses_features:
            sizes["modalities"] = list(self.features)
        if self.uses_categories:
            sizes["n_categories"] = self.categories.n_categories
        return sizes

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        """Inputs from which a model of the stored shape is built; those that the model keeps are in `state`."""

        def rows(module: str, values: str = "values") -> Ragged:
            return Ragged(state[f"{module}.{values}"], state[f"{module}.offsets"])

        def item_features(module: str) -> Ragged:
            found, kept = rows(module), {name: state.get(f"{module}.{name}") for name in KEPT_WITH_FEATURES}
            mean, matrix, centre, length = kept.values()
            if mean is not None and matrix is not None:
                return Whitened(found.values, found.offsets, Whitening(mean, matrix))
            if centre is not None and length is not None:
                return Means(found.values, found.offsets, centre, length)
            return found

        return Inputs(
            sizes["n_items"],
            sizes["n_users"],
            histories=rows("graph", "items") if "graph.items" in state else empty_rows(0),
            features={name: item_features(f"features.{name}") for name in sizes.get("modalities", ())},
            categories=rows("categories") if "n_categories" in sizes else None,
            n_categories=sizes.get("n_categories", 0),
        )

    def save_pretrained(
        self, folder: str | Path, training: TrainingSummary | None = None, license: str | None = None
    ) -> None:
        """Write `config.json`, `model.safetensors` (the weights and what the model keeps of its inputs) and a card.

        `training` and `license` are what the card says; see `model_card`.
        """
        folder = Path(folder)
        config = {"config": self.config.model_dump(mode="json"), **self.sizes()}
        save_tensors(self.state_dict(), folder / "model.safetensors", config)
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", model_card(self, training, license))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Read what `save_pretrained` wrote to a folder, or a model of the hub, such as "organisation/name".

        Raises InputError if the files are missing or incomplete.
        """
        folder = model_folder(source)
        stored, file = read_config(folder), folder / "model.safetensors"
        state = load_tensors(file, REMEDY)
        if read_about(file) != stored:
            raise InputError(f"{folder}: config.json does not belong to model.safetensors; {REMEDY}")
        try:
            model = cls(cls.Config.model_validate(stored["config"]), cls.inputs_of(stored, state))
            model.load_state_dict(state)
        except (KeyError, TypeError, ValidationError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{folder}: config.json and model.safetensors do not make a model ({why})") from None
        return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a stored model. Raises InputError if the folder holds no complete model."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no model here ({name} is missing); `msm4sr evaluate RUN` creates one")
    try:
        return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None


class FactorizedModel(FactorizedScorer, Model):
    """A model that is a `FactorizedScorer`; it learns the seen-item bias if its config says so."""

    tasks = {"finetune": "next_item"}

    def __init__(self, config: ModelConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.loss = getattr(config, "loss", self.loss)
        self.seen_item_bias = nn.Parameter(torch.zeros(())) if getattr(config, "seen_item_bias", False) else None

    @property
    def seen_bias(self) -> Tensor | None:
        return None if self.seen_item_bias is None else SEEN_BIAS_SCALE * self.seen_item_bias


class ContentModel(FactorizedModel):
    """A model that encodes items from their content alone, so that new items need no training."""

    uses_features = True
    content_modalities: tuple[str, ...]
    """The M modalities whose content is scored, in the order of `score_parts`."""

    def content_rows(self, modality: str) -> Ragged:
        """What `encode_part` reads of all items in one modality: [R, k], N rows."""
        return self._features_of(modality).rows

    def prepare_rows(self, modality: str, embeddings: Tensor) -> Tensor:
        """What `encode_part` reads of other items: the frozen encoder's embeddings [R, D_in] to [R, k]."""
        return self._features_of(modality).prepare(embeddings)

    @property
    def encoder_dims(self) -> dict[str, int]:
        """D_in of each content modality, the dimension of the frozen encoder's embeddings."""
        return {a: self._features_of(a).source_dim for a in self.content_modalities}

    def _features_of(self, modality: str) -> ItemFeatures:
        features = self.features[modality]
        assert isinstance(features, ItemFeatures)
        return features

    def encode_new_items(self, features: Mapping[str, Ragged]) -> Tensor:
        """The item embeddings of n items outside of the catalogue: [n, M + 1, D], the content and last 0 for the ID.

        `features` has the encoder's embeddings in each content modality: [R, D_in], n rows.
        """
        rows = {
            a: Ragged(self.prepare_rows(a, features[a].values), features[a].offsets) for a in self.content_modalities
        }
        content = [self.encode_part(a, rows[a])[0] for a in self.content_modalities]
        return torch.stack([*content, torch.zeros_like(content[0])], dim=1)

    @abstractmethod
    def encode_part(self, modality: str, rows: Ragged) -> tuple[Tensor, Tensor]:
        """The content of n items in one modality: [n, D], from rows [R, k] as of `content_rows` or `prepare_rows`.

        The second result is the weight of each row [R]; those of an item sum to 1.
        """

    @abstractmethod
    def score_parts(self, prefix: Tensor, embeddings: Tensor) -> Tensor:
        """A history's vector [Q] and item embeddings [n, M + 1, D] to [n, M + 1]: each row sums to an item's score.

        The parts are those of each modality's content, and last of the ID.
        """

    @abstractmethod
    def modality_weights(self, present: Tensor) -> Tensor:
        """The weight of each modality in the scores of items with the `present` ones, bool [n, M]: [n, M]."""

    @abstractmethod
    def only(self, prefixes: Tensor, modality: str) -> Tensor:
        """Vectors of histories [B, Q] without the other modalities: [B, Q].

        The score of an item by one modality (its content and the ID) alone is the product divided by its weight.
        """
