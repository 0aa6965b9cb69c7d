"""A served run: its recommender, kept up to date with the store of added items and with newer runs.

The run may be a link. Once a second the service checks whether the link leads to another run, or the run has another
model: the new run is read while the old one answers, receives the added and removed items, and replaces the old one
between two requests.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, SecretStr

from msm4sr.data.items import LONGEST_TEXT, Item
from msm4sr.digests import json_digest
from msm4sr.errors import InputError, first_line
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.scoring import COLLABORATIVE
from msm4sr.serving.logs import LogFormat
from msm4sr.serving.metrics import Metrics
from msm4sr.serving.store import MOST_IMAGES, Change, ItemStore
from msm4sr.strict import Strict

logger = logging.getLogger(__name__)

# The files that are loaded, and their largest size in bytes: half of the memory, if that is less.
LARGEST = {
    "config.yaml": 2**20,
    "model/config.json": 2**20,
    "model/items.json": 4 * 2**30,
    "model/model.safetensors": 2**50,
}
PRODUCTS_INLINE = 1 << 22  # multiplications of a request in the event loop; a larger request runs in a thread


class ServeSettings(Strict):
    """How a run is served."""

    run: Path = Field(description="The run folder, or a link to one.")
    state: Path = Field(description="The folder for added items.")
    last_run: Path | None = Field(
        None,
        description="A link to the last run that was loaded: a worker starts with that run if it cannot load `run`.",
    )
    api_key: SecretStr | None = Field(None, description="Key required for changes; null: none.")
    hosts: tuple[Annotated[str, Field(pattern=r"^[^\s/@A-Z]+$")], ...] | None = Field(
        None, description="Host names to answer to, in lower case, besides the local ones; null: any."
    )
    address: str | None = Field(None, description="The address to listen on, a host that requests may name.")
    proxies: tuple[IPvAnyNetwork, ...] = Field((), description="Proxies whose X-Forwarded-Host and -Proto are used.")
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="The path at which a proxy serves it.")
    workers: int = Field(1, ge=1, description="Number of processes.")
    index: IndexSettings = Field(IndexSettings(), description="Search for the best items.")
    max_body: int = Field(32 * 2**20, ge=1024, description="Maximum size of a request, in bytes.")
    max_images: int = Field(8, ge=1, le=MOST_IMAGES, description="Maximum number of images of a new item.")
    max_text: int = Field(
        20_000, ge=1, le=LONGEST_TEXT, description="Maximum length of a new item's text, in characters."
    )
    max_k: int = Field(200, ge=1, description="Maximum length of a list.")
    max_history: int = Field(2_000, ge=1, description="Maximum length of a history in a request.")
    max_batch: int = Field(256, ge=1, description="Maximum number of histories in a request.")
    seconds: float = Field(30.0, gt=0, description="Time limit for receiving a request.")
    drain: float = Field(0.0, ge=0, le=3600, description="Seconds after SIGTERM in which requests are still answered.")
    log_format: LogFormat = Field("text", description="Lines of text, or one JSON object a line.")
    access_log: bool = Field(False, description="Log each request.")
    trace: str | None = Field(None, description="URL of an OTLP receiver; null: as OpenTelemetry's variables say.")
    load_seconds: float = Field(1800.0, gt=0, description="Time limit for loading a newer run.")


def default_state(run: Path) -> Path:
    """RUN.state beside the run, so that a link to a newer run keeps the added items."""
    absolute = run.absolute()
    return absolute.with_name(absolute.name + ".state")


@dataclass
class _Served:
    """A recommender, and the latest change that it has."""

    recommender: Recommender
    encoded_by: str
    skipped: dict[str, str] = field(default_factory=dict)  # id of a stored item that cannot be recommended: why
    change: int = 0
    data_version: int = -1
    lock: Lock = field(default_factory=Lock)


class Service:
    """A served run. Thread-safe. Raises InputError if the run or the store cannot be used."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.store = ItemStore(settings.state)
        self.failed_reload = ""  # why the newer run could not be read; empty if it could
        self.failed_store = ""  # why the store cannot be read; empty if it can
        self._read = time.monotonic()  # when the items were last known to be up to date
        self._signature = run_signature(settings.run)
        try:
            self._reloads = self.store.counter("reload")
        except sqlite3.Error as error:
            raise self.store.unusable(error) from None
        try:
            self._served = self._load(settings.run)
        except InputError as error:
            if settings.last_run is None or not settings.last_run.exists():
                raise
            self._served, self.failed_reload = self._load(settings.last_run.resolve()), str(error)
            logger.error("%s; the last run that could be loaded is served", error)

    @property
    def recommender(self) -> Recommender:
        """The recommender with all items that any process has added or removed until now."""
        return self._current().recommender

    @property
    def skipped(self) -> dict[str, str]:
        """Id of a stored item that cannot be recommended, and why."""
        return self._current().skipped

    def _current(self, to_change: bool = False) -> _Served:
        served = self._served
        self._catch_up(served)
        if to_change and self.failed_store:
            raise sqlite3.OperationalError(self.failed_store)
        return served

    def _load(self, run: Path) -> _Served:
        """Load a run and the added items, and try it out. Raises InputError for any problem of the run."""
        try:
            folder = run.resolve()
            check_files(run)
            recommender = load_recommender(run, self.settings.index)
            try_out(recommender)
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic of polars is no Exception
            raise InputError(f"{run}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
        served = _Served(recommender, encoder_name(recommender))
        self._catch_up(served)
        if self.failed_store:
            raise self.store.unusable(self.failed_store)
        if recommender.catalogue.n_items == 0:
            why = "; ".join(f"{item_id!r}: {reason}" for item_id, reason in list(served.skipped.items())[:3])
            raise InputError(
                f"{run}: no item is left to recommend: {self.settings.state} has removed all items of the run"
                + (f", and added ones are skipped ({why})" if why else "")
                + "; choose another run, or another --state"
            )
        if self.settings.last_run is not None:
            with suppress(OSError):  # such as a full disk
                new = self.settings.last_run.with_name(f"{os.getpid()}.run")
                new.unlink(missing_ok=True)
                new.symlink_to(folder)
                new.replace(self.settings.last_run)
        return served

    def _catch_up(self, served: _Served) -> None:
        """Apply the changes since the last call. While the store cannot be read, the items stay as they are."""
        encoded: list[Item] = []
        try:
            version = self.store.version()
            if version != served.data_version:
                with served.lock:
                    if changes := self.store.changes(served.change):
                        encoded = self._apply(served, changes)
                    served.data_version = version
            if encoded:  # without the lock: `remove` has the lock of the store first
                self.store.replace_features(encoded, served.encoded_by)
            self.failed_store, self._read = "", time.monotonic()
        except sqlite3.Error as error:
            if not self.failed_store:
                logger.error("%s: cannot be read (%s); items stay as they are", self.store.file, error)
            self.failed_store = str(error)

    def _apply(self, served: _Served, changes: Sequence[Change]) -> list[Item]:
        """Apply changes, and return the items that were encoded again."""
        recommender, catalogue = served.recommender, served.recommender.catalogue
        removed, added, again = [], [], []
        for change in changes:
            served.skipped.pop(change.item_id, None)
            in_run = change.item_id in catalogue.items.rows
            if not change.removed and in_run and not change.replaces:
                continue  # a newer run was trained on it: the model knows more than its content
            if catalogue.row(change.item_id) is not None:
                removed.append(change.item_id)
            if change.removed:
                continue
            try:
                item = self._stored(served, change)
            except Exception as error:  # whatever is wrong with it concerns this item only
                self._skip(served, change.item_id, first_line(error))
                continue
            added.append(item)
            if change.encoded_by != served.encoded_by:
                again.append(item)
        try:
            recommender.update(removed, added)
        except Exception:
            recommender.update(removed, [item for item in added if self._fits(served, item)])
        served.change = max(served.change, *(change.number for change in changes))
        return again

    def _stored(self, served: _Served, change: Change) -> Item:
        """An added item, encoded again if its features are of other encoders. May raise any exception."""
        if change.item is None:
            raise InputError(f"its row in {self.store.file} is damaged ({change.damage}); remove the item")
        if change.encoded_by == served.encoded_by:
            return change.item
        images = self.store.images(change.item_id)
        new = replace(change.item, images=images, features={}, sentences=(), keywords=())
        return replace(served.recommender.encode_items([new])[0], images=change.item.images)

    def _fits(self, served: _Served, item: Item) -> bool:
        try:
            served.recommender.tensors_of([item])
        except Exception as error:
            self._skip(served, item.item_id, f"its features are damaged ({first_line(error)}); remove the item")
            return False
        return True

    def _skip(self, served: _Served, item_id: str, why: str) -> None:
        served.skipped[item_id] = why
        logger.warning("the added item %r is skipped: %s", item_id, why)

    def add(self, items: Sequence[Item]) -> None:
        """Encode new items, store them, and recommend them from now on. Raises as `Recommender.add_items`."""
        served = self._current(to_change=True)
        catalogue = served.recommender.catalogue
        catalogue.check_new(items)
        encoded = served.recommender.encode_items(items)
        served.recommender.tensors_of(encoded)  # before they are stored
        replaces = [item.item_id in catalogue.items.rows for item in items]
        self.store.add(encoded, served.encoded_by, replaces)
        self._current(to_change=True)

    def remove(self, item_id: str) -> None:
        """Store that an item was removed, and no longer recommend it. Raises InputError for an unknown or last item."""
        with self.store.transaction():  # no other process changes items meanwhile
            served = self._current(to_change=True)
            catalogue = served.recommender.catalogue
            if item_id not in served.skipped:
                catalogue.known_row(item_id)
                if catalogue.n_items == 1:
                    raise InputError("no item would be left to recommend; keep at least one")
            self.store.remove(item_id, item_id in catalogue.items.rows)
        self._current(to_change=True)

    def sample(self) -> None:
        """Set the metrics that describe this moment."""
        recommender, metrics = self.recommender, self.metrics
        index = recommender.index
        metrics.items.set(recommender.catalogue.n_items)
        metrics.added.set(len(recommender.catalogue.added))
        metrics.set_index(index.kind, index.recall)
        metrics.state_lag.set(time.monotonic() - self._read)

    def reload_if_changed(self) -> bool:
        """Reload the run if it has changed or a reload was requested; whether it was reloaded.

        If the new run cannot be loaded, the old one is kept, and `failed_reload` says why.
        """
        signature = run_signature(self.settings.run)
        try:
            reloads = self.store.counter("reload")
        except sqlite3.Error:
            reloads = self._reloads  # /ready says so
        if signature == self._signature and reloads == self._reloads:
            return False
        self._signature, self._reloads = signature, reloads
        try:
            served = self._load_in_time()
        except InputError as error:
            self.failed_reload = str(error)
            self.metrics.failed_reloads.inc()
            logger.error("the run was not reloaded: %s", error)
            return False
        self._served, self.failed_reload = served, ""
        self.metrics.reloads.inc()
        logger.info("the run was reloaded: %s", self.settings.run.resolve())
        return True

    def _load_in_time(self) -> _Served:
        loaded: Future[_Served] = Future()

        def load() -> None:
            try:
                loaded.set_result(self._load(self.settings.run))
            except Exception as error:
                loaded.set_exception(error)

        Thread(target=load, daemon=True).start()
        try:
            return loaded.result(self.settings.load_seconds)
        except TimeoutError:
            limit = self.settings.load_seconds
            raise InputError(f"{self.settings.run}: not loaded within {limit:,g} seconds; given up") from None


def products_per_history(recommender: Recommender) -> int:
    """Multiplications that find the best items for a history."""
    return recommender.index.products


def run_signature(run: Path) -> list[object]:
    """The path of a run and the times of the files that are loaded; empty if there is none."""
    try:
        folder = run.resolve()
        stats = [(folder / name).stat() for name in LARGEST]
    except (OSError, RuntimeError):  # a loop of links
        return []
    return [folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)]


