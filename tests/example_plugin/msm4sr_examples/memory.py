"""A state store in the memory of one process: added items are lost when it ends. For demonstrations and tests."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock

from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.serving.state import STORES
from msm4sr.serving.state.store import Change, Counter, check_absent, check_present


class MemoryStore:
    """The latest change of each item and of its availability, in dictionaries."""

    name = "memory"
    at_once = True

    def __init__(self) -> None:
        self._lock = RLock()
        self._items: dict[str, Change] = {}
        self._availability: dict[str, Change] = {}
        self._images: dict[str, list[bytes]] = {}
        self._counters: dict[Counter, int] = {"change": 0, "reload": 0}

    def unusable(self, error: object) -> InputError:
        return InputError(f"--state memory: {error}")

    def close(self) -> None:
        """Keep the items: another part of the process may use the store."""

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def version(self) -> int:
        return sum(self._counters.values())

    def counter(self, name: Counter) -> int:
        return self._counters[name]

    def changes(self, since: int = 0) -> list[Change]:
        with self._lock:
            every = [*self._items.values(), *self._availability.values()]
        return sorted((one for one in every if one.number > since), key=lambda one: one.number)

    def images(self, item_id: str) -> list[bytes]:
        return self._images.get(item_id, [])

    def image(self, item_id: str, number: int) -> bytes | None:
        return dict(enumerate(self.images(item_id))).get(number)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        kept = ("_items", "_availability", "_images", "_counters")
        with self._lock:
            before = {name: dict(getattr(self, name)) for name in kept}
            try:
                yield
            except BaseException:
                vars(self).update(before)
                raise

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        with self.transaction():
            for item, in_place in zip(items, replaces, strict=True):
                check_absent(item.item_id, self._removed(item.item_id))
                images = [data for data in item.images if isinstance(data, bytes)]
                numbered = replace(item, images=tuple(map(str, range(len(images)))))
                number = self._next("change")
                self._set(Change(number, item.item_id, numbered, replaces=in_place, encoded_by=encoded_by), images)

    def remove(self, item_id: str, of_the_run: bool) -> None:
        with self.transaction():
            check_present(item_id, self._removed(item_id), of_the_run)
            self._set(Change(self._next("change"), item_id, removed=True, replaces=of_the_run), [])

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        with self.transaction():
            for item_id in item_ids:
                self._availability[item_id] = Change(self._next("change"), item_id, available=available)

    def request_reload(self) -> None:
        with self.transaction():
            self._next("reload")

    def replace_features(self, changes: Sequence[Change], encoded_by: str) -> None:
        with self.transaction():
            for one in changes:
                known = self._items.get(one.item_id)
                if known is not None and known.number == one.number:
                    self._items[one.item_id] = replace(one, encoded_by=encoded_by)

    def _set(self, change: Change, images: list[bytes]) -> None:
        self._items[change.item_id], self._images[change.item_id] = change, images
        self._availability.pop(change.item_id, None)

    def _removed(self, item_id: str) -> bool | None:
        known = self._items.get(item_id)
        return None if known is None else known.removed

    def _next(self, counter: Counter) -> int:
        self._counters[counter] += 1
        return self._counters[counter]


_OPENED: dict[str, MemoryStore] = {}


@STORES.register("memory")
def open_memory(url: str) -> MemoryStore:
    """The store of a URL such as memory://shop, the same one every time."""
    return _OPENED.setdefault(url, MemoryStore())
