"""Bodies that are large, deep, in another encoding, or made to take long: each is refused with what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from test_app import assert_problem

from msm4sr.serving import middleware
from msm4sr.serving.app import create_app
from msm4sr.serving.bodies import parse_form
from msm4sr.serving.service import ServeSettings

JSON, FORM, MULTIPART = "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"
LONG = "x" * 100_000


@pytest.fixture(scope="module")
def client(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path_factory.mktemp("state"))))


def part(name: str, value: bytes, file: str = "") -> bytes:
    name += f'"; filename="{file}' if file else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


ITEM = part("item_id", b"n"), part("title", b"A thing")


@pytest.mark.parametrize(
    ("content_type", "body", "status", "words"),
    [
        (MULTIPART + "; charset=punycode", form(*ITEM), 415, ["charset 'punycode'", "UTF-8"]),
        (MULTIPART + '; charset="utf-7"', form(*ITEM), 415, ["charset 'utf-7'"]),
        (FORM + "; charset=utf-16", b"item_id=n", 415, ["charset 'utf-16'"]),
        ("multipart/form-data; boundary=" + "x" * 300, form(*ITEM), 415, ["330 characters; use at most 200"]),
        (MULTIPART, form(*ITEM, part("text", b"\xff")), 400, ["not UTF-8"]),
        (MULTIPART, form(*ITEM, part("text", b"x" * 300_000)), 400, ["field 'text' has more than 262,144 bytes"]),
        (MULTIPART, form(*ITEM, *[part("a", b"b")] * 300), 400, ["more than 200 parts"]),
        (MULTIPART, b"".join(ITEM), 400, ["the last boundary is missing"]),
        ("multipart/form-data", form(*ITEM), 400, ["multipart"]),
        (FORM, b"a=b&" * 300, 400, ["fields"]),
        (FORM, b"text=" + b"%41" * 100_000, 400, ["more than 262,144 bytes"]),
        (FORM, b"item_id=%FF", 400, ["not UTF-8"]),
        (MULTIPART, form(*ITEM, part("titel", b"A thing")), 422, ["titel: Extra inputs are not permitted"]),
        (MULTIPART, form(part("item_id", b"n" * 201)), 422, ["item_id: String should have at most 200 characters"]),
        (JSON, b'{"item_id": "n"}', 415, ["send a new item as multipart/form-data"]),
        (FORM, b"x" * 5_000_000, 413, ["larger than 4,194,304 bytes"]),
    ],
)
def test_a_form_over_the_bounds_is_refused(
    client: TestClient, content_type: str, body: bytes, status: int, words: list[str]
) -> None:
    answer = client.post("/items", content=body, headers={"Content-Type": content_type})
    assert_problem(answer, status, *words)
    assert client.get("/items/n").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"history": ' + b"[" * 100_000, 413, ["10,000 lists"]),
        (b'{"history": ' + b"[" * 5_000, 422, ["JSON"]),
        (b'{"a":' * 5_000, 422, ["JSON"]),
        (b'{"history": [' + b"1," * 200_000 + b"1]}", 413, ["100,000 values"]),
        (b'{"history": [' + b"1," * 50_000 + b"1]}", 422, ["history.0: Input should be a valid string"]),
        (json.dumps({f"a{n}": 1 for n in range(1000)}).encode(), 422, ["1,000 names in an object; send at most 50"]),
        (b'{"history": ["a"], "k": ' + b"1" * 1_000_000 + b"}", 422, ["JSON"]),
        (b'{"history": ["a"], "k": 1e999999999}', 422, []),
        (b'{"history": ["\\ud800"]}', 422, ["JSON"]),
        (b'{"history": [', 422, ["the body is not JSON (character "]),
        ('{"history": ["a"]}'.encode("utf-16"), 422, ["JSON"]),
        (b'{"history": ["' + b"a" * 5_000_000 + b'"]}', 413, ["larger than 4,194,304 bytes"]),
    ],
)
def test_json_over_the_bounds_is_refused(client: TestClient, body: bytes, status: int, words: list[str]) -> None:
    assert_problem(client.post("/recommend", content=body, headers={"Content-Type": JSON}), status, *words)


@pytest.mark.parametrize(
    "body",
    [{LONG: 1}, {"history": [LONG]}, {"history": LONG}, {"history": [], "k": LONG}, {"history": [{LONG: LONG}]}],
    ids=["name", "item", "history", "number", "object"],
)
def test_a_refusal_quotes_only_a_part_of_a_long_value(client: TestClient, body: object) -> None:
    answer = client.post("/recommend", json=body)
    assert answer.status_code in (200, 422)
    assert len(answer.content) < 2000


def test_json_is_utf_8(client: TestClient) -> None:
    other = client.post("/recommend", content=b"{}", headers={"Content-Type": JSON + "; charset=latin-1"})
    assert_problem(other, 415, "charset 'latin-1'")
    same = client.post("/recommend", content=b"{}", headers={"Content-Type": JSON + "; charset=UTF-8"})
    assert_problem(same, 422, "history")
    wrong = client.post("/recommend", content=form(*ITEM), headers={"Content-Type": MULTIPART})
    assert_problem(wrong, 415, "send JSON")
    for headers in ({}, {"Content-Type": FORM}, {"Content-Type": "text/plain"}):  # FORM is that of curl -d
        unnamed = client.post("/recommend", content=b'{"history": []}', headers=headers)
        assert_problem(unnamed, 415, "Content-Type: application/json")


def test_large_bodies_are_refused_while_others_fill_the_memory(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = {"history": ["a" * 100] * 1000}, {"history": ["a"]}
    monkeypatch.setattr(middleware, "MAX_HELD", 0)
    assert_problem(client.post("/recommend", json=large), 503, "too many large requests")
    assert client.post("/recommend", json=small).status_code != 503
    monkeypatch.setattr(middleware, "MAX_HELD", 150_000)
    for _ in range(3):  # what is answered is no longer held
        assert client.post("/recommend", json=large).status_code != 503


def test_an_error_in_a_long_list_is_described_once(client: TestClient) -> None:
    answer = client.post("/recommend/batch", json={"histories": [[1] * 100] * 256})
    assert_problem(answer, 422)
    assert answer.json()["detail"] == "histories.0.0: Input should be a valid string"


def test_a_form_is_read_in_pieces_of_any_size() -> None:
    body = form(part("item_id", "ü/1".encode()), part("a", b""), part("images", b"\r\n--y\r\n" * 3, "ü.jpg"))
    for size in (1, 2, 7, len(body)):
        read = parse_form(MULTIPART, [body[at : at + size] for at in range(0, len(body), size)])
        assert (read["item_id"], read["a"]) == ("ü/1", "")
        image = read["images"]
        assert not isinstance(image, str)
        assert (image.filename, image.size, image.file.read()) == ("ü.jpg", 21, b"\r\n--y\r\n" * 3)
    encoded = parse_form(FORM, [b"title=a+%C3%BC&te", b"xt=&text"])
    assert encoded.multi_items() == [("title", "a ü"), ("text", ""), ("text", "")]
    assert parse_form("text/plain", [b"a=b"]).multi_items() == []
