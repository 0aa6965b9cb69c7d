"""The training loop: epochs, validation, early stopping, checkpoints. All stages go through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.transformer import CausalTransformer
from msm4sr.training.checkpoint import check_same, read_about, read_weights, save_weights, set_weights, weights_of
from msm4sr.training.device import (
    Device,
    alone,
    gather_with,
    generator_states,
    set_generator_states,
    share,
)

REPORT_EVERY = 10  # steps between two looks at the loss: on a GPU each look waits for the device


class TrainingBatch(Protocol):
    """A batch: a dataclass of tensors with a row a history (or a pair)."""

    @property
    def mask(self) -> Tensor:
        """Bool, True where there is a pair of the loss; the loss is a mean over them."""

    def to(self, device: torch.device) -> Self: ...


class StageSettings(BaseModel):
    """What both stages of training share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(200, ge=0, description="at most; 0 leaves the stage out")
    max_steps: int = Field(0, ge=0, description="at most so many steps, in whole epochs (at least one); 0: no bound")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="cosine: warm up over 5 % of all steps, at least 100 (but no more than a quarter), then fall to 0",
    )
    batch_pairs: int = Field(1024, ge=1, description="pairs (prefix, next item) in a batch")
    pairs: Literal["all", "last"] = Field(
        "all", description="all prefixes of a window in one pass, or one prefix a row"
    )
    max_gradient_norm: float = Field(5.0, gt=0, description="longer gradients are scaled down to this norm")
    patience: int = Field(20, ge=1, description="stop after so many validations without a better one")
    validate_every: int = Field(1, ge=1, description="epochs between two validations; the last epoch always has one")
    select: str = Field(
        "recall@20",
        pattern=r"^((recall|ndcg)@(5|10|20|50)|mrr)$",
        description="the validation metric that chooses",
    )
    checkpoint_every: float = Field(
        60.0, ge=0, description="seconds between two checkpoints inside an epoch (its end has one anyway)"
    )


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    pairs_per_second: float
    validation: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        row = asdict(self)
        validation: dict[str, float] = row.pop("validation")
        return row | validation

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        own = ("stage", "epoch", "loss", "seconds", "pairs_per_second")
        validation = {key: value for key, value in row.items() if key not in own}
        return cls(**{key: row[key] for key in own}, validation=validation)


class Monitor(Protocol):
    """Who is told of the progress; the default tells nobody."""

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        """So many epochs of about so many steps begin; `done` steps in all were taken before an interruption."""

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        """So many more steps were taken; the loss and the speed of the last ones."""

    def epoch(self, record: EpochRecord, best: bool) -> None:
        """An epoch has ended, and validated better than all before it or not."""

    def finish(self, stage: str) -> None:
        """The stage has ended, for whatever reason."""


class Silent:
    """A monitor that says nothing."""

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None: ...
    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None: ...
    def epoch(self, record: EpochRecord, best: bool) -> None: ...
    def finish(self, stage: str) -> None: ...


@dataclass
class Place:
    """How far a training has come: what goes on from step to step beside weights, optimiser and generators.

    Attributes:
        epoch: under way.
        step: steps of it that were taken.
        steps: steps of all epochs.
        pairs: of the epoch so far.
        seconds: of the epoch so far, validation apart.
        best: the best validation value, None before the first.
        best_epoch: the one that had it.
        waited: validations since.
        done: there is nothing left to do.
        rows: what `EpochRecord.as_row` gave, of the epochs that have ended.
    """

    epoch: int = 1
    step: int = 0
    steps: int = 0
    pairs: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0
    done: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)


def best_file(checkpoints: Path, stage: str) -> Path:
    """Where the weights of a stage's best validated epoch are kept."""
    return checkpoints / f"{stage}.safetensors"


def last_file(checkpoints: Path, stage: str) -> Path:
    """Where all is kept that an interrupted stage goes on from."""
    return checkpoints / f"{stage}.last.safetensors"


def read_place(checkpoints: Path, stage: str) -> Place | None:
    """How far a stage had come by its last checkpoint; None where there is none."""
    file = last_file(checkpoints, stage)
    return Place(**read_about(file)["place"]) if file.exists() else None


