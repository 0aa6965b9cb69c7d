"""Workers and nodes of a Ray cluster killed at random moments: the results are those of an undisturbed local run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from calling import Cli, metrics_of, small_log, write_folder
from clusters import two_nodes
from ray.cluster_utils import Cluster

from msm4sr.data.toyshop import generate_toyshop

pytestmark = pytest.mark.slow
KILLS = 10  # of each job; every third removes a node in place of killing a worker
SMALL = ("--set=model.dim=8", "--set=model.inner_dim=8", "--set=finetune.checkpoint_every=0")
LONG = (*SMALL, "--set=finetune.epochs=60", "--set=finetune.patience=60", "--set=finetune.max_steps=0")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "ring", small_log(users=60, length=12, items=60))


def workers() -> list[psutil.Process]:
    """The processes of the cluster that work for a command."""
    names = ("ray::_work", "ray::MapWorker", "ray::_Actor", "ray::RayTrainWorker")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(names):
            found.append(process)
    return found


class Killer:
    """Kills workers and removes nodes while commands run, `KILLS` times in all."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.random, self.kills = cluster, random.Random(0), 0

    def run(self, command: list[str | Path], again: tuple[str, ...] = ()) -> None:
        """Run the command, again (with these options) whenever it ends with lost work, until it is complete."""
        words = [sys.executable, "-m", "msm4sr", *map(str, command), "--ray", self.cluster.address]
        while True:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            while process.poll() is None and self.kills < KILLS:
                self.strike()
            printed = process.communicate()[0]
            if process.returncode == 0:
                return
            assert "rerun the command" in printed or "Rerun the command" in printed, printed
            assert "Traceback" not in printed
            words = [*dict.fromkeys([*words, *again])]

    def strike(self) -> None:
        """After a moment kill a worker, if there is one, or remove its node and add another."""
        time.sleep(self.random.uniform(0.2, 4))
        found = workers()
        if not found:
            return
        self.kills += 1
        if self.kills % 3 == 0:
            self.cluster.remove_node(self.cluster.list_all_nodes()[-1])
            self.cluster.add_node(num_cpus=1)
        else:
            victim = self.random.choice(found)
            if psutil.pid_exists(victim.pid):
                os.kill(victim.pid, signal.SIGKILL)


def test_a_comparison(cli: Cli, ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text("rows:\n  - {name: sasrec, model: sasrec}\n  - {name: sine, model: sine}\n")
    command = ["compare", tmp_path / "rows.yaml", "--data", ring, *LONG, "--seed=0", "--seed=1", "--seed=2", "--out"]
    killer = Killer(cluster)
    killer.run([*command, tmp_path / "there"])
    assert cli(*command, tmp_path / "here").code == 0
    cells = sorted((tmp_path / "here").glob("cells/*/*/*"))
    assert len(cells) == 6
    for cell in cells:
        assert metrics_of(tmp_path / "there" / cell.relative_to(tmp_path / "here")) == metrics_of(cell)
    assert killer.kills == KILLS


def test_a_training(cli: Cli, ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    command = [
        "run",
        ring,
        "--model=sasrec",
        *LONG,
        "--set=finetune.epochs=200",
        "--set=finetune.patience=200",
        "--devices=2",
        "--out",
    ]
    killer = Killer(cluster)
    killer.run([*command, tmp_path / "there"], again=("--resume",))
    here = subprocess.run([sys.executable, "-m", "msm4sr", *map(str, [*command, tmp_path / "here"])], check=True)
    assert here.returncode == 0
    assert metrics_of(tmp_path / "there") == metrics_of(tmp_path / "here")
    assert killer.kills == KILLS


def finished_trials(study: Path) -> dict[float, float]:
    """The value of each trial of a study that was trained in full, by its learning rate."""
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{study / 'study.db'}").get_trials()
    counted = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(counted) == 3
    complete = [trial for trial in counted if trial.state.name == "COMPLETE"]
    return {float(f"{trial.params['finetune.learning_rate']:.3g}"): trial.value for trial in complete}


def test_a_study(cli: Cli, ring: Path, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(
        "model: sasrec\nparameters:\n  finetune.learning_rate: {kind: float, low: 1.0e-4, high: 1.0e-1, log: true}\n"
    )
    command = ["tune", ring, "--model=sasrec", *LONG, "--set=finetune.epochs=300", "--set=finetune.patience=300"]
    command += ["--search", tmp_path / "search.yaml", "--trials=3", "--seconds=100000", "--out"]
    killer = Killer(cluster)
    killer.run([*command, tmp_path / "there"])
    assert cli(*command, tmp_path / "here").code == 0
    # The first three trials do not depend on each other, but which of them is pruned depends on when the others end.
    here, there = (finished_trials(tmp_path / name) for name in ("here", "there"))
    both = here.keys() & there.keys()
    assert both
    assert {rate: here[rate] for rate in both} == {rate: there[rate] for rate in both}
    best = yaml.safe_load((tmp_path / "there" / "best.yaml").read_text())["finetune"]["learning_rate"]
    assert there[best] == max(there.values())
    assert killer.kills == KILLS


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_extraction(cli: Cli, cluster: Cluster, tmp_path: Path) -> None:
    generate_toyshop(tmp_path / "shop", users=60, items=1200)
    command = ["extract", tmp_path / "shop", "--set=features.visual.kind=keywords", "--out"]
    killer = Killer(cluster)
    killer.run([*command, tmp_path / "there"])
    assert cli(*command, tmp_path / "here").code == 0
    assert files(tmp_path / "here" / "features") == files(tmp_path / "there" / "features")
    assert killer.kills == KILLS
