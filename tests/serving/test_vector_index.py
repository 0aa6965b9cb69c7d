"""The service with an index in another process, which may fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from indexes import local_qdrant
from qdrant_client import QdrantClient
from service import free_port

from msm4sr.recommend.index import IndexedItems, IndexSettings
from msm4sr.recommend.index.qdrant_index import QdrantIndex
from msm4sr.recommend.recommender import Recommender
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/recommend", {"k": 5}),
    ("/recommend", {"k": 5, "exclude_seen": False}),
    ("/recommend", {"k": 5, "by": "text", "reasons": True}),
    ("/recommend/batch", {"k": 5}),
]


@pytest.fixture
def service(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("msm4sr.recommend.index.approximate.APPROXIMATE_SHARE", 1)
    app = create_app(ServeSettings(run=run_folder, state=tmp_path / "state"))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def recommender(service: TestClient) -> Recommender:
    found: Recommender = service.app.state.service.recommender  # type: ignore[attr-defined]
    return found


@pytest.fixture
def qdrant(recommender: Recommender, tmp_path: Path) -> QdrantClient:
    """A Qdrant in this process with the items of the run."""
    catalogue, client = recommender.catalogue, local_qdrant()
    vectors, items = catalogue.tensors.item_vectors, catalogue.items
    indexed = IndexedItems(vectors, items.item_ids, items.categories, lambda: vectors[:5], tmp_path)
    recommender.index = QdrantIndex.open(client, client, "here", indexed, IndexSettings())
    return client


def body(recommender: Recommender, path: str, options: dict[str, Any]) -> dict[str, Any]:
    history = recommender.catalogue.items.item_ids[3:6]
    return options | ({"histories": [history, history[:1]]} if path.endswith("batch") else {"history": history})


def without_scores(answer: Any) -> list[list[str]]:
    return [[one["item_id"] for one in found["items"]] for found in answer.get("results", [answer])]


def test_answers_through_qdrant_are_those_of_exact_search(
    service: TestClient, recommender: Recommender, request: pytest.FixtureRequest
) -> None:
    exact = [service.post(path, json=body(recommender, path, more)).json() for path, more in REQUESTS]
    request.getfixturevalue("qdrant")
    found = [service.post(path, json=body(recommender, path, more)).json() for path, more in REQUESTS]
    assert [*map(without_scores, found)] == [*map(without_scores, exact)]
    ready = service.get("/ready").json()
    assert (ready["index"], ready["recall"], ready["failed_index"]) == ("qdrant", 1.0, "")


@pytest.mark.parametrize("what", ["deleted", "away"])
def test_without_qdrant_searches_are_answered_with_503(
    what: str, service: TestClient, recommender: Recommender, qdrant: QdrantClient
) -> None:
    if what == "deleted":
        qdrant.delete_collection(qdrant.get_collections().collections[0].name)
        says = "here: Qdrant has no collection"
    else:
        assert isinstance(recommender.index, QdrantIndex)
        recommender.index._client = QdrantClient(
            f"http://127.0.0.1:{free_port()}", timeout=5, check_compatibility=False
        )
        says = "no answer of Qdrant"
    for path, more in REQUESTS:
        answer = service.post(path, json=body(recommender, path, more))
        if "by" in more:  # by one modality all of its items are scored, without the index
            assert answer.status_code == 200
            continue
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.headers["content-type"] == "application/problem+json"
        assert says in answer.json()["detail"]
    ready = service.get("/ready")
    assert ready.status_code == 200
    assert says in ready.json()["failed_index"]
    ids = recommender.catalogue.items.item_ids
    for given in ({"history": []}, {"history": ids[:3], "candidates": ids[5:9]}):
        answer = service.post("/recommend", json={"k": 3, **given})
        assert (answer.status_code, len(answer.json()["items"])) == (200, 3), "these need no search"
