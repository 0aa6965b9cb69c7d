"""The training loop: epochs, validation, early stopping, checkpoints. Every stage of every model uses it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.models.item_table import Shard, item_tables
from msm4sr.models.located_items import to_device
from msm4sr.tensor_files import Blocks
from msm4sr.threads import count_of
from msm4sr.training.averaging import WeightAverage
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan
from msm4sr.training.checkpoint import Checkpoints, TrainingState, set_weights, weights_of
from msm4sr.training.compilation import compiling, limits_of
from msm4sr.training.device import Device, all_gather, gather_with, generator_states, set_generator_states, shares
from msm4sr.training.identity import stage_identity
from msm4sr.training.optimizer import Adam, clip_gradients, mark_coalesced
from msm4sr.training.saved_state import below, load_stored, stored_moments, stored_weights
from msm4sr.training.settings import StageSettings
from msm4sr.training.sharding import complete_tables, split_tables, unite_tables
from msm4sr.training.task import Task, TrainingBatch

logger = logging.getLogger(__name__)

REPORT_EVERY = 10  # steps between two reports of the loss: on a GPU each report waits for the device


@dataclass(frozen=True)
class TrainerOptions:
    """How a stage is trained, in addition to its settings.

    Attributes:
        seed: with the number of the epoch it seeds batches, dropout and the draws of the loss, so that an epoch is
            independent of earlier draws. The caller's random state is unchanged.
        device: for Lightning Fabric, which starts the other processes if there are several.
        evaluation: how validation ranks.
        checkpoints: a folder for the best weights and for the state to resume from; None: nothing is written.
        resume: continue from the last checkpoint, if there is one; weights and records are bit-identical to those of
            a training without interruption, unless the number of processes has changed.
        identity: what the result depends on besides stage settings, seed and data (such as the model's settings), as
            JSON; a checkpoint with another identity is refused.
    """

    seed: int = 0
    device: Device = Device()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: Path | None = None
    resume: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains the model of a task until validation no longer improves, and leaves the best weights in it.

        Trainer(task_for(model, "finetune", settings), settings.finetune).fit(dataset)

    Several processes divide the ID embeddings; afterwards the first one has the complete model.

    Args:
        task: the loss and the batches.
        settings: of the stage.
        options: seed, device, checkpoints.
        callbacks: observers, called in the first process.
    """

    fabric: Fabric
    state: TrainingState

    def __init__(
        self,
        task: Task,
        settings: StageSettings,
        options: TrainerOptions = TrainerOptions(),
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.task, self.model = task, task.model
        self.settings, self.options = settings, options
        self.callbacks = tuple(callbacks)

    def fit(self, dataset: Dataset) -> list[EpochRecord]:
        """Train on the training parts of the histories.

        Returns:
            One record per epoch.

        Raises:
            InputError: there is nothing to train on; a checkpoint cannot be written, or belongs to another training.
            FloatingPointError: the loss is not finite.
            KeyboardInterrupt: the model of a single process then has the best weights so far; before the first
                validation its initial ones, or with checkpoints the latest.
        """
        self._set_up(dataset)
        state, error = self.state, None
        try:
            self._call("on_start", self.plan)
            while state.epoch <= self.plan.epochs and not state.done:
                self._saved = time.perf_counter()
                self._began = self._saved - state.seconds
                with self._seeded():
                    self.task.train()
                    for step, batch in enumerate(self.batches(state.epoch), start=1):
                        if step <= state.step:
                            continue  # completed before the interruption
                        pairs = int(batch.mask.sum())  # on the CPU: on a GPU this would wait for the device
                        loss = self._step(batch)
                        self._loss_sum += loss * pairs
                        state.count_step(pairs)
                        if self._average is not None:
                            self._average.update(state.steps)
                        if step % REPORT_EVERY == 0:
                            self._report(loss)
                state.seconds = time.perf_counter() - self._began
                with self._selected_weights():
                    record = self._validate_epoch()
                    improved = self._select(record)
                state.rows.append(record.as_row())
                self._call("on_epoch_end", record, improved)
                state.done = state.epoch == self.plan.epochs or state.waited >= self.settings.patience
                state.next_epoch()
                self._loss_sum.zero_()
                self._save_last()
        except BaseException as raised:
            error = raised
            raise
        finally:
            if error is None or self.fabric.world_size == 1:  # other processes may have ended
                self._keep_best()
            self.model.eval()
            self._call("on_end", error)
        return [EpochRecord.from_row(row) for row in state.rows]

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """The batches of an epoch (from 1), the same every time and in every process."""
        rng = np.random.default_rng([self.options.seed, epoch])
        return self.task.batches(self._histories, self.settings, rng)

    def validate(self) -> dict[str, float]:
        """The validation metrics of the current weights."""
        return evaluate(self.task.scorer, self._dataset, "validation", self.options.evaluation)

    def _set_up(self, dataset: Dataset) -> None:
        """Start the processes, make the optimiser, and resume if asked to."""
        task, settings, options = self.task, self.settings, self.options
        self._dataset, self._histories = dataset, training_histories(dataset)
        steps_per_epoch = task.count_batches(self._histories, settings)
        epochs = settings.epochs_within(steps_per_epoch)
        self.fabric = fabric = options.device.connect()
        split = split_tables(task, Shard(fabric.global_rank, fabric.world_size))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, split)  # type: ignore[no-untyped-call]
        task.to(fabric.device)
        trained = [p for p in task.parameters() if p.requires_grad]
        task.limits = limits_of(task, settings) if options.device.compile else None
        for table in item_tables(task).values():
            table.sparse = table in task.sparse_tables and task.limits is None
        self._optimizer = Adam(trained, settings.learning_rate, settings.weight_decay)
        self._rate = schedule_factor(settings.schedule, epochs * steps_per_epoch)
        task.gather = gather_with(fabric)
        self._forward, self._wrapped_optimizer = fabric.setup(task, self._optimizer)
        if task.limits is not None:
            task.compile(dynamic=False)
        self._generator = torch.Generator()
        self._loss_sum = torch.zeros((), device=fabric.device)  # over the pairs of the epoch
        self._generator_states: dict[str, Tensor] = {}  # when a training resumes inside an epoch
        self.state = TrainingState(processes=fabric.world_size)
        self._average = WeightAverage(task, steps_per_epoch) if settings.averaging else None
        self._checkpoints: Checkpoints | None = None
        if options.checkpoints is None:
            self._best_weights = weights_of(self.model)
        else:
            self._checkpoints = Checkpoints(
                options.checkpoints, settings.stage, self._identity(), writes=fabric.is_global_zero
            )
            if options.resume:
                self._resume(self._checkpoints)
        self.plan = TrainingPlan(settings.stage, epochs, steps_per_epoch, self.state.steps)

    def _identity(self) -> dict[str, Any]:
        """What the weights depend on."""
        evaluation, precision = self.options.evaluation.model_dump(), self.options.device.precision
        return {
            **stage_identity(self.model, self._dataset, self.settings, self.options.seed),
            **flatten({"evaluation": evaluation, "device": {"precision": precision}}),
            **({"device.compile": True} if self.task.limits else {}),
            **self.options.identity,
            "device": self.fabric.device.type,
        }

    def _resume(self, checkpoints: Checkpoints) -> None:
        """Continue from the last checkpoint, if there is one."""
        found = checkpoints.load_last()
        if found is None:
            return
        tensors, self.state = found
        load_stored(self.task, self._optimizer, tensors)
        if self._average is not None:
            with self._average.in_use():
                set_weights(self.task, below("average", tensors))
        processes, sums = self.fabric.world_size, tensors["loss_sum"].reshape(-1)  # of each process
        self._loss_sum.copy_(sums[self.fabric.global_rank] if len(sums) == processes else sums.mean())
        self._generator_states = below("generators", tensors)
        if self.state.processes != processes:
            logger.info(
                "%s: resuming with %s instead of %d; results are not bit-identical to a training without this change",
                self.settings.stage,
                count_of(processes, "process", "processes"),
                self.state.processes,
            )
            self.state.processes = processes

    def _save_last(self) -> None:
        """Write the state to resume from. Every process must call it."""
        if self._checkpoints is None:
            return
        tensors: dict[str, Tensor | Blocks] = {"loss_sum": all_gather(self.fabric, self._loss_sum)}
        tensors |= {f"weights/{name}": weight for name, weight in stored_weights(self.task).items()}
        moments = stored_moments(self.task, self._optimizer)
        if self._average is not None:
            with self._average.in_use():
                tensors |= {f"average/{name}": weight for name, weight in stored_weights(self.task).items()}
        tensors |= {f"optimizer/{name}": moment for name, moment in moments.items()}
        if self.state.step:  # between two epochs no generator state is needed: each epoch seeds the generators
            states = generator_states(self.fabric, self._generator)
            tensors |= {f"generators/{name}": state for name, state in states.items()}
        self.state.threads = torch.get_num_threads()
        self._checkpoints.save_last(tensors, self.state)

    def _selected_weights(self) -> AbstractContextManager[None]:
        """During the block the model has the weights that are validated and kept."""
        return nullcontext() if self._average is None else self._average.in_use()

    def _keep_best(self) -> None:
        """Leave the best weights in the model. If they are on disk, the latest ones remain until there are any."""
        if self._checkpoints is None:
            set_weights(self.model, self._best_weights)
        elif self.state.best_epoch:
            set_weights(self.model, self._checkpoints.load_best(self.state.best_epoch))
        unite_tables(self.model)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed all generators for the current epoch, or restore them inside it; the caller's state is kept."""
        seed, epoch, rank = self.options.seed, self.state.epoch, self.fabric.global_rank
        device = self.fabric.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Steps have been done only if a training resumes. Its states then replace these, if they are of as many
            # processes.
            torch.manual_seed(epoch_seed(seed, epoch, rank, self.state.step))
            self._generator.manual_seed(epoch_seed(seed, epoch) + 1)
            if self._generator_states:
                set_generator_states(self.fabric, self._generator, self._generator_states)
                self._generator_states = {}
            yield

    def _step(self, batch: TrainingBatch) -> Tensor:
        """One step of the optimiser; the loss of this process."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(self.state.steps)
        with compiling() if self.task.limits else nullcontext():
            loss = shared_loss(self.fabric, self._forward, self.task, batch, self._generator)
            self._wrapped_optimizer.zero_grad()
            self.fabric.backward(loss)
        tables = self.task.sparse_tables
        mark_coalesced(tables)
        split = [table.weight for table in tables if table.shard.count > 1]
        clip_gradients(self.task.parameters(), self.settings.max_gradient_norm, split)
        self._wrapped_optimizer.step()
        return loss.detach()

    def _report(self, loss: Tensor) -> None:
        """Report the latest steps, and write a checkpoint if it is time."""
        state, now = self.state, time.perf_counter()
        state.seconds = now - self._began
        due = self.fabric.is_global_zero and now - self._saved >= self.settings.checkpoint_every
        mean, due = self._mean(loss, due)
        speed = state.pairs / state.seconds
        self._call("on_step", StepRecord(self.plan.stage, state.epoch, state.steps, self._finite(mean), speed))
        if due:
            self._save_last()
            self._saved = time.perf_counter()

    def _validate_epoch(self) -> EpochRecord:
        """The record of the current epoch, with validation metrics if it is time."""
        state, epoch = self.state, self.state.epoch
        if state.pairs == 0:
            raise InputError(f"{self.plan.stage}: {self.task.no_pairs}")
        self.task.eval()
        loss = self._finite(self._mean(self._loss_sum)[0] / state.pairs)
        validation: dict[str, float] = {}
        if epoch % self.settings.validate_every == 0 or epoch == self.plan.epochs:
            with complete_tables(self.task):
                validation = self.fabric.broadcast(self.validate() if self.fabric.is_global_zero else {})
        seconds, speed = round(state.seconds, 3), round(state.pairs / state.seconds, 1)
        return EpochRecord(self.plan.stage, epoch, loss, seconds, speed, validation)

    def _select(self, record: EpochRecord) -> bool:
        """Keep the weights if validation has improved; count the validations since. True: it has."""
        if not record.validation:
            return False
        state, value = self.state, record.validation[self.settings.select]
        if state.best is not None and value <= state.best:
            state.waited += 1
            return False
        if self._checkpoints is None:
            self._best_weights = weights_of(self.model)
        else:
            self._checkpoints.save_best(stored_weights(self.model), record.epoch)
        self._call("on_best", record)
        state.best, state.best_epoch, state.waited = value, record.epoch, 0
        return True

    def _call(self, hook: Literal["on_start", "on_step", "on_best", "on_epoch_end", "on_end"], *given: Any) -> None:
        """Call a hook of every callback, in the first process."""
        if self.fabric.is_global_zero:
            for callback in self.callbacks:
                getattr(callback, hook)(*given)

    def _mean(self, value: Tensor, flag: bool = False) -> tuple[Tensor, bool]:
        """The mean of a number over the processes, and whether any of them raised its flag."""
        if self.fabric.world_size == 1:
            return value, flag
        both = torch.stack([value, torch.tensor(float(flag), device=value.device)])
        mean = self.fabric.all_reduce(both, reduce_op="mean")
        return mean[0], bool(mean[1] > 0)

    def _finite(self, loss: Tensor) -> float:
        """The loss as a number. FloatingPointError when it is not finite."""
        stage, value = self.plan.stage, float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{stage}: the loss became {value} in epoch {self.state.epoch}, step {self.state.step}; try a lower "
                f"{stage}.learning_rate"
            )
        return value


def shared_loss(
    fabric: Fabric, forward: Callable[[Any], Tensor], task: Task, batch: TrainingBatch, generator: torch.Generator
) -> Tensor:
    """This process's share of the loss of a batch; the mean of the shares over processes is the loss of all rows.

    The same holds for the gradients, which DDP averages. `forward` is the task as Fabric has wrapped it.
    """
    parts = shares(batch, fabric.world_size)
    alone = len(parts) == 1  # with fewer rows than processes, each process computes all of them
    rank = 0 if alone else fabric.global_rank
    loss = forward(to_device(task.prepare(parts, rank, generator), fabric.device))
    return loss if alone else loss * (task.count_terms(parts[rank]) * len(parts) / task.count_terms(batch))


def epoch_seed(seed: int, epoch: int, process: int = 0, step: int = 0) -> int:
    """The seed of an epoch in a process; after some of its steps, if another number of processes continues it."""
    return ((seed * 1_000_003 + epoch) * 2 + process * 2**40 + step * 2**50) % 2**62


def schedule_factor(name: Literal["constant", "cosine"], total: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step, from 0, of `total`.

    A short training warms up for longer: after 15 of 300 steps, SASRec of two layers would stay at popularity.
    """
    warmup = max(1, total // 20, min(100, total // 4))

    def cosine(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return cosine if name == "cosine" else lambda step: 1.0
