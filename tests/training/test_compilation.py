"""Steps that wait for no device, have one of a few shapes, and can be compiled: they compute what plain steps do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import generator, make_batch, make_dataset, make_model, make_msm4sr, make_sasrec, random_sequences
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from msm4sr.data.batches import epoch_batches
from msm4sr.data.dataset import training_histories
from msm4sr.errors import InputError
from msm4sr.models.located_items import Limits, map_tensors
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.compilation import limits_of
from msm4sr.training.device import Device
from msm4sr.training.optimizer import Adam, clip_gradients, mark_coalesced
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.stages import finetune
from msm4sr.training.task import Task
from msm4sr.training.tasks.end_to_end import DoubleBatch, EndToEndTask
from msm4sr.training.tasks.multimodal_contrastive import MultimodalContrastiveTask
from msm4sr.training.tasks.next_item import NextItemTask
from msm4sr.training.trainer import TrainerOptions

N_ITEMS = 40
LIMITS = Limits(pairs=64, history=6)
DATASET = make_dataset(random_sequences(30, N_ITEMS, longest=9), N_ITEMS)
BATCH = make_batch(random_sequences(7, N_ITEMS, longest=7))
PRETRAINING = PretrainSettings(cmcl_weight=0.5)


def of_msm4sr(settings: FinetuneSettings | PretrainSettings, **changes: Any) -> Task:
    modalities = changes.pop("modalities", ("text", "visual"))
    model = make_msm4sr(N_ITEMS, modalities, **changes)
    if isinstance(settings, PretrainSettings):
        return MultimodalContrastiveTask(model, settings)
    return NextItemTask(model, settings)


def of_sasrec(settings: FinetuneSettings, **changes: Any) -> Task:
    return NextItemTask(make_sasrec(N_ITEMS, **changes), settings)


ALL, SAMPLED = FinetuneSettings(candidates="all"), FinetuneSettings(candidates="sampled", samples=9)
TASKS: dict[str, Callable[[], Task]] = {
    "pretrain": partial(of_msm4sr, PRETRAINING),
    "pretrain whitened": partial(of_msm4sr, PRETRAINING, whiten=3),
    "pretrain within": partial(of_msm4sr, PretrainSettings(cmcl_weight=0.5, negatives="within"), projections="none"),
    "pretrain three modalities": partial(of_msm4sr, PRETRAINING, modalities=("text", "visual", "audio")),
    "pretrain one modality": partial(of_msm4sr, PRETRAINING, modalities=("text",)),
    "finetune": partial(of_msm4sr, ALL),
    "finetune sampled": partial(of_msm4sr, SAMPLED),
    "finetune seen items": partial(of_msm4sr, SAMPLED, seen_item_bias=True, similarity="cosine"),
    "end to end": lambda: EndToEndTask(make_msm4sr(N_ITEMS), SAMPLED, PRETRAINING),
    "sasrec": partial(of_sasrec, ALL),
    "sasrec sampled": partial(of_sasrec, SAMPLED),
    "sasrec bce": partial(of_sasrec, FinetuneSettings(), loss="bce"),
}
COMPILED = ("pretrain", "pretrain whitened", "finetune", "finetune seen items", "sasrec bce")


def prepared(task: Task, limits: Limits | None = None) -> Any:
    """A step of a few histories; the same draws every time."""
    next(iter(task.batches(training_histories(DATASET), FinetuneSettings(), np.random.default_rng(0))))
    task.limits = limits
    batch = DoubleBatch.of(BATCH, BATCH) if isinstance(task, EndToEndTask) else BATCH
    return task.prepare([batch], 0, generator(1))


def loss_and_gradients(task: Task, step: Any) -> dict[str, Tensor]:
    task.zero_grad()
    loss = task(step)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in task.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(float(value.abs().max()) for value in expected.values()) > 0.01
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def shapes_of(step: Any) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    map_tensors(step, lambda tensor: shapes.append(tensor.shape) or tensor)  # type: ignore[func-returns-value]
    return shapes


# Padding


@pytest.mark.parametrize("name", TASKS)
def test_a_padded_step_has_the_loss_and_the_gradients_of_the_step(name: str) -> None:
    task = TASKS[name]().train()
    plain, padded = prepared(task), prepared(task, LIMITS)
    assert shapes_of(plain) != shapes_of(padded)
    assert_same(loss_and_gradients(task, padded), loss_and_gradients(task, plain))


@pytest.mark.parametrize("name", ["pretrain", "finetune sampled"])
def test_padded_steps_have_few_shapes(name: str) -> None:
    task, settings = TASKS[name](), FinetuneSettings(batch_pairs=40)
    histories = training_histories(make_dataset(random_sequences(400, N_ITEMS, longest=9), N_ITEMS))
    different = []
    for limits in (None, limits_of(task, settings)):
        task.limits = limits
        batches = list(task.batches(histories, settings, np.random.default_rng(0)))
        steps = [task.prepare([batch], 0, generator()) for batch in batches]
        different.append(len({tuple(shapes_of(step)) for step in steps}))
    assert different[0] > 20
    assert different[1] <= 10


@pytest.mark.parametrize("batch_pairs", [7, 64, 100])
@pytest.mark.parametrize("pairs", ["all", "last"])
def test_no_batch_exceeds_the_limits(batch_pairs: int, pairs: Any) -> None:
    limits = limits_of(TASKS["sasrec"](), FinetuneSettings(batch_pairs=batch_pairs))
    assert limits is not None
    histories = training_histories(DATASET)
    for batch in epoch_batches(
        histories, max_history=6, batch_pairs=batch_pairs, pairs=pairs, rng=np.random.default_rng(0)
    ):
        assert int(batch.mask.sum()) <= limits.pairs
        assert batch.items.shape[1] <= limits.history


# Waiting for a device


class Operations(TorchDispatchMode):
    """Records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.names.add("nonzero")  # an index of flags
        return func(*args, **(kwargs or {}))


