"""Errors of the command `serve`; `tests/serving` has the service."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Trained

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


def test_a_port_in_use_is_refused(refused: Refused, trained: Trained, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refused("serve", trained.folder, "--state", tmp_path / "state", "--port", port)
    assert message.strip() == f"error: port {port} is in use; choose another with --port"
    assert not (tmp_path / "state").exists()


def test_a_folder_without_a_run_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert str(tmp_path) in refused("serve", tmp_path, "--state", tmp_path / "state", "--port", "0")
