"""A finished run evaluated on other data than it was made from, without training: `msm4sr evaluate RUN --data OTHER`.

Items are those of the other folder. The stored model knows those of its own data by their ids; others it encodes by
their content, with an ID embedding of 0, if it can. Users are new to it: it reads their histories alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msm4sr.data.dataset import Dataset
from msm4sr.data.images import BrokenImage
from msm4sr.data.items import Items
from msm4sr.data.schema import ITEMS
from msm4sr.errors import InputError
from msm4sr.evaluation.beyond_accuracy import ItemFacts
from msm4sr.evaluation.ranking import NO_ITEM, OnLists, Protocol, Ranks, rank_targets
from msm4sr.evaluation.users import Part, targets_of
from msm4sr.experiments.loading import recommender_of
from msm4sr.experiments.metrics import PROTOCOLS, describe, measure, write_users
from msm4sr.experiments.run import Run, read_metrics, write_metrics
from msm4sr.experiments.stages import complete_run, load_run_data
from msm4sr.features.images import decode_image, read_image
from msm4sr.files import make_folder
from msm4sr.models.base import Scorer
from msm4sr.models.capabilities import has_content
from msm4sr.models.registry import from_pretrained
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.ragged import Ragged
from msm4sr.recommend.recommender import Recommender

logger = logging.getLogger(__name__)

FOLDER = "evaluations"
ENCODED_AT_ONCE = 256  # new items
NAMED = 3  # unknown items in a message


def other_data(run: Run) -> Dataset | None:
    """The data set in `run.data`, nothing held out, if a finished run was made from another one; else None."""
    metrics = None
    with suppress(InputError):  # a damaged file, which evaluation on the run's own data writes again
        metrics = read_metrics(run.folder)
    if metrics is None:
        return None
    dataset, trained_on = load_run_data(run), metrics["identity"]
    if all(trained_on.get(f"data.{name}") == value for name, value in dataset.identity.items()):
        if trained_on.get("data.content", dataset.content_digest) != dataset.content_digest:
            raise InputError(
                f"{run.data}: its items have other texts, categories or image names than those that {run.folder} was "
                "trained on; a run knows its items by their IDs: give changed items other IDs, or make a new run"
            )
        return None
    held_out = run.settings.dataset.hold_out_items or run.settings.dataset.hold_out_users
    return load_run_data(complete_run(run)) if held_out else dataset


def evaluate_on(run: Run, dataset: Dataset, progress: Progress = NoProgress()) -> tuple[Path, dict[str, Any]]:
    """Evaluate the stored model of a run on other data; nothing of the run changes.

    Returns:
        The folder, RUN/evaluations/NAME, and the content of its metrics.json. It has users.parquet too.

    Raises:
        InputError: the model does not know an item and cannot encode it; the folder has results on another data set.
    """
    folder, source = run.folder / FOLDER / dataset.folder.resolve().name, str(dataset.folder.resolve())
    before = None
    with suppress(InputError):  # a damaged file is replaced
        before = read_metrics(folder)
    if before is not None and before["run"]["folder"] != source:
        raise InputError(f"{folder}: has the results on {before['run']['folder']}; rename one of the data folders")
    ranker = OtherItems.of(run, dataset, progress)
    found = measure(dataset, ranker.rank, ItemFacts.of(dataset), run.settings.evaluation.protocol, progress)
    result = found.metrics()
    result["run"] = describe(run, dataset, ranker.model) | {"new_items": ranker.n_new, "folder": source}
    make_folder(folder)
    write_users(folder, found)
    write_metrics(folder, result)
    return folder, result


class KnownByHistory(Scorer):
    """A model, and items that it was not trained on; users are known by their histories alone."""

    def __init__(self, model: Scorer, new: Tensor | None) -> None:
        super().__init__()
        self.model, self._new = model, new
        self.max_history, self.ranks_seen_items = model.max_history, model.ranks_seen_items  # type: ignore[misc]
        self.ranks_without_history = model.ranks_without_history  # type: ignore[misc]

    def encode_items(self) -> Tensor:
        """The items of the model, and then the new ones: [N + n, M, D]."""
        known = self.model.encode_items()
        return known if self._new is None else torch.cat([known, self._new.to(known.device)])

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        return self.model.scoring_vectors(embeddings)

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        return self.model.score(histories, lengths, embeddings, item_vectors)


@dataclass(frozen=True, eq=False)
class OtherItems:
    """Ranks the users of a data set by a model that has its own numbers for the items.

    Attributes:
        model: the items that it scores include those of the data set.
        rows: int64 [items of the data set], their numbers in the model.
        n_new: how many of them the model was not trained on; their numbers come last.
        n_items: how many items the model scores.
    """

    model: KnownByHistory
    dataset: Dataset
    rows: npt.NDArray[np.int64]
    n_new: int
    n_items: int

    @staticmethod
    def of(run: Run, dataset: Dataset, progress: Progress) -> OtherItems:
        """The stored model of a run with the items of a data set. Raises InputError for one that it cannot encode."""
        recommender = recommender_of(run, from_pretrained(run.folder / "model"))
        known = recommender.catalogue.items.rows
        new = [place for place, item_id in enumerate(dataset.item_ids) if item_id not in known]
        rows = np.array([known.get(item_id, NO_ITEM) for item_id in dataset.item_ids], dtype=np.int64)
        rows[new] = np.arange(len(known), len(known) + len(new))
        scorer, encoded = run.settings.scorer_of(recommender.model), None
        if new:
            check_encodes(recommender, scorer, run, dataset, new)
            encoded = encode(recommender, dataset, new, progress)
            if scorer is not recommender.model:  # not fine-tuned: no IDs
                encoded = encoded[:, :-1]
        model = KnownByHistory(scorer, encoded).to(run.settings.device.torch_device()).eval()
        return OtherItems(model, dataset, rows, len(new), len(known) + len(new))

    def rank(self, part: Part, advance: Advance, on_lists: OnLists | None) -> dict[Protocol, Ranks]:
        """The ranks of the users of a part; the items of the lists are numbered as in the data set."""
        targets = targets_of(self.dataset, part)
        histories = Ragged(self.rows[targets.histories.values].astype(np.int32), targets.histories.offsets)
        number = np.full(self.n_items + 1, NO_ITEM)  # in the data set; the last one is that of NO_ITEM
        number[self.rows] = np.arange(len(self.rows))
        return rank_targets(
            self.model,
            replace(targets, histories=histories, targets=self.rows[targets.targets]),
            PROTOCOLS,
            among=number[:-1] != NO_ITEM,
            advance=advance,
            on_lists=None
            if on_lists is None
            else lambda protocol, users, lists: on_lists(protocol, users, number[lists]),
        )


def check_encodes(recommender: Recommender, scorer: Scorer, run: Run, dataset: Dataset, new: Sequence[int]) -> None:
    """Raise InputError, which names some of the new items (numbers of the data set), if the model cannot encode any."""
    model, name = recommender.model, run.settings.model.name
    if recommender.encoder is None or not has_content(model):
        why = f"{name} knows only items that it was trained on"
    elif scorer is not model and model.sizes()["modalities"] != list(model.content_modalities):
        why = "a model that is not fine-tuned and scores by some modalities only cannot encode them"
    else:
        return
    examples = ", ".join(repr(dataset.item_ids[place]) for place in new[:NAMED])
    raise InputError(
        f"{dataset.folder / ITEMS}: {len(new):,} of {dataset.n_items:,} items are unknown to {run.folder}, for example "
        f"{examples}, and {why}; evaluate a run of msm4sr, or remove these items and their interactions"
    )


def encode(recommender: Recommender, dataset: Dataset, new: Sequence[int], progress: Progress) -> Tensor:
    """The item embeddings of items of a data set, by their content: [n, M, D].

    Images that cannot be used are skipped, as extraction does. Raises InputError for an item without any content.
    """
    found, skipped = [], 0
    items = Items.from_frame(dataset.items[list(new)])
    with progress.task("encode new items", len(items), "items") as advance:
        for start in range(0, len(items), ENCODED_AT_ONCE):
            chunk = []
            for item in (items[row] for row in range(start, min(start + ENCODED_AT_ONCE, len(items)))):
                images = [data for path in item.images if (data := _usable(dataset.folder, str(path))) is not None]
                skipped += len(item.images) - len(images)
                chunk.append(replace(item, images=images))
            found.append(recommender.tensors_of(recommender.encode_items(chunk)).embeddings)
            advance(len(chunk))
    if skipped:
        logger.warning("%s: %s images of new items cannot be used and are skipped", dataset.folder, f"{skipped:,}")
    return torch.cat(found)


def _usable(folder: Path, path: str) -> bytes | None:
    """The bytes of an image file; None if it cannot be decoded."""
    with suppress(BrokenImage):
        data = read_image(folder, path)
        decode_image(data)
        return data
    return None
