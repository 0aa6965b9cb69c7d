"""Every id that can be added can be read, found, recommended and removed; texts that cannot be sent are refused."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from msm4sr.data.dataset import load_dataset
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings

REFUSED = [".", "..", " ", "a\nb", "\x00", "a\x1fb", "\u200f\u05d0", "a\u00a0b", "x" * 201, "\ue000"]
SPECIAL = [
    *("a/image", "a/similar", "image", "similar", "/", "//", "/a/", "a/..", "../a", "a/./b", "...", "%2F", "%", "%zz"),
    *("a?b=c", "#a", "a&b", "a+b", " a ", "a b", "a;b", "a\\b", "\U0001f682", "\u05d0\u05d1", "e\u0301", "'\"<>", "{}"),
    *("\U0001f682" * 200, "a%2Fimage", "items", "q", "*", "a:b", "@", "~", "-", "[1]", "a\u0301/\u00fc"),
]


@pytest.fixture(scope="module")
def client(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    service = ServeSettings(run=run_folder, state=tmp_path_factory.mktemp("ids"))
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def history(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids[:2]


def round_trip(client: TestClient, history: list[str], item_id: str) -> int:
    """The status of adding an item; one that was added is read in every way and removed again."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    files = {"images": ("a.png", image.getvalue(), "image/png")}
    added = client.post("/items", data={"item_id": item_id, "title": "Red train"}, files=files)
    if added.status_code != 201:
        assert (added.status_code, "id" in added.json()["detail"]) == (422, True)
        return added.status_code
    assert added.json()["item_id"] == item_id
    path = f"/items/{quote(item_id, safe='')}"
    assert client.get(path).json()["item_id"] == item_id
    found = next(one for one in client.get("/items", params={"q": item_id}).json()["items"] if one["added"])
    assert found["item_id"] == item_id
    assert "Red train" in client.get(found["page"]).text
    assert client.get(found["image"]).headers["content-type"] == "image/jpeg"
    assert len(client.get(f"{path}/similar?k=3").json()["items"]) == 3
    body: dict[str, Any] = {"history": [item_id, *history], "candidates": [item_id], "exclude_seen": False}
    answer = client.post("/recommend", json=body).json()
    assert (answer["unknown"], [one["item_id"] for one in answer["items"]]) == ([], [item_id])
    assert client.post("/explain", json={"history": history, "item_id": item_id}).json()["item_id"] == item_id
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    return 201


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_any_id_is_refused_or_can_be_used(client: TestClient, history: list[str], examples: int) -> None:
    letters = st.characters(exclude_categories=["Cs"]) | st.sampled_from("/.%?#&+ \\")

    @given(item_id=st.text(letters, min_size=1, max_size=12))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @example(item_id="\u00ad")
    def tried(item_id: str) -> None:
        round_trip(client, history, item_id)

    tried()


@pytest.mark.parametrize("item_id", SPECIAL)
def test_an_id_may_be_any_printable_text(client: TestClient, history: list[str], item_id: str) -> None:
    assert round_trip(client, history, item_id) == 201


@pytest.mark.parametrize("item_id", REFUSED)
def test_other_ids_are_refused(client: TestClient, history: list[str], item_id: str) -> None:
    assert round_trip(client, history, item_id) == 422


def test_ids_that_contain_a_path_do_not_hide_others(client: TestClient) -> None:
    for item_id in ("a", "a/image", "a/similar"):
        assert client.post("/items", data={"item_id": item_id, "title": f"Train {item_id}"}).status_code == 201
    assert client.get("/items/a%2fimage").json()["title"] == "Train a/image"
    assert client.get("/items/a/image").status_code == 404  # no image
    assert client.get("/items/a%2Fsimilar").json()["title"] == "Train a/similar"
    assert "items" in client.get("/items/a/similar").json()
    assert "Train a/image" in client.get("/item/a%2Fimage").text
    assert client.get("/item/a/image").status_code == 404
    for item_id in ("a%2Fimage", "a%2Fsimilar", "a"):
        assert client.delete(f"/items/{item_id}").status_code == 204


BAD = ["\ud800", "a\udfff", "a\x00", "\x1b[31m", "\x85"]


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_texts_that_cannot_be_sent_are_refused_wherever_they_are(
    client: TestClient, history: list[str], text: str
) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/recommend", {"history": [text]}),
        ("/recommend", {"history": history, "candidates": [text]}),
        ("/recommend", {"history": history, "include_categories": [text]}),
        ("/recommend", {"history": history, "by": text}),
        ("/recommend", {"history": history, text: 1}),
        ("/recommend/batch", {"histories": [history, [text]]}),
        ("/explain", {"history": [text], "item_id": history[0]}),
        ("/explain", {"history": history, "item_id": text}),
        ("/page/recommend", {"history": [*history, text]}),
    ]
    for path, body in bodies:
        answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), (path, body)
    if unicodedata.category(text[-1]) != "Cs":
        for path in ("/items", f"/items/{history[0]}/similar"):
            assert client.get(path, params={"q": text, "by": text}).status_code == 422
