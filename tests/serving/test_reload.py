"""Newer runs that are broken: each is refused with a reason, the old one stays, and the next good one is loaded."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msm4sr.data.dataset import load_dataset
from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.experiments.model_folder import StoredItems, read_stored_items, write_items
from msm4sr.experiments.run import open_run, read_metrics, write_metrics
from msm4sr.serving import service as module
from msm4sr.serving.service import ServeSettings, Service
from msm4sr.tensor_files import load_tensors, read_about, read_checksum, save_tensors


def change_weights(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Change the weights; all checksums are right."""

    def breaks(run: Path) -> None:
        file = run / "model" / "model.safetensors"
        items, about, weights = read_stored_items(open_run(run)), read_about(file), load_tensors(file)
        save_tensors({name: change(v) if v.is_floating_point() else v for name, v in weights.items()}, file, about)
        write_items(run / "model", items)
        metrics = read_metrics(run)
        assert metrics is not None
        metrics["identity"]["model.safetensors"] = read_checksum(file)
        write_metrics(run, metrics)

    return breaks


def change_items(change: Callable[[StoredItems], StoredItems]) -> Callable[[Path], None]:
    """Change the items; the checksum is right."""
    return lambda run: write_items(run / "model", change(read_stored_items(open_run(run))))


def change_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def breaks(run: Path) -> None:
        file = run / "model" / "items.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return breaks


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def breaks(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return breaks


def sparse(size: int) -> Callable[[Path], object]:
    def make(file: Path) -> None:
        file.touch()
        os.truncate(file, size)

    return make


def without_first(items: StoredItems) -> StoredItems:
    return StoredItems(*(values[1:] for values in items))


def twice(items: StoredItems) -> StoredItems:
    return items._replace(item_ids=items.item_ids[:1] * len(items.item_ids))


# What breaks a run, and words of the message.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "half precision": (change_weights(Tensor.half), "cannot be loaded"),
    "nan": (change_weights(lambda values: torch.full_like(values, torch.nan)), "not finite"),
    "edited items": (change_json(lambda names: names | {"item_ids": names["item_ids"][::-1]}), "model.safetensors"),
    "items lack one": (change_items(without_first), "the list of items 59"),
    "an id twice": (change_items(twice), "an id twice"),
    "ids are numbers": (change_items(lambda items: items._replace(item_ids=list(range(60)))), "is no text"),
    "half a surrogate pair": (
        change_json(lambda names: names | {"titles": ["\ud800", *names["titles"][1:]]}),
        "cannot be loaded",
    ),
    "items are a list": (change_json(lambda names: [names]), "items.json"),
    "items are nested": (in_place("model/items.json", lambda file: file.write_text("[" * 200_000)), "loaded"),
    "items are a pipe": (in_place("model/items.json", os.mkfifo), "not an ordinary file"),
    "settings are a pipe": (in_place("config.yaml", os.mkfifo), "not an ordinary file"),
    "weights are a device": (
        in_place("model/model.safetensors", lambda file: file.symlink_to("/dev/zero")),
        "not an ordinary file",
    ),
    "enormous items": (in_place("model/items.json", sparse(2**40)), "too large to be loaded"),
    "enormous weights": (in_place("model/model.safetensors", sparse(2**40)), "too large to be loaded"),
    "enormous settings": (in_place("config.yaml", sparse(2**30)), "too large to be loaded"),
    "weights are a folder": (in_place("model/model.safetensors", Path.mkdir), "model.safetensors"),
    "settings are binary": (in_place("config.yaml", lambda file: file.write_bytes(bytes(range(256)))), "config.yaml"),
    "being evaluated": (lambda run: (run / "metrics.json").unlink(), "not evaluated to the end"),
    "no model": (lambda run: shutil.rmtree(run / "model"), "no model here"),
    "no run": (shutil.rmtree, "no run here"),
}


@pytest.fixture(scope="module")
def served(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, Path]:
    """A service over a link, and the link."""
    link = tmp_path_factory.mktemp("reload") / "current"
    link.symlink_to(run_folder)
    return Service(ServeSettings(run=link, state=link.with_name("state"))), link


def move(link: Path, run: Path) -> None:
    link.unlink()
    link.symlink_to(run)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_does_not_replace_a_good_one(
    served: tuple[Service, Path], run_folder: Path, toyshop: Path, tmp_path: Path, kind: str
) -> None:
    service, link = served
    run = shutil.copytree(run_folder, tmp_path / "run")
    breaks, words = BROKEN[kind]
    breaks(run)
    old = service.recommender
    move(link, run)
    assert not service.reload_if_changed()
    assert words in service.failed_reload
    assert str(link) in service.failed_reload
    assert "\n" not in service.failed_reload.strip()
    assert service.recommender is old
    assert len(service.recommender.recommend(load_dataset(toyshop).item_ids[:2], 5).items) == 5
    move(link, run_folder)
    assert service.reload_if_changed()
    assert service.failed_reload == ""
    with pytest.raises(InputError):
        Service(ServeSettings(run=run, state=tmp_path / "state"))


def test_a_run_of_which_no_item_would_be_left_is_refused(run_folder: Path, tmp_path: Path) -> None:
    service = Service(ServeSettings(run=run_folder, state=tmp_path))
    ids = service.recommender.catalogue.items.item_ids
    service.add([Item("n1", "Red train")])
    for item_id in ids:
        service.remove(item_id)
    with sqlite3.connect(tmp_path / "items.sqlite") as connection:  # what another run would find
        connection.execute("UPDATE items SET features = NULL WHERE item_id = 'n1'")
    connection.close()
    service.store.request_reload()
    assert not service.reload_if_changed()
    assert "no item is left to recommend" in service.failed_reload
    assert "'n1': its row" in service.failed_reload
    assert service.recommender.catalogue.n_items == 1


def test_a_run_that_is_not_loaded_in_time_is_given_up(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(ServeSettings(run=run_folder, state=tmp_path, load_seconds=0.01))
    ended = threading.Event()
    monkeypatch.setattr(module, "load_recommender", lambda *arguments: ended.wait())
    service.store.request_reload()
    assert not service.reload_if_changed()
    assert "not loaded within 0.01 seconds" in service.failed_reload
    ended.set()


class Panic(BaseException):
    """What the libraries written in Rust raise is no Exception."""


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), MemoryError(), Panic("at once"), KeyError("x")])
def test_whatever_a_run_raises_is_reported(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    service = Service(ServeSettings(run=run_folder, state=tmp_path))

    def fails(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_recommender", fails)
        service.store.request_reload()
        assert not service.reload_if_changed()
    assert f"cannot be loaded ({type(error).__name__}: " in service.failed_reload
    service.store.request_reload()
    assert service.reload_if_changed()


def test_a_run_that_could_not_be_loaded_is_tried_again_after_a_pause(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, tries = Service(ServeSettings(run=run_folder, state=tmp_path)), []
    load = module.load_recommender

    def fails_twice(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) <= 2:
            raise OSError("too many open files")
        return load(*arguments)

    monkeypatch.setattr(module, "load_recommender", fails_twice)
    monkeypatch.setattr(module, "RETRY", (0.0, 0.0))
    service.store.request_reload()
    assert [service.reload_if_changed() for _ in range(4)] == [False, False, True, False]
    assert service.failed_reload == ""
    assert sum("was not reloaded" in message for message in caplog.messages) == 1, "one message for one reason"
    monkeypatch.setattr(module, "RETRY", (60.0, 60.0))
    tries.clear()
    service.store.request_reload()
    assert [service.reload_if_changed() for _ in range(3)] == [False, False, False]
    assert len(tries) == 1
