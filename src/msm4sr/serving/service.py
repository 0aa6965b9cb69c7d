"""A served run: its recommender, kept up to date with the store of added items and with newer runs.

The run may be a link. Once a second the service checks whether the link leads to another run, or the run has another
model: the new run is read while the old one answers, receives the added and removed items, and replaces the old one
between two requests.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, SecretStr

from msm4sr.data.items import LONGEST_TEXT, Item
from msm4sr.errors import InputError, first_line
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.recommender import Recommender
from msm4sr.serving.logs import LogFormat
from msm4sr.serving.metrics import Metrics
from msm4sr.serving.runs import check_files, encoder_name, run_signature, try_out
from msm4sr.serving.state import open_store
from msm4sr.serving.state.store import MOST_IMAGES, Change, StoreUnavailable
from msm4sr.strict import Strict

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds after which a store that is not read by each request is read at the latest
RETRY = 10.0, 300.0  # seconds after which a run that could not be loaded is tried again: at first, at most
PRODUCTS_INLINE = 1 << 22  # multiplications of a request in the event loop; a larger request runs in a thread


class LoadTimeout(InputError):
    """A run takes too long to load. It is not tried again, since a thread may still be loading it."""


class ServeSettings(Strict):
    """How a run is served."""

    run: Path = Field(description="The run folder, or a link to one.")
    state: Path = Field(description="The folder for added items and thumbnails.")
    database: SecretStr | None = Field(
        None,
        description="The URL of a PostgreSQL database (or another store) for added items; null: SQLite in `state`.",
    )
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


@dataclass
class _Served:
    """A recommender, and the latest change that it has."""

    recommender: Recommender
    encoded_by: str
    skipped: dict[str, str] = field(default_factory=dict)  # id of a stored item that cannot be recommended: why
    numbers: dict[str, int] = field(default_factory=dict)  # id of an added item: the change that added it
    change: int = 0
    version: int = -1  # of the store
    lock: Lock = field(default_factory=Lock)


class Service:
    """A served run. Thread-safe. Raises InputError if the run or the store cannot be used."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        database = settings.database.get_secret_value() if settings.database is not None else None
        self.store = open_store(settings.state, database)
        self.failed_reload = ""  # why the newer run could not be read; empty if it could
        self.failed_store = ""  # why the store cannot be read; empty if it can
        self._read = time.monotonic()  # when the items were last known to be up to date
        self._replacing, self._closed = Lock(), Event()
        self._signature = run_signature(settings.run)
        self._retry_at, self._pause = 0.0, RETRY[0]
        try:
            self._reloads = self.store.counter("reload")
            try:
                self._served = self._load(settings.run)
            except InputError as error:
                if settings.last_run is None or not settings.last_run.exists():
                    raise
                self._served, self.failed_reload = self._load(settings.last_run.resolve()), str(error)
                logger.error("%s; the last run that could be loaded is served", error)
        except BaseException as error:
            self.store.close()
            if isinstance(error, StoreUnavailable):
                raise self.store.unusable(error) from None
            raise
        self._follower = Thread(target=self._follow, daemon=True)
        if not self.store.at_once:
            self._follower.start()

    def close(self) -> None:
        """No longer follow the store, and close it."""
        self._closed.set()
        if self._follower.is_alive():
            self._follower.join(2 * POLL)
        self.store.close()

    @property
    def recommender(self) -> Recommender:
        """The recommender with all items that any process has added or removed until now."""
        return self._current().recommender

    @property
    def skipped(self) -> dict[str, str]:
        """Id of a stored item that cannot be recommended, and why."""
        return self._current().skipped

    @property
    def state_lag(self) -> float:
        """Seconds since the items were last known to be up to date."""
        return time.monotonic() - self._read

    def _current(self) -> _Served:
        served = self._served
        if self.store.at_once:
            with suppress(StoreUnavailable):
                self._catch_up(served)
        return served

    def _latest(self) -> _Served:
        """The items with all changes, before and after a change. Raises StoreUnavailable."""
        with self._replacing:
            served = self._served
            encoded = self._apply_new(served)
        self._keep_features(served, encoded)
        return served

    def _follow(self) -> None:
        """Apply the changes of other processes until this service is closed; requests then need not read the store."""
        while not self._closed.is_set():
            try:
                self._catch_up(self._served)
            except StoreUnavailable:
                pass
            except Exception as error:
                logger.exception("changes of items could not be applied")
                self.failed_store = first_line(error)
            self.store.wait(POLL)

    def _load(self, run: Path) -> _Served:
        """Load a run and the added items, and try it out.

        Raises InputError for any problem of the run, StoreUnavailable for one of the store.
        """
        try:
            folder = run.resolve()
            check_files(run)
            recommender = load_recommender(run, self.settings.index)
            try_out(recommender)
            if recommender.cache is not None:
                recommender.cache.on_lookup = self.metrics.count_lookup
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic of polars is no Exception
            raise InputError(f"{run}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
        served = _Served(recommender, encoder_name(recommender))
        self._catch_up(served)
        if recommender.catalogue.n_items == 0:
            why = "; ".join(f"{item_id!r}: {reason}" for item_id, reason in list(served.skipped.items())[:3])
            raise InputError(
                f"{run}: no item is left to recommend: {self.store.name} excludes all items of the run"
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
        """Apply the changes since the last call. Raises StoreUnavailable; the items then stay as they are."""
        self._keep_features(served, self._apply_new(served))

    def _apply_new(self, served: _Served) -> list[Change]:
        """As `_catch_up`, and return the changes of items that were encoded again."""
        encoded: list[Change] = []
        try:
            version = self.store.version()
            if version != served.version:
                with served.lock:
                    if changes := self.store.changes(served.change):
                        encoded = self._apply(served, changes)
                    served.version = version
        except StoreUnavailable as error:
            if not self.failed_store:
                logger.error("%s: cannot be read (%s); items stay as they are", self.store.name, error)
            self.failed_store = str(error)
            raise
        self.failed_store, self._read = "", time.monotonic()
        return encoded

    def _keep_features(self, served: _Served, encoded: Sequence[Change]) -> None:
        """Call this without the locks of this class: a change has the lock of the store first."""
        if encoded:
            self.store.replace_features(encoded, served.encoded_by)

    def _apply(self, served: _Served, changes: Sequence[Change]) -> list[Change]:
        """Apply changes, and return those of items that were encoded again."""
        catalogue = served.recommender.catalogue
        removed, added, again = list[str](), list[Item](), list[Change]()
        for change in changes:
            if change.available is not None:
                continue
            served.skipped.pop(change.item_id, None)
            in_run = change.item_id in catalogue.items.rows
            if not change.removed and in_run and not change.replaces:
                continue  # a newer run was trained on it: the model knows more than its content
            if catalogue.row(change.item_id) is not None:
                removed.append(change.item_id)
            served.numbers.pop(change.item_id, None)
            if change.removed:
                continue
            try:
                item = self._stored(served, change)
            except Exception as error:  # whatever is wrong with it concerns this item only
                self._skip(served, change.item_id, first_line(error))
                continue
            added.append(item)
            served.numbers[item.item_id] = change.number
            if change.encoded_by != served.encoded_by:
                again.append(replace(change, item=item))
        switched = {change.item_id: change.available for change in changes if change.available is not None}
        self._update(served, removed, added, switched)
        served.change = max(served.change, *(change.number for change in changes))
        return again

    def _update(self, served: _Served, removed: list[str], added: list[Item], switched: Mapping[str, bool]) -> None:
        try:
            served.recommender.update(removed, added, switched)
        except Exception:
            fitting = [item for item in added if self._fits(served, item)]
            served.recommender.update(removed, fitting, switched)

    def _stored(self, served: _Served, change: Change) -> Item:
        """An added item, encoded again if its features are of other encoders. May raise any exception."""
        if change.item is None:
            raise InputError(f"its row in {self.store.name} is damaged ({change.damage}); remove the item")
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

    def image(self, item_id: str, number: int) -> bytes | None:
        """An image that was uploaded for an item; None if there is none. Raises StoreUnavailable."""
        if self.failed_store:
            raise StoreUnavailable(self.failed_store)  # without waiting for it
        return self.store.image(item_id, number)

    def added_by(self, item_id: str) -> int | None:
        """The number of the change that added an item; None for an item of the run."""
        return self._served.numbers.get(item_id)

    def add(self, items: Sequence[Item]) -> None:
        """Encode new items, store them, and recommend them from now on. Raises as `Recommender.add_items`."""
        served = self._latest()
        catalogue = served.recommender.catalogue
        catalogue.check_new(items)
        encoded = served.recommender.encode_items(items)
        served.recommender.tensors_of(encoded)  # before they are stored
        replaces = [item.item_id in catalogue.items.rows for item in items]
        self.store.add(encoded, served.encoded_by, replaces)
        self._show_stored()

    def remove(self, item_id: str) -> None:
        """Store that an item was removed, and no longer recommend it. Raises InputError for an unknown or last item."""
        with self.store.transaction():  # no other process changes items meanwhile
            served = self._latest()
            catalogue = served.recommender.catalogue
            if item_id not in served.skipped:
                catalogue.without([item_id]).check_left()
            self.store.remove(item_id, item_id in catalogue.items.rows)
        self._show_stored()

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        """Store whether items can be recommended. Raises InputError for an unknown item, or if none would be left."""
        with self.store.transaction():
            self._latest().recommender.catalogue.with_available(item_ids, available).check_left()
            self.store.set_available(item_ids, available)
        self._show_stored()

    def _show_stored(self) -> None:
        """Apply a change that was stored."""
        try:
            self._latest()
        except StoreUnavailable as error:
            raise StoreUnavailable(f"the change is stored, but cannot be shown: {error}") from error

    def sample(self) -> None:
        """Set the metrics that describe this moment."""
        recommender, metrics = self.recommender, self.metrics
        index = recommender.index
        metrics.items.set(recommender.catalogue.n_items)
        metrics.added.set(len(recommender.catalogue.added))
        metrics.set_index(index.kind, index.recall)
        metrics.state_lag.set(self.state_lag)

    def reload_if_changed(self) -> bool:
        """Reload the run if it has changed or a reload was requested; whether it was reloaded.

        If the new run cannot be loaded, the old one is kept, `failed_reload` says why, and later calls try again after
        growing pauses (`RETRY`). While the store cannot be read, nothing is reloaded.
        """
        signature = run_signature(self.settings.run)
        try:
            reloads = self.store.counter("reload")
            if signature != self._signature or reloads != self._reloads:
                self._pause = RETRY[0]
            elif not self.failed_reload or time.monotonic() < self._retry_at:
                return False
            served = self._load_in_time()
        except StoreUnavailable:  # /ready says so; the next call tries again
            return False
        except InputError as error:
            self._signature, self._reloads = signature, reloads
            self._retry_at = math.inf if isinstance(error, LoadTimeout) else time.monotonic() + self._pause
            self._pause = min(2 * self._pause, RETRY[1])
            if str(error) != self.failed_reload:
                logger.error("the run was not reloaded: %s", error)
            self.failed_reload = str(error)
            self.metrics.failed_reloads.inc()
            return False
        self._signature, self._reloads = signature, reloads
        with self._replacing:  # after a change is acknowledged, no request sees items without it
            with suppress(StoreUnavailable):
                self._apply_new(served)
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
            raise LoadTimeout(f"{self.settings.run}: not loaded within {limit:,g} seconds; given up") from None
