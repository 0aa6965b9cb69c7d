"""Errors of the command `serve`; `tests/serving` has the service."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Trained
from service import free_port

from msm4sr.cli.serve import hosts_of, read_key

Refused = Callable[..., str]


def test_a_missing_extra_is_named_in_one_line(
    refused: Refused, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = refused("serve", trained.folder)
    expected = "error: serving needs the extra 'serve' (uvicorn is missing): pip install 'msm4sr[serve]'"
    assert message.strip() == expected


def test_an_empty_key_is_refused(refused: Refused, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    state = ("--state", tmp_path / "state")
    assert "the API key is empty" in refused("serve", trained.folder, *state, "--api-key-file", tmp_path / "key")
    assert "not readable" in refused("serve", trained.folder, *state, "--api-key-file", tmp_path / "none")
    assert "MSM4SR_API_KEY" in refused("serve", trained.folder, *state, "--api-key-file", tmp_path / "key")
    (tmp_path / "key").write_text("two\nlines")
    assert "has a line break" in refused("serve", trained.folder, *state, "--api-key-file", tmp_path / "key")


def test_a_key_of_the_environment_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSM4SR_API_KEY", " key\n")
    assert read_key(None) == "key"


def test_a_port_in_use_is_refused(refused: Refused, trained: Trained, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refused("serve", trained.folder, "--state", tmp_path / "state", "--port", port)
    assert message.strip() == f"error: port {port} is in use; choose another with --port"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("qdrnt=http://localhost:1", "error: --index: there is no vector index 'qdrnt', only "),
        ("exact=http://localhost:1", "--index exact=http://localhost:1: exact has no address; write --index exact"),
        ("qdrant", "--index qdrant=: give the address of the server, --index qdrant=http://HOST:6333"),
        (
            "qdrant=http://127.0.0.1:{port}",
            "no answer of Qdrant ([Errno 111] Connection refused); start it, or correct",
        ),
    ],
)
def test_an_index_that_cannot_be_opened_is_one_line(
    index: str, says: str, refused: Refused, trained: Trained, tmp_path: Path
) -> None:
    option = ("--index", index.format(port=free_port()))
    message = refused("serve", trained.folder, "--state", tmp_path / "state", "--port", "0", *option)
    assert says in " ".join(message.split())


def test_a_folder_without_a_run_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("serve", tmp_path, "--state", tmp_path / "state", "--port", "0")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_a_public_address_without_a_key_is_refused(
    refused: Refused, trained: Trained, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MSM4SR_API_KEY", raising=False)
    message = refused("serve", trained.folder, "--host", host)
    assert "can be reached from other machines, and there is no API key" in message
    assert "--api-key-file FILE, or --without-key" in message


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", [], []),
        ("::1", [], []),
        ("localhost", ["Shop.Example"], ["shop.example"]),
        ("127.0.0.1", ["*"], None),
        ("0.0.0.0", [], None),
        ("0.0.0.0", ["shop.example"], ["shop.example"]),
    ],
)
def test_local_addresses_answer_to_their_names_only(host: str, names: list[str], expected: list[str] | None) -> None:
    assert hosts_of(host, names, changes_are_free=False) == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--proxy", "localhost"),
        ("--allowed-host", "https://shop.example"),
        ("--root-path", "shop"),
        ("--root-path", "/a b"),
        ("--host", "no such host"),
    ],
)
def test_a_wrong_address_is_named(refused: Refused, trained: Trained, option: str, value: str) -> None:
    assert f"{option} {value!r}: " in refused("serve", trained.folder, option, value)
