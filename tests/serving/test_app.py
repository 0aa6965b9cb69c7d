"""The routes, in this process. `test_server` starts the service as a process."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from builders import wrong_modes
from fastapi.testclient import TestClient
from PIL import Image

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.rules import Rules
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings, Service

KEY = "a secret"


def jpeg(colour: str = "red", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """One service for this module; each test cleans up what it adds."""
    settings = ServeSettings(
        run=run_folder, state=tmp_path_factory.mktemp("state"), api_key=KEY, max_k=50, max_history=30, max_body=200_000
    )
    client = TestClient(create_app(settings), raise_server_exceptions=False)
    client.headers["X-API-Key"] = KEY
    return client


@pytest.fixture(scope="module")
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


@pytest.fixture(scope="module")
def recommender(run_folder: Path) -> Recommender:
    """The recommender whose results the service must answer."""
    return load_recommender(run_folder)


def add(client: TestClient, item_id: str, images: list[bytes] = [], **fields: Any) -> Any:  # noqa: B006
    files = [("images", (f"{n}.jpg", data, "image/jpeg")) for n, data in enumerate(images)]
    return client.post("/items", data={"item_id": item_id, "title": "Red wooden train"} | fields, files=files or None)


def assert_problem(response: Any, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    for word in words:
        assert word in body["detail"]


def test_recommendations_are_those_of_the_recommender(
    client: TestClient, ids: list[str], recommender: Recommender
) -> None:
    asked = {"history": [ids[0], "gone", ids[4]], "k": 5, "reasons": True}
    answer = client.post("/recommend", json=asked).json()
    expected = recommender.recommend(asked["history"], 5, reasons=True)
    assert (answer["popular"], answer["unknown"]) == (False, ["gone"])
    assert [one["item_id"] for one in answer["items"]] == [one.item_id for one in expected.items]
    for one, like in zip(answer["items"], expected.items, strict=True):
        assert one["score"] == pytest.approx(like.score, abs=1e-4)
        assert one["title"] == like.title
        assert one["reason"]["because"] == (like.reason and like.reason.because)


def test_a_batch_answers_each_history(client: TestClient, ids: list[str]) -> None:
    histories = [ids[:1], ids[3:8]]
    answer = client.post("/recommend/batch", json={"histories": histories, "k": 4}).json()["results"]
    for history, one in zip(histories, answer, strict=True):
        alone = client.post("/recommend", json={"history": history, "k": 4}).json()
        assert [i["item_id"] for i in one["items"]] == [i["item_id"] for i in alone["items"]]


@pytest.mark.parametrize("history", [[], ["gone", "lost"]])
def test_without_a_known_item_popular_items_are_recommended(
    client: TestClient, recommender: Recommender, history: list[str]
) -> None:
    expected = recommender.recommend([], 5).items
    asked = {"history": history, "k": 5, "reasons": True}
    answer = client.post("/recommend", json=asked).json()
    assert (answer["popular"], answer["unknown"]) == (True, history)
    assert [(one["item_id"], one["score"]) for one in answer["items"]] == [(o.item_id, o.score) for o in expected]
    assert client.post("/recommend/batch", json={"histories": [history], "k": 5}).json()["results"][0] == answer
    page = client.post("/page/recommend", json={"history": history, "k": 5}).json()
    assert page["reasons"] == dict.fromkeys([one.item_id for one in expected])
    assert_problem(client.post("/explain", json={"history": ["gone"], "item_id": expected[0].item_id}), 422, "none of")


def test_options_select_the_ranked_items(client: TestClient, ids: list[str], recommender: Recommender) -> None:
    category = next(name for i in ids for name in recommender.item(i).categories)
    answer = client.post("/recommend", json={"history": ids[:2], "include_categories": [category], "k": 50}).json()
    assert answer["items"]
    assert all(category in recommender.item(one["item_id"]).categories for one in answer["items"])
    some = client.post("/recommend", json={"history": ids[:2], "candidates": ids[1:4], "exclude_seen": False}).json()
    assert {one["item_id"] for one in some["items"]} == set(ids[1:4])
    by_text = client.post("/recommend", json={"history": ids[:2], "by": "text"}).json()
    assert [o["item_id"] for o in by_text["items"]] == [
        o.item_id for o in recommender.recommend(ids[:2], by="text").items
    ]


def test_rules_are_those_of_the_recommender(client: TestClient, ids: list[str], recommender: Recommender) -> None:
    best, *_, last = recommender.recommend(ids[:2], 50).items
    category = recommender.item(last.item_id).categories[-1]
    options = {
        "exclude_items": [best.item_id],
        "boost_categories": {category: 0.5},
        "boost_items": {last.item_id: 3.0},
        "diversity": 0.4,
    }
    expected = recommender.recommend(ids[:2], 8, rules=Rules(**options)).items
    answer = client.post("/recommend", json={"history": ids[:2], "k": 8} | options).json()["items"]
    assert [one["item_id"] for one in answer] == [one.item_id for one in expected]
    assert [one["score"] for one in answer] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert best.item_id not in {one.item_id for one in expected}
    batch = client.post("/recommend/batch", json={"histories": [ids[:2], []], "k": 8} | options).json()["results"]
    assert batch[0]["items"] == answer
    popular = recommender.recommend([], 8, rules=Rules(**options)).items
    assert [(one["item_id"], one["score"]) for one in batch[1]["items"]] == [(o.item_id, o.score) for o in popular]


def test_a_user_of_the_run_has_a_history(client: TestClient, toyshop: Path) -> None:
    dataset = load_dataset(toyshop)
    histories = {
        user_id: [dataset.item_ids[item] for item in history]
        for user_id, history in zip(dataset.user_ids[:3], dataset.histories, strict=False)
    }
    answers = client.post("/recommend/batch", json={"user_ids": [*histories], "k": 5}).json()["results"]
    for (user_id, history), batch in zip(histories.items(), answers, strict=True):
        expected = client.post("/recommend", json={"history": history, "k": 5}).json()
        answer = client.post("/recommend", json={"user_id": user_id, "k": 5}).json()
        for one in (answer, batch):
            assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in expected["items"]]
        page = client.post("/page/recommend", json={"user_id": user_id, "k": 5}).json()
        assert [item["item_id"] for item in page["history"]] == history
        assert [item["item_id"] for item in page["items"]] == [item["item_id"] for item in expected["items"]]


@pytest.mark.parametrize("body", [{"user_id": "user-99999"}, {"user_ids": ["user-00007", "user-99999"]}])
def test_an_unknown_user_is_not_found_and_no_other_user_is_named(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/recommend/batch" if "user_ids" in body else "/recommend", json=body)
    assert_problem(answer, 404, "no user 'user-99999' among the 60 users of the run's data")
    assert "did you mean" not in answer.text
    both = {"user_ids": ["user-00007"], "histories": [["x"]]}
    assert_problem(client.post("/recommend/batch", json=both), 422, "give either histories or user_ids")
    assert_problem(client.post("/recommend/batch", json={"user_ids": []}), 422, "user_ids")
    assert_problem(client.post("/recommend/batch", json={"user_ids": ["x"] * 257}), 422, "257 histories")


def test_the_service_needs_no_data_to_start_and_says_that_a_user_needs_it(
    run_folder: Path, toyshop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(toyshop), str(tmp_path / "moved")))
    client = TestClient(create_app(ServeSettings(run=copy, state=tmp_path / "state")))
    assert client.post("/recommend", json={"history": ["toy-0001"]}).status_code == 200
    answer = client.post("/recommend", json={"user_id": "user-00007"})
    assert_problem(answer, 503, "the histories of users cannot be read now; send a history")
    assert answer.headers["retry-after"] == "10"
    assert str(tmp_path) not in answer.text
    assert any(f"needs the data of the run: {tmp_path / 'moved'}" in message for message in caplog.messages)


def test_an_item_has_details_and_similar_items(client: TestClient, ids: list[str], recommender: Recommender) -> None:
    answer = client.get(f"/items/{ids[0]}").json()
    assert answer["title"] == recommender.item(ids[0]).name
    assert answer["keywords"] == recommender.keywords(recommender.item(ids[0]))
    similar = client.get(f"/items/{ids[0]}/similar", params={"k": 3, "by": "text"}).json()["items"]
    assert [one["item_id"] for one in similar] == [o.item_id for o in recommender.similar_items(ids[0], 3, "text")]
    page = client.get(f"/item/{ids[0]}").text
    assert "Add to history" in page
    assert "<h2>Collaboratively similar</h2>" in page
    assert "Your history</h2>" in client.get("/").text


def test_an_explanation_sums_up(client: TestClient, ids: list[str]) -> None:
    answer = client.post("/explain", json={"history": ids[:3], "item_id": ids[7]}).json()
    assert sum(answer["parts"].values()) == pytest.approx(answer["score"], abs=1e-4)
    assert {past["item_id"] for past in answer["history"]} == set(ids[:3])


def test_a_new_item_is_recommended_from_the_next_request_until_it_is_removed(
    client: TestClient, ids: list[str]
) -> None:
    added = add(client, "new/1 ü", [jpeg()], text="It has four carriages.", categories=["trains", "wood"])
    assert added.status_code == 201
    assert added.json()["categories"] == ["trains", "wood"]
    assert added.json()["added"] is True
    assert client.get("/items/new%2F1%20%C3%BC").json()["images"] == 1
    ranked = client.post("/recommend", json={"history": ids[:2], "candidates": ["new/1 ü"]}).json()
    assert [one["item_id"] for one in ranked["items"]] == ["new/1 ü"]
    assert client.post("/recommend", json={"history": ["new/1 ü"]}).json()["unknown"] == []
    assert_problem(add(client, "new/1 ü"), 409, "in the catalogue already")
    assert client.delete("/items/new%2F1%20%C3%BC").status_code == 204
    assert_problem(client.get("/items/new%2F1%20%C3%BC"), 404, "no item 'new/1 ü'")
    assert_problem(client.delete("/items/new%2F1%20%C3%BC"), 404)


def test_changes_need_the_key(client: TestClient, ids: list[str]) -> None:
    for key in ("", "wrong", KEY + "x", KEY[:-1], "ü"):
        headers = {"X-API-Key": key.encode()}
        assert_problem(client.request("DELETE", f"/items/{ids[0]}", headers=headers), 401, "API key")
        assert_problem(client.post("/reload", headers=headers), 401)
        assert_problem(client.post("/items", headers=headers, data={"item_id": "n", "title": "t"}), 401)
    bearer = {"X-API-Key": "", "Authorization": f"Bearer {KEY}"}
    assert_problem(client.request("DELETE", "/items/unknown", headers=bearer), 404)
    assert client.get(f"/items/{ids[0]}", headers={"X-API-Key": ""}).status_code == 200


def test_a_page_of_another_site_cannot_change_anything(client: TestClient, ids: list[str]) -> None:
    assert_problem(client.delete(f"/items/{ids[0]}", headers={"Origin": "https://evil.example"}), 403, "evil.example")
    assert client.delete("/items/unknown", headers={"Origin": "http://testserver"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["give either history or user_id"]),
        ({"history": ["x"], "user_id": "user-00007"}, ["give either history or user_id"]),
        ({"user_id": ""}, ["user_id", "at least 1"]),
        ({"user_id": "a\x00"}, ["user_id", "U+0000"]),
        ({"history": [], "diversity": 1.5}, ["diversity", "less than or equal to 1"]),
        ({"history": [], "boost_items": {"x": 101}}, ["boost_items.x", "less than or equal to 100"]),
        ({"history": [], "boost_categories": {"x": "much"}}, ["boost_categories.x", "number"]),
        ({"history": [], "boost_items": {"": 1}}, ["boost_items", "at least 1"]),
        ({"history": [], "include_categories": []}, ["include_categories", "at least 1 item"]),
        ({"history": [], "exclude_categories": ["x"] * 101}, ["exclude_categories", "at most 100"]),
        ({"history": [], "categories": ["x"]}, ["categories", "not permitted"]),
        ({"history": ["x"], "k": 0}, ["k", "greater than or equal to 1"]),
        ({"history": ["x"], "k": 51}, ["k is 51; ask for at most 50 items"]),
        ({"history": ["x"] * 31}, ["a history of 31 items; send at most the latest 30"]),
        ({"history": ["x"], "kk": 3}, ["kk", "not permitted"]),
        ({"history": ["x" * 201]}, ["history.0", "at most 200"]),
        ({"history": "x"}, ["history", "list"]),
        ({"history": [3]}, ["history.0", "string"]),
    ],
)
def test_a_wrong_request_is_a_problem_that_says_why(client: TestClient, body: Any, words: list[str]) -> None:
    assert_problem(client.post("/recommend", json=body), 422, *words)


def test_a_modality_that_does_not_score_is_refused(client: TestClient, ids: list[str]) -> None:
    asked = {"history": ids[:1], "by": "smell"}
    assert_problem(client.post("/recommend", json=asked), 422, "text, visual, both")
    assert_problem(client.get(f"/items/{ids[0]}/similar?by=smell"), 422, "text, visual, both, collaborative")
    assert_problem(client.get(f"/items/{ids[0]}/similar?k=0"), 422, "k:")


@pytest.mark.parametrize(
    ("fields", "images", "status", "words"),
    [
        ({"title": ""}, [], 422, ["no content that the model reads; give it a text or an image"]),
        ({}, [b"no image"], 422, ["image 1 cannot be used: not an image"]),
        ({}, [jpeg(), jpeg()[:100]], 422, ["image 2 cannot be used: damaged or cut short"]),
        ({}, [jpeg(size=(20_001, 1))], 422, ["a side is over 20,000"]),
        ({}, [jpeg()] * 9, 422, ["9 images; send at most 8"]),
        ({"text": "x" * 20_001}, [], 422, ["send at most 20,000"]),
        ({"item_id": "a\x07b"}, [], 422, ["item_id: character 2 (U+0007)"]),
        ({"item_id": "a\u00a0b"}, [], 422, ["printable characters"]),
        ({"item_id": ".."}, [], 422, ["no path can end with it"]),
        ({"title": "a\x00b"}, [], 422, ["title: character 2 (U+0000)"]),
        ({"text": "a\x1b[31m"}, [], 422, ["text: character 2 (U+001B)"]),
        ({"categories": ["wood", "\x85"]}, [], 422, ["categories.1: character 1 (U+0085)"]),
        ({"item_id": ""}, [], 422, ["item_id"]),
        ({}, [b"x" * 200_001], 413, ["larger than 200,000 bytes"]),
    ],
)
def test_an_item_that_cannot_be_added_changes_nothing(
    client: TestClient, fields: dict[str, str], images: list[bytes], status: int, words: list[str]
) -> None:
    before = client.get("/ready").json()["items"]
    assert_problem(add(client, **({"item_id": "n"} | fields), images=images), status, *words)
    assert client.get("/ready").json()["items"] == before


MALFORMED = {
    "no boundary": ("multipart/form-data", b"--x\r\n"),
    "wrong boundary": ("multipart/form-data; boundary=y", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb"),
    "cut short": ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="item_id"\r\n\r\nb'),
    "no name": ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--\r\n"),
    "binary": ("multipart/form-data; boundary=x", bytes(range(256)) * 20),
    "empty": ("multipart/form-data; boundary=x", b""),
    "json": ("application/json", b'{"item_id": "n"}'),
    "header without end": ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 100_000),
    "many parts": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 3000 + b"--x--\r\n",
    ),
    "surrogates": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="item_id"\r\n\r\n\xed\xa0\x80\r\n--x--\r\n',
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_upload_is_a_problem_of_the_sender(client: TestClient, kind: str) -> None:
    content_type, body = MALFORMED[kind]
    answer = client.post("/items", content=body, headers={"Content-Type": content_type})
    assert answer.headers["content-type"] == "application/problem+json"
    assert 400 <= answer.status_code < 500


def png_bomb() -> bytes:
    """40,000 x 40,000 pixels, as its head says, in some bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (20, 20), number) for number in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><rect width="9" height="9"/></svg>'


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ([("a.png", png_bomb(), "image/png")], 422),
        ([("a.jpg", jpeg()[:-200], "image/jpeg")], 422),
        ([("a.svg", SVG, "image/svg+xml")], 422),
        ([("a.jpg", b"", "image/jpeg")], 422),
        ([("a.png", b"\x89PNG\r\n\x1a\n", "image/png")], 422),
        ([(f"{n}.jpg", jpeg(), "image/jpeg") for n in range(100)], 422),
        ([("a" * 10_000, jpeg(), "image/jpeg")], 400),
        ([("../../a.jpg", jpeg(), "application/x-sh")], 201),  # name and media type are ignored
        ([("a.gif", gif(), "image/gif")], 201),
    ],
    ids=["bomb", "cut short", "svg", "empty", "head alone", "100", "long name", "wrong type", "gif"],
)
def test_readable_images_are_accepted_and_others_refused(
    client: TestClient, files: list[tuple[str, bytes, str]], status: int
) -> None:
    answer = client.post("/items", data={"item_id": "n", "title": "A"}, files=[("images", file) for file in files])
    if status == 201:
        assert answer.json()["images"] == 1
        assert client.delete("/items/n").status_code == 204
    else:
        problem = "images; send" if len(files) > 8 else "image 1 cannot be used"
        assert_problem(answer, status, problem if status == 422 else "multipart")
    assert client.get("/items/n").status_code == 404


