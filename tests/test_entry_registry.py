"""Entries that register themselves by name, ours and those of other packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from msm4sr.errors import InputError
from msm4sr.registry import Registry, closest

OURS = """
from shapes import SHAPES

@SHAPES.register("{name}")
class Shape:
    sides = {sides}
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[type]]:
    """The registry `shapes.SHAPES`, whose package `shapes.builtin` has two modules."""
    builtin = tmp_path / "shapes" / "builtin"
    builtin.mkdir(parents=True)
    builtin.joinpath("__init__.py").touch()
    for name, sides in (("square", 4), ("triangle", 3)):
        builtin.joinpath(f"{name}.py").write_text(OURS.format(name=name, sides=sides))
    tmp_path.joinpath("shapes", "__init__.py").write_text(
        "from msm4sr.registry import Registry\nSHAPES = Registry('shape', 'test.shapes', ['shapes.builtin'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("shapes").SHAPES
    for module in [name for name in sys.modules if name.partition(".")[0] in ("shapes", "plugin")]:
        del sys.modules[module]


def install(folder: Path, module: str, name: str) -> None:
    """A package `plugin` whose entry point `name` is the module with this text, installed in `folder`."""
    folder.joinpath("plugin.py").write_text(module)
    info = folder / "plugin-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[test.shapes]\n{name} = plugin\n")


def test_built_in_modules_register_their_entries(shapes: Registry[type]) -> None:
    assert {name: entry.sides for name, entry in shapes.items()} == {"square": 4, "triangle": 3}
    assert "circle" not in shapes


def test_an_entry_point_adds_an_entry(shapes: Registry[type], tmp_path: Path) -> None:
    install(tmp_path, OURS.format(name="pentagon", sides=5), "pentagon")
    assert shapes.names() == ["pentagon", "square", "triangle"]
    assert "plugin" not in sys.modules, "names are listed without imports"
    assert shapes["pentagon"].sides == 5
    assert len(shapes) == 3


def test_an_entry_point_that_cannot_be_imported_is_named(shapes: Registry[type], tmp_path: Path) -> None:
    install(tmp_path, "import no_such_module", "pentagon")
    with pytest.raises(InputError, match=r"entry point pentagon = plugin of test\.shapes: .*no_such_module"):
        list(shapes)


def test_an_entry_point_that_registers_nothing_is_named(shapes: Registry[type], tmp_path: Path) -> None:
    install(tmp_path, "", "pentagon")
    with pytest.raises(InputError, match="registers no shape of that name"):
        list(shapes)


def test_an_unknown_name_is_an_error_with_the_closest(shapes: Registry[type]) -> None:
    with pytest.raises(InputError, match=r"--shape: there is no shape 'sqare', only .*; did you mean 'square'\?"):
        shapes.find("sqare", "--shape")
    with pytest.raises(KeyError):
        shapes["sqare"]


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("shape", "test.none")
    square = object()
    assert registry.register("square")(square) is square
    registry.register("square")(square)
    with pytest.raises(ValueError, match="two entries named 'square'"):
        registry.register("square")(object())


def test_closest_ignores_case_and_is_empty_where_nothing_is_similar() -> None:
    assert closest("item_id", ["Item_ID", "user"]) == "; did you mean 'Item_ID'?"
    assert closest("xyz", ["item", "user"]) == ""
