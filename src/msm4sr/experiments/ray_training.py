"""Training a run in several processes of a Ray cluster, by Ray Train.

Ray Train starts the processes, connects them as torchrun does, and starts all of them again when one is lost; they then
resume from the last checkpoint in the run folder.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msm4sr.errors import InputError, first_line
from msm4sr.executors import RETRIES, Bars, Reporter, reported_log
from msm4sr.experiments.loggers import LoggerCallback, make_logger
from msm4sr.experiments.machine import use_threads_of
from msm4sr.experiments.run import Run, open_run
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, train_stage
from msm4sr.files import remove
from msm4sr.nodes import NodeRequirements
from msm4sr.progress import Progress
from msm4sr.ray_executor import POLL, Post, RayExecutor, disk_errors_with_node, mailbox
from msm4sr.training.callbacks import Callback, TrainingProgress
from msm4sr.training.stages import STAGES

STATE = ".ray-train"  # Ray Train's own folder, in that of the run, while it trains


@dataclass(frozen=True)
class RayTraining:
    """What each process does: train all stages of a run, from their last checkpoints."""

    folder: Path
    data: Path
    device: tuple[str, ...]  # changes to its settings: a run may resume with another number of processes
    log: str | None
    post: Post
    requirements: NodeRequirements

    def __call__(self) -> None:
        from ray.train import get_context

        is_first = get_context().get_world_rank() == 0
        try:
            self.requirements.check()
            with disk_errors_with_node():
                self._train(is_first)
        except (InputError, FloatingPointError, OSError) as error:
            self.post(("error", (error,)))
            raise

    def _train(self, is_first: bool) -> None:
        run = open_run(self.folder, self.device, self.data)
        dataset = load_run_data(run)  # logged by the command already
        use_threads_of(run.checkpoints)
        model = build_model(run.settings, dataset, extract_stage(run, dataset))
        callbacks: list[Callback] = [TrainingProgress(Reporter(self.post))]
        if self.log is not None and is_first:
            callbacks.append(LoggerCallback(partial(make_logger, self.log, run.folder)))
        with reported_log(self.post, logging.INFO if is_first else logging.ERROR):
            for stage in STAGES:
                train_stage(run, stage, dataset, model, callbacks, resume=True)


def train_on_ray(run: Run, executor: RayExecutor, log: str | None, progress: Progress) -> None:
    """Train all stages of a run that has begun, in `device.devices` x `device.num_nodes` processes.

    Raises:
        InputError: the processes do not fit on the cluster; what a process raised.
        ChildProcessError: processes were lost again and again.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    resources, workers = executor.resources, run.settings.device.processes
    if workers > executor.capacity():
        raise InputError(
            f"--ray: {workers} processes of {resources} each, but only {executor.capacity()} fit on the cluster; "
            "change --devices, --cpus or --gpus, or add nodes"
        )
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    device = tuple(f"device.{name}={value}" for name, value in run.settings.device.model_dump().items())
    with _shown(progress) as (post, bars):
        work = RayTraining(run.folder.absolute(), run.data, device, log, post, executor.requirements)
        trainer = TorchTrainer(
            work.__call__,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name="state",
                storage_path=str((run.folder / STATE).absolute()),
                failure_config=FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            if bars().errors:
                raise bars().errors[0] from None
            raise ChildProcessError(
                f"the training was lost ({first_line(error)}); rerun the command with --resume"
            ) from None
        finally:
            remove(run.folder / STATE)
            bars().close_all()


@contextmanager
def _shown(progress: Progress) -> Iterator[tuple[Post, Callable[[], Bars]]]:
    """Where processes send their messages, which a thread shows, and a function that shows the latest."""
    ended, turn = threading.Event(), threading.Lock()
    with mailbox(progress) as (actor, show):

        def latest() -> Bars:
            with turn:
                return show()

        def follow() -> None:
            while not ended.wait(POLL):
                latest()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield Post(actor, "training"), latest
        finally:
            ended.set()
            thread.join()