WAITING = {
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "_local_scalar_dense",
    "item",
    "masked_select",
} | {"bincount", "repeat_interleave", "_coalesce", "equal"}
"""Operations whose result, or its size, the host needs: on a GPU it would wait for the device."""


@pytest.mark.parametrize("name", TASKS)
def test_a_step_needs_nothing_from_the_device(name: str) -> None:
    task = TASKS[name]().train()
    for table in task.sparse_tables:
        table.sparse = True
    optimizer = Adam([weight for weight in task.parameters() if weight.requires_grad], 0.01, 0.0)
    for _ in range(2):
        step = prepared(task)
        with Operations() as operations:
            loss = task(step)
            optimizer.zero_grad()
            loss.backward()
            mark_coalesced(task.sparse_tables)
            clip_gradients(task.parameters(), 5.0)
            optimizer.step()
        assert "_fused_adam_" in operations.names
        assert not operations.names & WAITING


# Compilation


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_has_the_loss_and_the_gradients_of_the_step(name: str) -> None:
    task = TASKS[name]().train()
    expected = loss_and_gradients(task, prepared(task))
    torch._dynamo.reset()
    task.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    assert_same(loss_and_gradients(task, prepared(task, LIMITS)), expected)


@pytest.mark.parametrize("settings", [PRETRAINING, SAMPLED])
def test_a_compiled_step_draws_its_dropout(settings: Any) -> None:
    task = of_msm4sr(settings, dropout=0.5, attention_dropout=0.5).train()
    step, losses = prepared(task, LIMITS), []
    torch._dynamo.reset()
    task.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        losses.append(float(task(step).detach()))
    assert losses[0] == losses[2] != losses[1]


def trained(compile: bool, monkeypatch: pytest.MonkeyPatch, backend: Any = "aot_eager") -> list[EpochRecord]:
    """Fine-tuning without dropout, compiled by a quick backend."""
    torch._dynamo.reset()
    monkeypatch.setattr(Task, "compile", partialmethod(nn.Module.compile, backend=backend))
    settings = FinetuneSettings(epochs=2, batch_pairs=64)
    options = TrainerOptions(device=Device(accelerator="cpu", compile=compile))
    return finetune(make_msm4sr(N_ITEMS), DATASET, settings, options)


def test_a_compiled_training_has_the_losses_of_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, compiled = (trained(on, monkeypatch) for on in (False, True))
    assert [r.loss for r in compiled] == pytest.approx([r.loss for r in eager], rel=1e-4)
    assert compiled[-1].loss < compiled[0].loss


class Interrupt(Callback):
    """Ctrl-C at the second report of the loss; a checkpoint follows the first."""

    def __init__(self) -> None:
        self.reports = 0

    def on_step(self, record: StepRecord) -> None:
        self.reports += 1
        if self.reports == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_compiled_training_resumes_bit_identically(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Task, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    settings = SAMPLED.model_copy(update={"epochs": 1, "batch_pairs": 5, "checkpoint_every": 0.0})
    weights = []
    for name in ("undisturbed", "resumed"):
        model = make_sasrec(N_ITEMS, dropout=0.3, attention_dropout=0.3)
        options = TrainerOptions(device=Device(accelerator="cpu", compile=True), checkpoints=tmp_path / name)
        torch._dynamo.reset()
        if name == "resumed":
            with pytest.raises(KeyboardInterrupt):
                finetune(model, DATASET, settings, options, [Interrupt()])
        finetune(model, DATASET, settings, replace(options, resume=True))
        weights.append(weights_of(model))
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_a_step_that_cannot_be_compiled_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    with pytest.raises(InputError, match=r"device\.compile: .*no compiler here.*; use false"):
        trained(True, monkeypatch, broken)


def test_a_model_that_cannot_be_compiled_is_trained_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    options = TrainerOptions(device=Device(accelerator="cpu", compile=True))
    model = make_model("sine")
    with caplog.at_level(logging.INFO):
        records = finetune(model, make_dataset(random_sequences(10, 12, 7), 12), FinetuneSettings(epochs=1), options)
    assert len(records) == 1
    assert "device.compile: finetune of SINE is not compiled" in caplog.text


def test_several_processes_do_not_compile() -> None:
    with pytest.raises(InputError, match=r"device\.compile: only a single process"):
        Device(accelerator="cpu", devices=2, compile=True).check()
