"""Things that are found by name: models, encoders, sources. Other packages add theirs through an entry point."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TypeVar

from msm4sr.errors import InputError

T = TypeVar("T")


def closest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name, such as "; did you mean 'sasrec'?"; empty where nothing is similar."""
    lower = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


class Registry(Mapping[str, T]):
    """A mapping from names to entries that register themselves with a decorator.

        MODELS = Registry[type[Model]]("model", "msm4sr.models", ["msm4sr.models.baselines"])

        @MODELS.register("sasrec")
        class SASRec(Model): ...

    `kind` says in messages what the entries are. The modules of `packages`, and those that other packages name in the
    entry-point group `group`, are imported on first use; importing them registers the entries.
    """

    def __init__(self, kind: str, group: str, packages: Iterable[str] = ()) -> None:
        self._kind, self._group, self._packages = kind, group, tuple(packages)
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds its argument. Raises ValueError for a name that another entry has."""

        def add(entry: T) -> T:
            if self._entries.get(name, entry) is not entry:
                raise ValueError(f"there are two entries named {name!r} for {self._kind}")
            self._entries[name] = entry
            return entry

        return add

    def find(self, name: str, where: str) -> T:
        """The entry of that name. Raises InputError, which names `where` it was asked for and the closest name."""
        if name not in self:
            raise InputError(f"{where}: there is no {self._kind} {name!r}, only {', '.join(self)}{closest(name, self)}")
        return self[name]

    def names(self) -> list[str]:
        """The names in alphabetical order, read from the names of files and entry points: nothing is imported."""
        found = {point.name for point in entry_points(group=self._group)}
        for package in self._packages:
            spec = find_spec(package)
            folders = spec.submodule_search_locations if spec else None
            found |= {file.name for file in pkgutil.iter_modules(folders)} if folders else {package.split(".")[-1]}
        return sorted(found)

    def __getitem__(self, name: str) -> T:
        return self._load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._load()))

    def __len__(self) -> int:
        return len(self._load())

    def _load(self) -> dict[str, T]:
        if self._loaded:
            return self._entries
        self._loaded = True
        for package in self._packages:
            module = import_module(package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                import_module(f"{package}.{found.name}")
        for point in entry_points(group=self._group):
            where = f"entry point {point.name} = {point.value} of {self._group}"
            try:
                point.load()
            except ImportError as error:
                raise InputError(f"{where}: {error}; repair or uninstall its package") from error
            if point.name not in self._entries:
                raise InputError(f"{where}: the module registers no {self._kind} of that name")
        return self._entries