def check_files(run: Path) -> None:
    """Raise InputError if a file of the run is no ordinary file, or too large to be loaded into memory."""
    for file in [run / "config.yaml", *(run / "model").glob("*")]:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise InputError(f"{file}: not an ordinary file")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, largest in LARGEST.items():
        file = run / name
        if file.exists() and (size := file.stat().st_size) > min(largest, available // 2):
            raise InputError(f"{file}: too large to be loaded ({size:,} bytes)")


def try_out(recommender: Recommender) -> None:
    """Recommend, compare and explain once. Raises InputError for scores that are not finite, or any other exception."""
    item_id = recommender.catalogue.item_id(0)
    found = recommender.recommend([item_id], exclude_seen=False, reasons=True).items
    scores = [one.score for one in (*found, *recommender.similar_items(item_id, by=COLLABORATIVE))]
    scores.append(recommender.explain([item_id], item_id).score)
    if not all(map(math.isfinite, scores)):
        raise InputError("the run recommends with scores that are not finite; its weights are damaged")


def encoder_name(recommender: Recommender) -> str:
    """A name for what encodes new items: equal names make equal features."""
    encoder = recommender.encoder
    if encoder is None:
        return ""
    settings, precomputed = encoder.settings.model_dump(mode="json"), sorted(encoder.precomputed)
    record = {"settings": settings, "dims": encoder.dims, "precomputed": precomputed}
    if encoder.settings.visual.kind == "keywords":
        record["folder"] = str(encoder.folder)  # keywords and their map are learned from the catalogue there
    return json_digest(record)
