"""A served run: its recommender, kept up to date with the store of added items and with newer runs.

The run may be a link. Once a second the service checks whether the link leads to another run, or the run has another
model: the new run is read while the old one answers, receives the added and removed items, and replaces the old one
between two requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from pydantic import Field, SecretStr

from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.recommender import Recommender
from msm4sr.serving.metrics import Metrics
from msm4sr.serving.store import Change, ItemStore
from msm4sr.strict import Strict

logger = logging.getLogger(__name__)

PRODUCTS_INLINE = 1 << 22  # multiplications of a request in the event loop; a larger request runs in a thread


class ServeSettings(Strict):
    """How a run is served."""

    run: Path = Field(description="The run folder, or a link to one.")
    state: Path = Field(description="The folder for added items.")
    api_key: SecretStr | None = Field(None, description="Key required for changes; null: none.")
    workers: int = Field(1, ge=1, description="Number of processes.")
    index: IndexSettings = Field(IndexSettings(), description="Search for the best items.")
    max_body: int = Field(32 * 2**20, ge=1024, description="Maximum size of a request, in bytes.")
    max_images: int = Field(8, ge=1, description="Maximum number of images of a new item.")
    max_text: int = Field(20_000, ge=1, description="Maximum length of a new item's text, in characters.")
    max_k: int = Field(200, ge=1, description="Maximum length of a list.")
    max_history: int = Field(2_000, ge=1, description="Maximum length of a history in a request.")
    max_batch: int = Field(256, ge=1, description="Maximum number of histories in a request.")
    seconds: float = Field(30.0, gt=0, description="Time limit for receiving a request.")


def default_state(run: Path) -> Path:
    """RUN.state beside the run, so that a link to a newer run keeps the added items."""
    absolute = run.absolute()
    return absolute.with_name(absolute.name + ".state")


@dataclass
class _Served:
    """A recommender, and the latest change that it has."""

    recommender: Recommender
    encoded_by: str
    change: int = 0
    data_version: int = -1
    lock: Lock = field(default_factory=Lock)


class Service:
    """A served run. Thread-safe. Raises InputError if the run or the store cannot be used."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.store = ItemStore(settings.state)
        self._reloads = self.store.counter("reload")
        self._signature = run_signature(settings.run)
        self._served = self._load()
        self.failed_reload = ""  # why the newer run could not be read; empty if it could

    @property
    def recommender(self) -> Recommender:
        """The recommender with all items that any process has added or removed until now."""
        served = self._served
        self._catch_up(served)
        return served.recommender

    def _load(self) -> _Served:
        recommender = load_recommender(self.settings.run, self.settings.index)
        served = _Served(recommender, encoder_name(recommender))
        self._catch_up(served)
        return served

    def _catch_up(self, served: _Served) -> None:
        version = self.store.version()
        if version == served.data_version:
            return
        with served.lock:
            if changes := self.store.changes(served.change):
                self._apply(served, changes)
            served.data_version = version

    def _apply(self, served: _Served, changes: Sequence[Change]) -> None:
        recommender, catalogue = served.recommender, served.recommender.catalogue
        removed, added = [], []
        for change in changes:
            in_run = change.item_id in catalogue.items.rows
            if change.item is not None and in_run and not change.replaces:
                continue  # a newer run was trained on it: the model knows more than its content
            if catalogue.row(change.item_id) is not None:
                removed.append(change.item_id)
            if change.item is not None:
                added.append((change.item, change.encoded_by))
        if added and recommender.encoder is None:
            logger.warning("%d added items are ignored: the model of this run does not support new items", len(added))
            added = []
        recommender.update(removed, [item for change in added for item in self._with_features(served, *change)])
        served.change = changes[-1].number

    def _with_features(self, served: _Served, item: Item, encoded_by: str) -> list[Item]:
        """An added item; encoded again if its features are of other encoders, and ignored if it cannot be."""
        if encoded_by == served.encoded_by:
            return [item]
        new = replace(item, images=self.store.images(item.item_id), features={}, sentences=(), keywords=())
        try:
            encoded = served.recommender.encode_items([new])
        except InputError as error:
            logger.warning("added item %r is ignored: %s", item.item_id, error)
            return []
        self.store.replace_features(encoded, served.encoded_by)
        return [replace(encoded[0], images=item.images)]

    def add(self, items: Sequence[Item]) -> None:
        """Encode new items, store them, and recommend them from now on. Raises as `Recommender.add_items`."""
        served = self._served
        self._catch_up(served)
        catalogue = served.recommender.catalogue
        catalogue.check_new([item.item_id for item in items])
        encoded = served.recommender.encode_items(items)
        replaces = [item.item_id in catalogue.items.rows for item in items]
        self.store.add(encoded, served.encoded_by, replaces)
        self._catch_up(self._served)

    def remove(self, item_id: str) -> None:
        """Store that an item was removed, and no longer recommend it. Raises InputError for an unknown or last item."""
        catalogue = self.recommender.catalogue
        catalogue.known_row(item_id)
        if catalogue.n_items == 1:
            raise InputError("no item would be left to recommend; keep at least one")
        self.store.remove(item_id, item_id in catalogue.items.rows)
        self._catch_up(self._served)

    def reload_if_changed(self) -> bool:
        """Reload the run if it has changed or a reload was requested; whether it was reloaded.

        If the new run cannot be loaded, the old one is kept, and `failed_reload` says why.
        """
        signature, reloads = run_signature(self.settings.run), self.store.counter("reload")
        if signature == self._signature and reloads == self._reloads:
            return False
        self._signature, self._reloads = signature, reloads
        try:
            served = self._load()
        except (InputError, OSError) as error:
            self.failed_reload = str(error)
            logger.error("the run was not reloaded: %s", error)
            return False
        self._served, self.failed_reload = served, ""
        self.metrics.reloads.inc()
        logger.info("the run was reloaded: %s", self.settings.run.resolve())
        return True


def products_per_history(recommender: Recommender) -> int:
    """Multiplications that score all items for a history; 0 with an index."""
    return 0 if recommender.index is not None else recommender.catalogue.tensors.item_vectors.numel()


def run_signature(run: Path) -> list[object]:
    """The path of a run and the times of its model's files; empty if there is none."""
    try:
        folder = run.resolve()
        stats = [(folder / "model" / name).stat() for name in ("config.json", "model.safetensors", "items.json")]
    except OSError:
        return []
    return [folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)]


def encoder_name(recommender: Recommender) -> str:
    """A name for what encodes new items: equal names make equal features."""
    encoder = recommender.encoder
    if encoder is None:
        return ""
    settings, precomputed = encoder.settings.model_dump(mode="json"), sorted(encoder.precomputed)
    record = {"settings": settings, "dims": encoder.dims, "precomputed": precomputed}
    if encoder.settings.visual.kind == "keywords":
        record["folder"] = str(encoder.folder)  # keywords and their map are learned from the catalogue there
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()
