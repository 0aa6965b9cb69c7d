"""A run that is being served: its recommender, kept in step with the store of added items and with newer runs.

The run may be a link. Once a second the service looks whether it leads elsewhere, or holds another model: the new one
is read beside the old one, gets what was added and removed, and takes its place between two requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.catalogue import EncodedItem, NewItem
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.recommender import Recommender
from msm4sr.serving.store import Change, ItemStore

log = logging.getLogger("msm4sr.serving")


class ServeSettings(BaseModel):
    """How a run is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path = Field(description="The run folder, or a link to one.")
    state: Path = Field(description="The folder where added items are kept.")
    api_key: SecretStr | None = Field(None, description="Asked for before anything is changed; null: nothing is asked.")
    workers: int = Field(1, ge=1, description="Processes.")
    index: IndexSettings = Field(IndexSettings(), description="How the best items are found.")
    max_body: int = Field(32 * 2**20, ge=1024, description="Bytes of a request.")
    max_pictures: int = Field(8, ge=1, description="Pictures of a new item.")
    max_text: int = Field(20_000, ge=1, description="Characters of a new item's text.")
    max_k: int = Field(200, ge=1, description="Items that can be asked for at once.")
    max_history: int = Field(2_000, ge=1, description="Items of a history in a request.")
    max_batch: int = Field(256, ge=1, description="Ragged in a request.")
    seconds: float = Field(30.0, gt=0, description="Within which the whole of a request must have come.")


def default_state(run: Path) -> Path:
    """RUN.state, beside the run: a link that is moved to a newer run keeps its added items."""
    absolute = run.absolute()
    return absolute.with_name(absolute.name + ".state")


@dataclass
class _Served:
    """A recommender, and the latest change that it has seen."""

    recommender: Recommender
    made_by: str
    change: int = 0
    data_version: int = -1
    lock: Lock = field(default_factory=Lock)


class Service:
    """Safe under threads. Raises InputError where the run or the store cannot be used."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.store = ItemStore(settings.state)
        self._reload_seen = self.store.counter("reload")
        self._signature = signature(settings.run)
        self._served = self._load()
        self.failed_reload = ""
        """Why the newer run could not be read; empty where all is well."""

    @property
    def recommender(self) -> Recommender:
        """With all that any process has added or removed before now."""
        served = self._served
        self._catch_up(served)
        return served.recommender

    def _load(self) -> _Served:
        recommender = load_recommender(self.settings.run, self.settings.index)
        served = _Served(recommender, made_by(recommender))
        self._catch_up(served)
        return served

    def _catch_up(self, served: _Served) -> None:
        version = self.store.version()
        if version == served.data_version:
            return
        with served.lock:
            changes = self.store.changes(served.change)
            if changes:
                self._apply(served, changes)
            served.data_version = version

    def _apply(self, served: _Served, changes: Sequence[Change]) -> None:
        recommender = served.recommender
        catalogue = recommender.catalogue
        gone, come = [], []
        for change in changes:
            in_run = change.item_id in catalogue.base.rows
            if change.item is not None and in_run and not change.replaces:
                continue  # a newer run was trained on it: it knows more of it than its content
            if catalogue.row(change.item_id) is not None:
                gone.append(change.item_id)
            if change.item is not None:
                come.append(change)
        items = self._with_features(served, come) if recommender.takes_new_items else []
        if come and not recommender.takes_new_items:
            log.warning("%d added items are left out: the model of this run takes none", len(come))
        recommender.update(gone, items)
        served.change = changes[-1].number

    def _with_features(self, served: _Served, changes: Sequence[Change]) -> list[EncodedItem]:
        """The items, those encoded anew that were encoded for a run of other encoders."""
        old = [change for change in changes if change.made_by != served.made_by and change.item is not None]
        fresh: dict[str, EncodedItem] = {}
        for change in old:
            item = change.item
            assert item is not None
            pictures = self.store.pictures(change.item_id)
            new = NewItem(item.item_id, item.title, item.text, item.categories, pictures)
            try:
                fresh[change.item_id] = served.recommender.encode_items([new], new_ids=False)[0]
            except InputError as error:
                log.warning("added item %r is left out: %s", item.item_id, error)
        if fresh:
            self.store.keep_features(list(fresh.values()), served.made_by)
        known = {change.item_id: change.item for change in changes if change.made_by == served.made_by}
        found = {change.item_id: fresh.get(change.item_id) or known.get(change.item_id) for change in changes}
        return [item for item in found.values() if item is not None]

    # -- changing

    def add(self, items: Sequence[NewItem]) -> None:
        """Encode, keep on disk, and recommend from now on. Raises as `Recommender.add_items`."""
        served = self._served
        self._catch_up(served)
        encoded = served.recommender.encode_items(items)
        replaces = [item.item_id in served.recommender.catalogue.base.rows for item in items]
        self.store.add(items, encoded, served.made_by, replaces)
        self._catch_up(self._served)

    def remove(self, item_id: str) -> None:
        """Keep on disk that an item is gone, and recommend it no longer. Raises UnknownItem, or for the last item."""
        recommender = self.recommender
        catalogue = recommender.catalogue
        catalogue.known_row(item_id)
        if catalogue.n_items == 1:
            raise InputError("no item would be left to recommend; keep one at least")
        self.store.remove(item_id, item_id in catalogue.base.rows)
        self._catch_up(self._served)

    # -- newer runs

    def look_for_a_newer_run(self) -> bool:
        """Read the run again if it has changed or someone asked for it; whether it was read.

        A run that cannot be read leaves the old one in its place, and `failed_reload` says why.
        """
        now, asked = signature(self.settings.run), self.store.counter("reload")
        if now == self._signature and asked == self._reload_seen:
            return False
        self._signature, self._reload_seen = now, asked
        try:
            served = self._load()
        except (InputError, OSError) as error:
            self.failed_reload = str(error)
            log.error("the run was not read again: %s", error)
            return False
        self._served, self.failed_reload = served, ""
        log.info("the run was read again: %s", self.settings.run.resolve())
        return True


def signature(run: Path) -> str:
    """Where a run is and of when its model is; empty where there is none."""
    try:
        folder = run.resolve()
        stats = [(folder / "model" / name).stat() for name in ("config.json", "model.safetensors", "items.json")]
    except OSError:
        return ""
    return json.dumps([str(folder), *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)])


def made_by(recommender: Recommender) -> str:
    """A name for what new items are encoded by: equal names, equal features."""
    encoder = recommender.encoder
    if encoder is None:
        return ""
    record = {
        "settings": encoder.settings.model_dump(mode="json"),
        "dims": encoder.dims,
        "precomputed": sorted(encoder.precomputed),
    }
    if encoder.settings.visual.kind == "keywords":
        record["folder"] = str(encoder.folder)  # words and their map are learned from the catalogue there
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()
