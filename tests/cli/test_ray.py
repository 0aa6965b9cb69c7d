"""Commands on a real Ray cluster of two nodes: the results of one machine, or one line that says what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from calling import Cli, metrics_of, small_log, write_folder
from ray.cluster_utils import Cluster

import msm4sr

QUICK = ("--set=finetune.epochs=3", "--set=model.dim=8", "--set=model.inner_dim=8", "--set=finetune.checkpoint_every=0")
ROWS = """
rows:
  - {name: popularity, model: popularity}
  - {name: sasrec, model: sasrec}
"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IDs alone."""
    return write_folder(tmp_path_factory.mktemp("data") / "ring", small_log(users=20, length=8, items=60))


@pytest.fixture
def compare(ring: Path, tmp_path: Path) -> Callable[..., list[str | Path]]:
    """A comparison of two rows with two seeds, into the grid of that name."""
    (tmp_path / "two.yaml").write_text(ROWS)
    options = [*QUICK, "--seed=0", "--seed=1"]
    return lambda name, *more: [
        "compare",
        tmp_path / "two.yaml",
        "--data",
        ring,
        "--out",
        tmp_path / name,
        *options,
        *more,
    ]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: no cluster answers (Connection refused"),
        ("nowhere.invalid:6379", "--ray nowhere.invalid:6379: no cluster answers ("),
        ("ray://127.0.0.1:10001", "give HOST:PORT of the head"),
        ("head", "--ray head: give HOST:PORT, auto, or local"),
    ],
)
def test_a_cluster_that_does_not_answer(
    refused: Callable[..., str], compare: Callable[..., list[str]], address: str, answer: str
) -> None:
    assert answer in " ".join(refused(*compare("grid", "--ray", address)).replace("[Errno 111] ", "").split())


def test_more_cpus_and_gpus_than_a_node_has(
    refused: Callable[..., str], compare: Callable[..., list[str]], cluster: Cluster
) -> None:
    answer = refused(*compare("grid", "--ray", cluster.address, "--cpus=64", "--gpus=1"))
    assert "a task needs 64 CPUs and 1 GPU, but no node has so many: of 2 nodes the largest has 1 CPU" in answer
    assert "change --cpus and --gpus, or add a node" in answer


def test_a_node_with_another_version(
    refused: Callable[..., str], compare: Callable[..., list[str]], cluster: Cluster, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(Path(msm4sr.__file__).parent, other / "msm4sr", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "msm4sr" / "errors.py").open("a") as file:
        file.write("# of another version\n")
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other)})
    try:
        answer = refused(*compare("grid", "--ray", cluster.address))
    finally:
        cluster.remove_node(node)
    assert f"has another version of msm4sr, in {other / 'msm4sr'}; install the same version on all nodes" in answer


@pytest.mark.slow
def test_a_path_that_a_node_does_not_see(
    refused: Callable[..., str], compare: Callable[..., list[str]], cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "grid").mkdir()
    with node_with_own(tmp_path / "grid", cluster):
        answer = refused(*compare("grid", "--ray", cluster.address))
    assert f"does not see {tmp_path}/grid/.ray-" in answer
    assert "put data and output on a file system that all nodes mount under the same path" in answer


