"""What every model is built from, what it offers to training, evaluation and serving, and how it is stored."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.layers import ItemCategories

REPEAT_SCALE = 10.0  # a step of Adam moves a weight by its rate at most, and `repeat` has far to go in few steps

Ragged = tuple[Tensor, Tensor]
"""Values [R, ...] of all rows, one after another, and offsets int64 [rows + 1]: row i is
values[offsets[i]:offsets[i + 1]]."""


def no_rows(rows: int) -> Ragged:
    """Nothing for each of so many rows."""
    return torch.zeros(0, dtype=torch.int64), torch.zeros(rows + 1, dtype=torch.int64)


@dataclass(frozen=True)
class Inputs:
    """All that a model may be built from; each takes what it needs.

    Attributes:
        n_items: N.
        n_users: U, for models that know their users.
        histories: what each user took in the training part, oldest first: item rows int64, offsets [U + 1].
        features: for each modality (text, visual, or any other name) the encoders' vectors [R, D_in], offsets [N + 1].
        categories: for each item the numbers of its categories int64, offsets [N + 1]; an item may have none.
        n_categories: how many there are.
    """

    n_items: int
    n_users: int = 0
    histories: Ragged = field(default_factory=lambda: no_rows(0))
    features: Mapping[str, Ragged] = field(default_factory=dict)
    categories: Ragged | None = None
    n_categories: int = 0


class Scorer(nn.Module):
    """What evaluation and serving ask of a model: every item's score after a history."""

    max_history: int
    """Items of a history that are read, the latest ones."""
    ranks_seen_items: ClassVar[bool] = True
    """False: what a user took is never recommended again, whatever the evaluation's settings say."""

    @abstractmethod
    def encode_items(self) -> Tensor:
        """The whole catalogue as the model sees it, once a step: [N, M, D], M modalities (1 for IDs alone)."""

    @abstractmethod
    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """What of it a score needs: [N, Q]."""

    @abstractmethod
    def score(
        self, histories: Tensor, lengths: Tensor, catalogue: Tensor, keys: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """Every item's score after each history: [B, N].

        Args:
            histories: item rows [B, L], padded on the right; of each the first `lengths` [B] (all >= 1) are read.
            lengths: see above.
            catalogue: `encode_items()`.
            keys: `scoring_vectors(catalogue)`.
            users: int64 [B], whose histories these are, where they are users of the training; only a model that
                learns something of each user looks at it.
        """


class ProductScorer(Scorer):
    """A scorer whose scores are one product, `encode_histories(histories, catalogue) @ scoring_vectors(catalogue).T`,
    to which a number may be added for what the history holds.

    Fine-tuning asks for all prefixes of a history at once, evaluation and serving for the last.
    """

    loss: Literal["softmax", "bce", "bpr"] = "softmax"
    """What fine-tuning holds the next item against: all items, or one that is drawn (see `msm4sr.objectives`)."""

    @property
    def repeat(self) -> Tensor | None:
        """What is added to the score of an item that is read in the history, a number; None: nothing."""
        return None

    def encode_some_items(self, items: Tensor) -> Tensor:
        """What `encode_items` says of `items` [n] alone: [n, M, D]. Worth overriding where that costs less than all."""
        return self.encode_items()[items]

    @abstractmethod
    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Rows [B, L] of `catalogue`, padded on the right, to a vector for each prefix [B, L, Q].

        The catalogue may be that of some items; what is known of an item is to be read from its row there.
        """

    def score(
        self, histories: Tensor, lengths: Tensor, catalogue: Tensor, keys: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """The last prefix's vector times every item's, plus `repeat` for the items of the history: [B, N]."""
        scores = self.encode_last(histories, lengths, catalogue) @ keys.T
        if self.repeat is None:
            return scores
        read = torch.arange(histories.shape[1], device=histories.device) < lengths.unsqueeze(1)  # [B, L]
        taken = torch.zeros_like(scores, dtype=torch.bool)
        taken.scatter_(1, torch.where(read, histories, histories[:, :1]), True)
        return scores + taken * self.repeat

    def encode_last(self, histories: Tensor, lengths: Tensor, catalogue: Tensor) -> Tensor:
        """What `encode_histories` gives at the last of the first `lengths` [B] items: [B, Q].

        Worth overriding where that costs less than all prefixes.
        """
        prefixes = self.encode_histories(histories, catalogue)  # [B, L, Q]
        return prefixes[torch.arange(len(histories), device=prefixes.device), lengths - 1]

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, next_items: Tensor) -> Tensor | None:
        """What fine-tuning adds to the loss of a batch, weighted already; None: nothing.

        Args:
            prefixes: the vectors of the batch's prefixes [P, Q].
            items: their next items int64 [P].
            next_items: what `encode_items` says of these [P, M, D].
        """
        return None


class Model(Scorer):
    """A scorer that is built from a config and `Inputs`, and stored in a folder.

    A model is one file under `models/`, and one entry in the registry.
    """

    Config: ClassVar[type[BaseModel]]
    """Its settings; their field `name` is the model's name."""
    uses_features: ClassVar[bool] = False
    """Whether `Inputs.features` are read; else nothing is extracted for it."""

    def __init__(self, config: BaseModel, inputs: Inputs) -> None:
        super().__init__()
        self.config = config
        self.n_items, self.n_users = inputs.n_items, inputs.n_users

    def sizes(self) -> dict[str, Any]:
        """What `inputs_of` needs beside the tensors, as JSON."""
        return {"n_items": self.n_items, "n_users": self.n_users}

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        """Inputs that make a model of the stored one's shape. Where it keeps inputs, they are among the tensors."""
        return Inputs(sizes["n_items"], sizes["n_users"])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (weights, and what it keeps of its inputs)."""
        write_model(self, {"config": self.config.model_dump(mode="json"), **self.sizes()}, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote. Raises InputError when it is not there or not whole."""
        stored, state = read_model(Path(folder))
        with whole(Path(folder)):
            model = cls(cls.Config.model_validate(stored["config"]), cls.inputs_of(stored, state))
            model.load_state_dict(state)
        return model.eval()


class ProductModel(ProductScorer, Model):
    """A model whose scores are one product, apart from `repeat`: all but the floors."""

    def __init__(self, config: BaseModel, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.seen_item_bias = nn.Parameter(torch.zeros(())) if getattr(config, "seen_item_bias", False) else None

    @property
    def repeat(self) -> Tensor | None:
        return None if self.seen_item_bias is None else REPEAT_SCALE * self.seen_item_bias


class ContentRows(NamedTuple):
    """Rows [R, D_in] of items in one modality, and how many each item has [n]."""

    vectors: Tensor
    lengths: Tensor


class ContentModel(ProductModel):
    """A model that knows what it makes of an item's content alone, so that a new item needs no training."""

    @property
    @abstractmethod
    def content_modalities(self) -> tuple[str, ...]:
        """The modalities whose content scores, M of them, in the order of `score_parts`."""

    @abstractmethod
    def content_rows(self, modality: str, item: int | None = None) -> ContentRows:
        """What the frozen encoder said of an item, or of all items."""

    @abstractmethod
    def encode_new_items(self, features: Mapping[str, Ragged]) -> Tensor:
        """What `encode_items` would say of n items that were not there: [n, M + 1, D], the content and last the ID.

        Args:
            features: for each modality of the model vectors [R, D_in] and offsets [n + 1], as in `Inputs`.
        """

    @abstractmethod
    def encode_part(self, modality: str, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What new content becomes in one modality, and the weight of each of its rows.

        Rows [R, D_in], `lengths` [n] of them an item, to vectors [n, D] and weights [R], which sum to 1 for an item.
        """

    @abstractmethod
    def score_parts(self, prefix: Tensor, catalogue: Tensor) -> Tensor:
        """The score as a sum: what each modality's content, and last the ID, gives to it.

        A history's vector [Q] and items [n, M + 1, D] to [n, M + 1]; its rows sum to the score.
        """

    @abstractmethod
    def only(self, prefixes: Tensor, modality: str) -> Tensor:
        """Vectors of histories [B, Q] that score by one modality (its content and the ID) alone: [B, Q]."""


class CategoryModel(ProductModel):
    """A model that reads the items' categories; without any in the data, `categories.n_categories` is 0."""

    def __init__(self, config: BaseModel, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        numbers, offsets = inputs.categories or no_rows(inputs.n_items)
        self.categories = ItemCategories(numbers, offsets, inputs.n_categories)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"n_categories": self.categories.n_categories}

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        inputs = super().inputs_of(sizes, state)
        return replace(inputs, categories=stored_rows(state, "categories"), n_categories=sizes["n_categories"])


def stored_rows(state: Mapping[str, Tensor], module: str) -> Ragged:
    """The ragged rows that a module of a stored model keeps (`ItemFeatures`)."""
    return state[f"{module}.vectors"], state[f"{module}.offsets"]


def write_model(model: nn.Module, config: dict[str, object], folder: Path) -> None:
    """Store weights and frozen features as `model.safetensors`, the settings as `config.json`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    kept: set[int] = set()
    for name, tensor in model.state_dict().items():
        whole_tensor = tensor.detach().cpu().contiguous()
        # safetensors stores no memory twice: two modalities may have the same features
        state[name] = whole_tensor.clone() if whole_tensor.data_ptr() in kept else whole_tensor
        kept.add(whole_tensor.data_ptr())
    try:
        save_file(state, folder / "model.safetensors.part")
    except SafetensorError as error:
        (folder / "model.safetensors.part").unlink(missing_ok=True)
        raise InputError(f"{folder / 'model.safetensors'}: could not be written ({error})") from None
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
    (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(folder / "config.json.part", folder / "config.json")


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Settings and tensors that do not make a model together become an InputError that names their folder."""
    try:
        yield
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder}: config.json and model.safetensors do not make a model ({why})") from None


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors that `write_model` stored. InputError when the folder does not hold a whole model."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: there is no model here ({name} is missing); `msm4sr evaluate RUN` makes one")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None
    try:
        # copied: what safetensors maps is not aligned as what torch makes, and its products differ in the last bit
        return config, {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / 'model.safetensors'}: not a whole safetensors file ({error})") from None