def test_a_body_without_a_length_is_bounded_too(client: TestClient) -> None:
    answer = client.post("/recommend", content=(b"x" * 50_000 for _ in range(10)))
    assert_problem(answer, 413, "larger than 200,000 bytes")


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    assert_problem(client.get("/nothing"), 404, "/openapi.json lists")
    assert_problem(client.put("/recommend"), 405, "use POST")
    several = client.put("/items")
    assert_problem(several, 405, "/items does not accept PUT; use GET, POST")
    assert several.headers["allow"] == "GET, POST"
    assert_problem(client.put("/items/a%2Fb"), 405, "/items/a%2Fb does not accept PUT; use DELETE, GET, PATCH")
    assert_problem(client.get("/nothing%2Fat/all"), 404, "no such path: /nothing%2Fat/all")
    assert_problem(client.get("/health/"), 404, "no such path")  # no redirect: an id may end in a slash


def test_an_unexpected_error_reveals_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Recommender, "recommend", fails)
    answer = client.post("/recommend", json={"history": ["x"]})
    assert_problem(answer, 500, "see the log of the service")
    assert "secret" not in answer.text


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert (ready["items"], ready["added"], ready["modalities"]) == (60, 0, ["text", "visual"])
    client.get("/nothing/at/all")
    text = client.get("/metrics").text
    assert 'msm4sr_requests_total{method="GET",route="/health",status="200"}' in text
    assert "msm4sr_request_seconds_bucket" in text
    assert "msm4sr_items 60.0" in text
    assert "/nothing/at/all" not in text  # else callers could fill the memory with paths