def fit(
    task: nn.Module,
    model: nn.Module,
    *,
    stage: str,
    settings: StageSettings,
    batches: Callable[[int], Iterator[TrainingBatch]],
    steps_per_epoch: int,
    validate: Callable[[], dict[str, float]],
    seed: int,
    device: Device = Device(),
    monitor: Monitor = Silent(),
    on_best: Callable[[dict[str, Tensor], EpochRecord], object] = lambda weights, record: None,
    checkpoints: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> list[EpochRecord]:
    """Train `model` until it no longer improves on validation, and leave the best weights in it.

    Args:
        task: holds `model`; `task(batch, generator)` is the loss of a batch, a mean over its pairs.
        model: what is trained.
        stage: its name, for records, messages and the names of checkpoints.
        settings: of the stage.
        batches: the batches of an epoch (numbered from 1), the same every time. With several processes each is
            given its rows of every batch.
        steps_per_epoch: about how many those are, for the schedule and the progress bar.
        validate: the validation metrics of the model as it is; the first process calls it.
        seed: with the epoch's number it seeds dropout and the generator that the task is given, so that an epoch
            draws the same whatever came before it. The caller's random state is left as it was.
        device: for Lightning Fabric, which starts the other processes where it names several.
        monitor: is told of steps and epochs, in the first process.
        on_best: is given the weights whenever validation has improved, in the first process.
        checkpoints: a folder for `STAGE.safetensors`, the best weights, and `STAGE.last.safetensors`, from which an
            interrupted stage goes on. None: nothing is written.
        resume: go on from the last checkpoint, to the same weights and records as without the interruption. Where
            there is none, the stage starts.
        identity: what the result depends on, as JSON; a checkpoint of anything else is refused.

    Returns:
        A record an epoch.

    Raises:
        InputError: nothing to train on; a checkpoint that cannot be written, or to go on from that is of another
            training.
        FloatingPointError: the loss is no longer a number.
        KeyboardInterrupt: passed on, with the best weights so far in the model.
    """
    epochs = settings.epochs
    if settings.max_steps:
        epochs = min(epochs, max(1, settings.max_steps // steps_per_epoch))
    fabric = device.connect()
    first = fabric.is_global_zero
    identity = {**(identity or {}), "device": fabric.device.type, "processes": fabric.world_size}
    if not first:
        monitor, on_best = Silent(), lambda weights, record: None
    task.to(fabric.device)
    if device.compile:
        _compile_transformers(task)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    rate = _schedule(settings.schedule, epochs * steps_per_epoch)
    forward, wrapped = fabric.setup(task, optimizer)
    generator = torch.Generator(fabric.device)
    total = torch.zeros((), device=fabric.device)  # of the losses of the epoch's pairs
    place, best_weights = Place(), weights_of(model)
    states: dict[str, Tensor] = {}  # of the generators, where a training goes on inside an epoch
    if resume and checkpoints is not None and last_file(checkpoints, stage).exists():
        place, states = _go_on(last_file(checkpoints, stage), identity, task, optimizer, total)
        if place.best_epoch:
            best_weights = _best_weights(best_file(checkpoints, stage), identity, place.best_epoch)

    def save() -> None:
        """The last checkpoint, of all processes."""
        if checkpoints is None:
            return
        states = generator_states(fabric, generator) if place.step else {}  # each epoch seeds them anew
        if first:
            about = {"identity": identity, "place": asdict(place)}
            save_weights(_state(task, optimizer, total, states), last_file(checkpoints, stage), about)

    monitor.start(stage, epochs, steps_per_epoch, place.steps)
    try:
        while place.epoch <= epochs and not place.done:
            epoch = place.epoch
            saved = time.perf_counter()
            began = saved - place.seconds
            with torch.random.fork_rng(devices=[] if fabric.device.type == "cpu" else None):
                torch.manual_seed(_epoch_seed(seed, epoch, fabric.global_rank))
                generator.manual_seed(_epoch_seed(seed, epoch, fabric.global_rank) + 1)
                if states:
                    set_generator_states(fabric, generator, states)
                    states = {}
                task.train()
                for step, batch in enumerate(batches(epoch), start=1):
                    if step <= place.step:
                        continue  # taken before the interruption
                    pairs = int(batch.mask.sum())  # before it moves: a GPU would have to be waited for
                    for group in optimizer.param_groups:
                        group["lr"] = settings.learning_rate * rate(place.steps)
                    loss = shared_loss(fabric, forward, task, batch, generator)
                    _descend(fabric, forward, wrapped, loss, settings.max_gradient_norm)
                    total += loss.detach() * pairs
                    place.step, place.steps, place.pairs = step, place.steps + 1, place.pairs + pairs
                    if step % REPORT_EVERY == 0:
                        now = time.perf_counter()
                        place.seconds = now - began
                        value, due = _mean(fabric, loss.detach(), first and now - saved >= settings.checkpoint_every)
                        speed = place.pairs / place.seconds
                        monitor.step(stage, epoch, _finite(value, stage, epoch, step), REPORT_EVERY, speed)
                        if due:
                            save()
                            saved = time.perf_counter()
            place.seconds = time.perf_counter() - began
            if place.pairs == 0:
                raise InputError(f"{stage}: no user has two training items: there is no pair to train on")
            validates = epoch % settings.validate_every == 0 or epoch == epochs
            task.eval()
            record = EpochRecord(
                stage,
                epoch,
                _finite(_mean(fabric, total)[0] / place.pairs, stage, epoch, place.step),
                round(place.seconds, 3),
                round(place.pairs / place.seconds, 1),
                fabric.broadcast(validate() if first else {}) if validates else {},
            )
            improved = validates and (place.best is None or record.validation[settings.select] > place.best)
            if improved:
                best_weights = weights_of(model)
                place.best, place.best_epoch, place.waited = record.validation[settings.select], epoch, 0
                on_best(best_weights, record)
                if first and checkpoints is not None:
                    about = {"identity": identity, "epoch": epoch}
                    save_weights(best_weights, best_file(checkpoints, stage), about)
            elif validates:
                place.waited += 1
            place.rows.append(record.as_row())
            monitor.epoch(record, improved)
            place.epoch, place.step, place.pairs, place.seconds = epoch + 1, 0, 0, 0.0
            place.done = epoch == epochs or place.waited >= settings.patience
            total.zero_()
            save()
    finally:
        set_weights(model, best_weights)
        model.eval()
        monitor.finish(stage)
    return [EpochRecord.from_row(row) for row in place.rows]


def _compile_transformers(task: nn.Module) -> None:
    """Have torch.compile make the Transformers of a task, for batches of any size. InputError where there is none."""
    transformers = [module for module in task.modules() if isinstance(module, CausalTransformer)]
    if not transformers:
        raise InputError("device.compile: this model has no Transformer to compile; leave it off")
    for transformer in transformers:
        transformer.compile(dynamic=True)


def shared_loss(
    fabric: Fabric,
    forward: Callable[[Any, torch.Generator], Tensor],
    task: nn.Module,
    batch: TrainingBatch,
    generator: torch.Generator,
) -> Tensor:
    """This process's part of the loss of a batch: the mean of the parts over the processes is the mean over all pairs.

    The same holds for the gradients, whose mean ddp takes. `forward` is the task as Fabric has wrapped it.
    """
    mine = share(batch, fabric.global_rank, fabric.world_size)
    if mine is None:  # fewer rows than processes: each takes them all
        task.gather = alone  # type: ignore[assignment]
        return forward(batch.to(fabric.device), generator)
    task.gather = gather_with(fabric)  # type: ignore[assignment]
    loss = forward(mine.to(fabric.device), generator)
    if fabric.world_size == 1:
        return loss
    return loss * (int(mine.mask.sum()) * fabric.world_size / int(batch.mask.sum()))


def _descend(
    fabric: Fabric, forward: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_gradient_norm: float
) -> None:
    """One step down the gradient of `loss`."""
    optimizer.zero_grad()
    fabric.backward(loss)
    fabric.clip_gradients(
        forward,
        optimizer,
        max_norm=max_gradient_norm,
        error_if_nonfinite=False,  # it would wait for the device; the look at the loss tells better
    )
    optimizer.step()


# -- the last checkpoint ---------------------------------------------------------------------------------------------


def _state(
    task: nn.Module, optimizer: torch.optim.Optimizer, total: Tensor, states: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors from which a training goes on."""
    tensors = {f"weights/{name}": weight for name, weight in weights_of(task).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": moment.detach().cpu().clone() for name, moment in moments.items()}
    tensors |= {f"generators/{name}": state for name, state in states.items()}
    return tensors | {"total": total.detach().cpu().clone()}


def _go_on(
    file: Path, identity: Mapping[str, Any], task: nn.Module, optimizer: torch.optim.Optimizer, total: Tensor
) -> tuple[Place, dict[str, Tensor]]:
    """Put a last checkpoint into weights, optimiser and `total`; the place, and the generators' states."""
    about = read_about(file)
    _check_identity(file, about, identity)
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "generators": {}}
    for name, tensor in read_weights(file).items():
        part, _, rest = name.partition("/")
        if part == "total":
            total.copy_(tensor)
        else:
            parts[part][rest] = tensor
    set_weights(task, parts["weights"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, kind = name.partition("/")
        moments.setdefault(int(number), {})[kind] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return Place(**about["place"]), parts["generators"]


def _best_weights(file: Path, identity: Mapping[str, Any], epoch: int) -> dict[str, Tensor]:
    """The best weights of a training that goes on; of its `epoch`, or of the one that was under way."""
    about = read_about(file)
    _check_identity(file, about, identity)
    if about["epoch"] < epoch:
        raise InputError(f"{file}: it is of epoch {about['epoch']}, not {epoch}; run the stage again from its start")
    return read_weights(file)


def _check_identity(file: Path, about: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    try:
        check_same(about.get("identity", {}), identity)
    except InputError as error:
        raise InputError(f"{file}: {error}; without --resume the stage starts anew") from None


def _mean(fabric: Fabric, value: Tensor, flag: bool = False) -> tuple[Tensor, bool]:
    """The mean of a number over the processes, and whether any of them raised its flag."""
    if fabric.world_size == 1:
        return value, flag
    both = torch.stack([value, torch.tensor(float(flag), device=value.device)])
    mean = fabric.all_reduce(both, reduce_op="mean")
    return mean[0], bool(mean[1] > 0)


def _epoch_seed(seed: int, epoch: int, process: int) -> int:
    return ((seed * 1_000_003 + epoch) * 2 + process * 2**40) % 2**62


def _finite(loss: Tensor, stage: str, epoch: int, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{stage}: the loss became {value} in epoch {epoch}, step {step}; try a lower {stage}.learning_rate"
        )
    return value


def _schedule(name: Literal["constant", "cosine"], total: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step. A short training warms up for longer: docs/decisions.md."""
    warmup = max(1, total // 20, min(100, total // 4))

    def cosine(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return cosine if name == "cosine" else lambda step: 1.0
