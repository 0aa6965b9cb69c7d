"""The wheel, alone in an empty environment: it has every file, declares its needs, and runs the README's commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from msm4sr.data.toyshop import generate_toyshop

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FEWER_EPOCHS = ("--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make dist` builds it: from the source archive."""
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (out / f"msm4sr-{PROJECT['version']}.tar.gz").is_file()
    return out / f"msm4sr-{PROJECT['version']}-py3-none-any.whl"


def test_the_wheel_has_the_files_of_the_package_and_nothing_else(wheel: Path) -> None:
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "src"]
    ours = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert names == {name.removeprefix("src/") for name in ours if (ROOT / name).exists()}
    assert "msm4sr/py.typed" in names


def test_the_metadata_is_that_of_the_project(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("msm4sr", PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    versions = [one for one in metadata.get_all("Classifier", []) if re.search(r":: 3\.\d+$", one)]
    assert [one.rpartition(" ")[2] for one in versions] == ["3.11", "3.12", "3.13"]
    assert metadata["Description-Content-Type"] == "text/markdown"


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`msm4sr` in an empty environment with the wheel, at the versions of constraints.txt."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(ROOT / "constraints.txt"),
        str(wheel),
    ]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr[-2000:]
    return folder / "bin" / "msm4sr"


def readme_commands() -> list[list[str]]:
    """The commands of the first block of the README that prepares data."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    block = next(block for block in blocks if "msm4sr prepare csv" in block)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("msm4sr ")]


def raw_shop(folder: Path, commands: list[list[str]]) -> None:
    """log.csv, items.csv and photos/ of a toy shop, with the columns and the ids that the commands name."""
    prepare = next(words for words in commands if "prepare" in words)
    columns = {word: value for word, value in pairwise(prepare) if word.startswith("--")}
    user, item, time = (columns.get(f"--{name}", name) for name in ("user", "item", "time"))
    generate_toyshop(folder / "toyshop", users=60, items=60)
    log = pl.read_parquet(folder / "toyshop" / "interactions.parquet")
    items = pl.read_parquet(folder / "toyshop" / "items.parquet")
    wanted = [word for words in commands if "recommend" in words for word in _after(words, "--history")]
    names = dict(zip(items["item_id"], [*wanted, *items["item_id"][len(wanted) :]], strict=True))
    users = {log["user_id"][0]: _first(commands, "--user")}
    (folder / "photos").mkdir()
    for item_id, image in items.select("item_id", "image").drop_nulls().iter_rows():
        shutil.copy(folder / "toyshop" / image, folder / "photos" / f"{names[item_id]}{Path(image).suffix}")
    ids = {user: pl.col("user_id").replace(users), item: pl.col("item_id").replace(names)}
    log.select(**ids, **{time: "timestamp"}).write_csv(folder / "log.csv")
    items.select(ids[item], "title", "text").write_csv(folder / "items.csv")


def _after(words: list[str], option: str) -> list[str]:
    """The words between an option and the next one."""
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    return rest[: next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))]


def _first(commands: list[list[str]], option: str) -> str:
    given = [word for words in commands if "recommend" in words for word in _after(words, option)]
    return given[0] if given else "customer-1"


def test_the_commands_of_the_readme_run_with_the_wheel_alone(program: Path, tmp_path: Path) -> None:
    commands = readme_commands()
    assert {"prepare", "run", "recommend"} <= {words[1] for words in commands}
    raw_shop(tmp_path, commands)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}  # nothing of this project
    for words in commands:
        words = [str(program), *words[1:], *(FEWER_EPOCHS if words[1] == "run" else ())]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    python = [str(program.with_name("python")), "-c", "import msm4sr; print(msm4sr.__version__, msm4sr.__file__)"]
    printed = subprocess.run(python, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    version, file = printed.split()
    assert version == PROJECT["version"]
    assert Path(file).is_relative_to(program.parents[1])