def test_every_endpoint_is_described_with_its_problems(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/recommend", "/recommend/batch", "/explain", "/health", "/ready", "/metrics", "/reload"} <= set(
        schema["paths"]
    )
    assert "examples" in schema["components"]["schemas"]["RecommendRequest"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["responses"]["422"]["content"].keys() == {"application/problem+json"}
    assert "HTTPValidationError" not in schema["components"]["schemas"]


# -- what is kept, and newer runs


def settings_of(run: Path, state: Path, **more: Any) -> ServeSettings:
    return ServeSettings.model_validate({"run": run, "state": state} | more)


def candidates(service: Service, names: list[str], history: list[str]) -> list[str]:
    return sorted(
        one.item_id for one in service.recommender.recommend(history, 50, rules=Rules(candidates=names)).items
    )


def test_added_and_removed_items_survive_a_restart_without_encoding(
    run_folder: Path, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(run_folder, tmp_path / "state")
    client = TestClient(create_app(settings))
    assert add(client, "n1", [jpeg()]).status_code == 201
    assert add(client, "n2", text="A longer story. Of two sentences.").status_code == 201
    assert add(client, "n3").status_code == 201
    assert client.delete("/items/n3").status_code == 204
    assert client.delete(f"/items/{ids[5]}").status_code == 204
    assert client.delete(f"/items/{ids[6]}").status_code == 204
    assert add(client, ids[6], title="Another thing").status_code == 201
    before = client.post("/recommend", json={"history": ids[:3], "k": 70}).json()
    client.app.state.service.store.close()  # type: ignore[attr-defined]

    def never(*arguments: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("msm4sr.features.content.ContentEncoder.encode", never)
    service = Service(settings)
    after = service.recommender.recommend(ids[:3], 70)
    assert [o.item_id for o in after.items] == [o["item_id"] for o in before["items"]]
    assert [o.score for o in after.items] == pytest.approx([o["score"] for o in before["items"]], abs=1e-5)
    assert service.recommender.item(ids[6]).name == "Another thing"
    assert candidates(service, ["n1", "n2", "n3", ids[5]], ids[:3]) == ["n1", "n2"]
    assert service.recommender.explain(ids[:2], "n2").sentences[1].text == "A longer story."


def test_the_files_of_the_state_follow_the_umask(run_folder: Path, ids: list[str], tmp_path: Path, umask: None) -> None:
    client = TestClient(create_app(settings_of(run_folder, tmp_path / "new" / "state")))
    assert add(client, "n1", [jpeg()]).status_code == 201
    assert client.get("/items/n1/image").status_code == 200
    written = {path.name for path in (tmp_path / "new" / "state").iterdir()}
    assert {"items.sqlite", "items.sqlite-wal", "items.sqlite-shm"} < written
    assert not wrong_modes(tmp_path)


def test_services_over_one_state_see_each_other_at_once(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    settings = settings_of(run_folder, tmp_path / "state")
    one, other = TestClient(create_app(settings)), TestClient(create_app(settings))
    for number in range(5):
        assert add(one, f"n{number}").status_code == 201
        assert other.get(f"/items/n{number}").status_code == 200
        assert_problem(add(other, f"n{number}"), 409)
        assert other.delete(f"/items/n{number}").status_code == 204
        assert one.get(f"/items/n{number}").status_code == 404


def test_a_newer_run_replaces_the_old_one_and_keeps_the_added_items(
    run_folder: Path, ids: list[str], tmp_path: Path
) -> None:
    older = shutil.copytree(run_folder, tmp_path / "older")
    newer = shutil.copytree(run_folder, tmp_path / "newer")
    link = tmp_path / "current"
    link.symlink_to(older)
    client = TestClient(create_app(settings_of(link, tmp_path / "state")))
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    add(client, "n1")
    client.delete(f"/items/{ids[5]}")
    old = service.recommender
    assert not service.reload_if_changed()
    (tmp_path / "next").symlink_to(newer)
    (tmp_path / "next").replace(link)
    assert service.reload_if_changed()
    assert service.recommender is not old
    assert candidates(service, ["n1", ids[5], ids[7]], ids[:2]) == sorted(["n1", ids[7]])
    assert not service.reload_if_changed()
    assert client.post("/reload").status_code == 202
    assert service.reload_if_changed()


def test_a_newer_run_that_cannot_be_read_leaves_the_old_one(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    client = TestClient(create_app(settings_of(run, tmp_path / "state")))
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    weights = (run / "model" / "model.safetensors").read_bytes()
    (run / "model" / "model.safetensors").write_bytes(weights[:1000])
    assert not service.reload_if_changed()
    assert client.post("/recommend", json={"history": ids[:2]}).status_code == 200
    assert "model.safetensors" in client.get("/ready").json()["failed_reload"]
    (run / "model" / "model.safetensors").write_bytes(weights)
    assert service.reload_if_changed()
    assert client.get("/ready").json()["failed_reload"] == ""


def test_a_run_of_other_encoders_encodes_the_added_items_again(
    run_folder: Path, ids: list[str], tmp_path: Path
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    settings = settings_of(run, tmp_path / "state")
    client = TestClient(create_app(settings))
    add(client, "n1", [jpeg()], text="One sentence. Another one. A third.")
    assert len(client.post("/explain", json={"history": ids[:2], "item_id": "n1"}).json()["sentences"]) == 4
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("max_sentences: 10", "max_sentences: 2"))
    again = Service(settings)
    assert len(again.recommender.explain(ids[:2], "n1").sentences) == 2
    stored = again.store.changes()[0].item
    assert stored is not None
    assert len(stored.sentences) == 2