@contextmanager
def node_with_own(folder: Path, cluster: Cluster, size: str = "64m") -> Iterator[None]:
    """A third node, which sees a disk of its own as this folder."""
    ray = Path(sys.executable).with_name("ray")
    start = f"exec {ray} start --address {cluster.address} --num-cpus 1 --block"
    hidden = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o size={size} none {folder} && {start}"]
    node = subprocess.Popen(hidden, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while len(alive(cluster)) < 3:
            assert node.poll() is None, node.communicate()[0]
            time.sleep(0.2)
        yield
    finally:
        node.terminate()
        node.wait()
        while len(alive(cluster)) > 2:
            time.sleep(0.2)


def alive(cluster: Cluster) -> list[object]:
    return [node for node in cluster.global_state.node_table() if node["Alive"]]


def test_an_object_store(refused: Callable[..., str], compare: Callable[..., list[str]], ring: Path) -> None:
    for command in (
        [*compare("grid")[:4], "--out", "s3://bucket/grid"],
        ["run", "gs://bucket/shop", "--out", "run"],
        ["extract", ring, "--out", "s3://bucket/run"],
        ["tune", ring, "--out", "s3://bucket/study", "--model", "itemknn"],
    ):
        assert "object stores are not supported; give a folder" in refused(*command)


# -- the results of one machine ---------------------------------------------------------------------------------------


def test_a_grid_has_the_results_of_this_machine(
    cli: Cli, compare: Callable[..., list[str | Path]], cluster: Cluster, tmp_path: Path
) -> None:
    assert cli(*compare("here")).code == 0
    called = cli(*compare("there", "--ray", cluster.address))
    assert called.code == 0, called
    for cell in sorted((tmp_path / "here").glob("cells/*/*/*")):
        assert metrics_of(tmp_path / "there" / cell.relative_to(tmp_path / "here")) == metrics_of(cell)
    assert not list((tmp_path / "there").glob(".ray-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "answer"),
    [
        pytest.param("16k", "No space left on device (on node", id="full"),
        pytest.param("64m", "of 8 cells were lost, as said above; rerun the command to continue", id="of its own"),
    ],
)
def test_a_grid_of_which_a_node_cannot_write_into_the_folder(
    cli: Cli, compare: Callable[..., list[str | Path]], cluster: Cluster, tmp_path: Path, size: str, answer: str
) -> None:
    more, cells = ("--seed=2", "--seed=3"), tmp_path / "there" / "cells"
    there = compare("there", "--ray", cluster.address)
    assert cli(*there).code == 0
    with node_with_own(cells, cluster, size):
        called = cli(*there, *more)
    assert called.code == 1
    assert answer in called.err
    assert "Traceback" not in called.err
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*/*/*/metrics.json")}
    assert cli(*there, *more).code == 0
    assert cli(*compare("here", *more)).code == 0
    complete = sorted((tmp_path / "here").glob("cells/*/*/*"))
    assert len(complete) == 8
    for cell in complete:
        assert metrics_of(tmp_path / "there" / cell.relative_to(tmp_path / "here")) == metrics_of(cell)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_run_in_two_processes_has_the_results_of_one(cli: Cli, ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    command = ("run", ring, "--model=sasrec", *QUICK, "--set=model.dropout=0", "--out")
    assert cli(*command, tmp_path / "here").code == 0
    called = cli(*command, tmp_path / "there", "--ray", cluster.address, "--devices=2")
    assert called.code == 0, called
    assert "finetune 3/3 loss" in called.out
    here, there = (metrics_of(tmp_path / name) for name in ("here", "there"))
    assert there["validation"] == pytest.approx(here["validation"])
    assert {file.name for file in (tmp_path / "there").iterdir()} == {
        file.name for file in (tmp_path / "here").iterdir()
    }


def test_more_processes_than_fit(refused: Callable[..., str], ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    command = ("run", ring, "--model=sasrec", *QUICK, "--out", tmp_path / "run", "--ray", cluster.address)
    assert "3 processes of 1 CPU each, but only 2 fit on the cluster" in refused(*command, "--devices=3")


@pytest.mark.slow
def test_a_study_has_the_trials_of_this_machine(cli: Cli, ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    command = ("tune", ring, "--model=itemknn", "--trials=3", "--out")
    assert cli(*command, tmp_path / "here").code == 0
    for storage in ("sqlite", "journal"):
        called = cli(*command, tmp_path / storage, "--ray", cluster.address, "--storage", storage)
        assert called.code == 0, called
        here, there = (yaml.safe_load((tmp_path / name / "best.yaml").read_text()) for name in ("here", storage))
        assert here == there


def test_a_study_in_sqlite_on_several_machines(
    refused: Callable[..., str], ring: Path, cluster: Cluster, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    try:
        answer = refused("tune", ring, "--model=itemknn", "--out", tmp_path / "study", "--ray", cluster.address)
    finally:
        cluster.remove_node(node)
    assert "--storage sqlite: safe on one machine only, but the cluster has 2; give --storage journal" in answer


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_features_are_those_of_this_machine_byte_for_byte(
    cli: Cli, toyshop: Path, cluster: Cluster, tmp_path: Path
) -> None:
    command = ("extract", toyshop, "--set=features.visual.kind=keywords", "--out")
    assert cli(*command, tmp_path / "here").code == 0
    called = cli(*command, tmp_path / "there", "--ray", cluster.address)
    assert called.code == 0, called
    assert files(tmp_path / "here" / "features") == files(tmp_path / "there" / "features")
