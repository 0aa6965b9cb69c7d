"""The rules that no single module can keep alone: imports, vocabulary, size, no pickle."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import vocabulary

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "msm4sr"
MAX_TRACKED_BYTES = 1024 * 1024  # 1 MiB
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def python_files() -> list[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    assert found, f"no Python files under {SOURCE}: the tests below would check nothing"
    return found


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression made of names and attributes, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def pickling(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what) for everything that would write or run a pickle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                yield node.lineno, f"imports {name}"
            if name in {"torch.load", "torch.save"}:
                yield node.lineno, f"imports {name}"
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        match dotted(node.func):
            case "torch.save":
                yield node.lineno, "calls torch.save"
            case "torch.load" if options.get("weights_only") != "True":
                yield node.lineno, "calls torch.load without weights_only=True"
            case "np.load" | "numpy.load" if options.get("allow_pickle", "False") != "False":
                yield node.lineno, "calls numpy.load with allow_pickle"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import save",
        "torch.save(model, path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_for_pickles_finds_one(code: str) -> None:
    assert list(pickling(ast.parse(code)))


@pytest.mark.parametrize("code", ["import torch", "torch.load(path, weights_only=True)", "np.load(path)"])
def test_the_search_for_pickles_lets_plain_tensors_pass(code: str) -> None:
    assert not list(pickling(ast.parse(code)))


def test_nothing_writes_or_runs_a_pickle() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in python_files()
        for line, what in pickling(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def test_a_torch_file_is_read_by_features_only() -> None:
    """Weights of third-party encoders may come as a torch file; ours are safetensors."""
    readers = {
        path.relative_to(SOURCE).parts[0]
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load"
    }
    assert readers <= {"features"}


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("msm4sr") / "py.typed").is_file()


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    tracked = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert tracked
    large = [
        f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes"
        for path in tracked
        if path.is_file() and path.stat().st_size > MAX_TRACKED_BYTES
    ]
    assert not large, "\n".join(large)


def test_every_constraint_is_an_exact_public_version() -> None:
    """No host, no path, no local build: the pins must mean the same on every machine."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    for pin in pins:
        name, _, version = pin.partition("==")
        assert name.replace("-", "").replace(".", "").isalnum(), pin
        assert version, pin
        assert not set("/+@: ") & set(version), pin


def test_no_two_files_of_tests_have_one_name() -> None:
    """Each is a module of that name: pytest refuses the second."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 20
    assert not [name for name in names if names.count(name) > 1]


def test_the_vocabulary_is_kept() -> None:
    """DESIGN section 8: one term per concept, in code, options, messages, tests and documentation."""
    searched = vocabulary.files()
    assert len(searched) > 200, "the search must cover src, tests, benchmarks, docs, configs and the README"
    found = [line for path in searched for line in vocabulary.search(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("term", sorted(vocabulary.EXAMPLES))
def test_the_search_for_the_vocabulary_finds_a_replaced_term(term: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"A line with {vocabulary.EXAMPLES[term]} in it.\n")
    assert [found for found in vocabulary.search(file) if term in found], vocabulary.EXAMPLES[term]


def test_the_search_for_the_vocabulary_passes_plain_english(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("It takes seconds to rank all items; math.floor rounds down. Users interact with seen items.\n")
    assert not list(vocabulary.search(file))


def test_no_file_and_no_function_is_long() -> None:
    long: list[str] = []
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            long.append(f"{name}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{name}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION_LINES}")
    assert not long, "\n".join(long)


def test_only_the_command_line_uses_rich() -> None:
    users = {
        path.relative_to(SOURCE).parts[0]
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "rich" for alias in node.names))
    }
    assert users <= {"cli"}


def test_paths_are_no_patterns() -> None:
    """To polars they are, without options that `schema.scan_parquet` sets."""
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files()
        for name in ("pl.scan_", "pl.read_parquet_schema", "pl.read_parquet(file", "pl.read_parquet(path")
        if name in path.read_text(encoding="utf-8") and path != SOURCE / "data" / "schema.py"
    ]
    assert not found


def test_only_models_look_at_the_class_of_a_model() -> None:
    """Other packages ask for declared capabilities (`msm4sr.models.capabilities`)."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for path in python_files()
        if path.relative_to(SOURCE).parts[0] != "models"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and dotted(node.func) == "isinstance"
        and "model" in dotted(node.args[0]).split(".")
    ]
    assert not found, "\n".join(found)
