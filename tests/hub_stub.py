"""A local server with the endpoints of the Hugging Face hub that huggingface_hub calls to upload and download models.

Large files are uploaded by Git LFS: set HF_HUB_DISABLE_XET=1, since the storage behind Xet is another service.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # tokens


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a mapping from file names to contents; those in `private` need a token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}  # uploaded by Git LFS, by sha256
        self.unknown: list[str] = []  # requests to other endpoints
        self.served: list[str] = []  # files that were downloaded

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_hash(self, name: str) -> str:
        content = json.dumps({file: hashlib.sha1(data).hexdigest() for file, data in self.repositories[name].items()})
        return hashlib.sha1(content.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        match (self.command, parts):
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(body))
            case "GET", ["api", "agent-harnesses"]:  # for the User-Agent
                self._send({})
            case "POST", ["api", "validate-yaml"]:
                self._send({"errors": [], "warnings": []})
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                if self._permits(f"{owner}/{name}", write=True):
                    self._send({"files": [_mode(file) for file in json.loads(body)["files"]]})
            case "POST", [owner, git, "info", "lfs", "objects", "batch"]:
                if self._permits(f"{owner}/{git.removesuffix('.git')}", write=True):
                    self._send(
                        {"transfer": "basic", "objects": [self._lfs(one) for one in json.loads(body)["objects"]]}
                    )
            case "PUT", ["lfs", sha256]:
                assert hashlib.sha256(body).hexdigest() == sha256
                self.server.objects[sha256] = body
                self._send({})
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                if self._permits(f"{owner}/{name}", write=True):
                    self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case "GET", ["api", "models", owner, name, *rest] if rest[:1] in ([], ["revision"], ["tree"]):
                if self._permits(f"{owner}/{name}"):
                    tree = rest[:1] == ["tree"]
                    self._send(self._tree(f"{owner}/{name}") if tree else self._describe(f"{owner}/{name}"))
            case "GET" | "HEAD", [owner, name, "resolve", _, file]:
                if self._permits(f"{owner}/{name}"):
                    self._serve(f"{owner}/{name}", file)
            case _:
                self.server.unknown.append(f"{self.command} {self.path}")
                self._send({"error": "no such endpoint"}, 404)

    def _permits(self, name: str, write: bool = False) -> bool:
        """Whether the token permits it; if not, the answer is sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hidden = name in self.server.private and token not in (READER, WRITER)
        if name not in self.server.repositories or hidden:
            code = 401 if token == "" else 404  # strangers do not learn what exists
            self._send({"error": "Repository not found"}, code, {"X-Error-Code": "RepoNotFound"})
        elif write and token != WRITER:
            self._send({"error": "You don't have the rights"}, 403)
        else:
            return True
        return False

    def _create(self, wanted: dict[str, Any]) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (READER, WRITER):
            self._send({"error": "Invalid username or password."}, 401)
            return
        if token == READER:
            self._send({"error": "You don't have the rights to create a model"}, 403)
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        there = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        if wanted.get("private"):
            self.server.private.add(name)
        about = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        self._send(
            about if not there else {"error": "You already created this model repo", **about}, 409 if there else 200
        )

    def _lfs(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit_hash(name)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    def _describe(self, name: str) -> dict[str, Any]:
        siblings = [{"rfilename": file} for file in self.server.repositories[name]]
        return {"_id": "1", "id": name, "sha": self.server.commit_hash(name), "private": False, "siblings": siblings}

    def _tree(self, name: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in self.server.repositories[name].items()
        ]

    def _serve(self, name: str, file: str) -> None:
        files = self.server.repositories[name]
        if file not in files:
            self._send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.served.append(file)
        headers = {"X-Repo-Commit": self.server.commit_hash(name), "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}
        self._send_bytes(files[file], 200, headers)

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers requests while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
