"""The state store of the example package keeps what every store keeps, and is chosen by the scheme of a URL."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import test_state
from fastapi.testclient import TestClient
from plugins import PLUGIN
from test_state import State

from msm4sr.recommend.catalogue import ItemExists
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings
from msm4sr.serving.state import STORES, state_of

CONTRACT = (
    test_state.test_an_item_is_read_as_it_was_added,
    test_state.test_of_each_item_the_latest_change_is_read_in_order,
    test_state.test_what_another_process_has_done_meanwhile_is_refused,
)


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGIN)
    __import__("msm4sr_examples.memory")  # registers the store, as its entry point does
    sys.modules["msm4sr_examples.memory"]._OPENED.clear()


@pytest.mark.parametrize("contract", CONTRACT)
def test_it_does_what_every_store_does(contract: Callable[[State], None], tmp_path: Path) -> None:
    contract(State(tmp_path, "memory://shop"))


def test_a_failed_transaction_changes_nothing() -> None:
    store = STORES["memory"]("memory://shop")
    with pytest.raises(ItemExists):
        test_state.add(store, "n1", "n2", "n1")  # in one transaction
    assert (store.changes(), store.version()) == ([], 0)
    test_state.add(store, "n1")
    assert test_state.numbers(store) == [(1, "n1")]


def test_a_service_keeps_its_items_there(run_folder: Path) -> None:
    settings = ServeSettings.model_validate({"run": run_folder, **state_of("memory://shop", run_folder)})
    with TestClient(create_app(settings)) as client:
        added = client.post("/items", data={"item_id": "n1", "title": "A red train"})
        assert added.status_code < 300, added.text
    assert [change.item_id for change in STORES["memory"]("memory://shop").changes()] == ["n1"]
    with TestClient(create_app(settings)) as client:
        assert client.get("/items/n1", headers={"Accept": "application/json"}).json()["item_id"] == "n1"
