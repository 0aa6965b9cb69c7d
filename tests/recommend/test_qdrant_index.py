"""The index in Qdrant: built once, continued after a kill, and never wrong without an error.

A Qdrant in this process has the behaviour; a closed port has the errors of the network.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from indexes import SETTINGS, local_qdrant, qdrant_index, some_items
from qdrant_client import QdrantClient, models
from service import free_port

from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import IndexSettings, IndexUnavailable, Within
from msm4sr.recommend.index.qdrant_collection import Collection

MODULE = "msm4sr.recommend.index.qdrant_collection"


def collections(client: QdrantClient) -> list[str]:
    return sorted(one.name for one in client.get_collections().collections)


def test_a_collection_is_built_once(tmp_path: Path) -> None:
    items, client = some_items(tmp_path, 500), local_qdrant()
    first = qdrant_index(items, client)
    (name,) = collections(client)
    (alias,) = client.get_aliases().aliases
    assert (alias.alias_name, alias.collection_name) == (f"{name}-complete", name)
    about = first.about
    assert (about["items"], about["queries"], about["recall@20"]) == (500, 50, first.recall)
    (point,) = client.retrieve(name, [7])
    assert point.payload == {"item_id": "i7", "categories": ["odd"]}
    client.upsert(name, models.Batch(ids=[7], vectors=[[1.0] * 17], payloads=[{"item_id": "mine"}]))
    assert qdrant_index(items, client).about == about
    assert client.retrieve(name, [7])[0].payload == {"item_id": "mine"}, "nothing is written again"


@pytest.mark.parametrize("what", ["vectors", "categories", "settings"])
def test_other_items_have_another_collection(tmp_path: Path, what: str) -> None:
    items, client, settings = some_items(tmp_path, 500), local_qdrant(), SETTINGS
    first = qdrant_index(items, client)
    if what == "vectors":
        items = replace(items, vectors=items.vectors * 2)
    elif what == "categories":
        items = replace(items, categories=[("new",) for _ in items.item_ids])
    else:
        settings = IndexSettings(connectivity=8)
    qdrant_index(items, client, settings)
    assert len(collections(client)) == 2
    query = items.queries()[0]
    assert len(first.search(query, 20).rows) == 20, "the earlier one can still be searched"


BUILD_AND_WAIT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import msm4sr.recommend.index.qdrant_collection as module
from indexes import local_qdrant, qdrant_index, some_items

module.BATCH = 100
write = module.Collection._write_record
def written(self, rows, about=None):
    write(self, rows, about)
    if rows == {last}:
        print("written", flush=True)
        sys.stdin.read()  # until it is killed
module.Collection._write_record = written
qdrant_index(some_items(Path("."), 1000), local_qdrant(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("last", [300, 1000])
def test_a_build_that_was_killed_is_continued(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the third of ten batches; and after all items, before the collection was complete."""
    code = BUILD_AND_WAIT.format(tests=str(Path(__file__).parent.parent), last=last)
    command = [sys.executable, "-c", code, tmp_path / "qdrant"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    items, client = some_items(tmp_path, 1000), local_qdrant(tmp_path / "qdrant")
    (name,) = collections(client)
    assert client.count(name).count == last + 1
    assert Collection(client, "here", items, SETTINGS).about() is None, "it is not complete"
    with pytest.raises(ValueError, match="not found"):
        client.count(f"{name}-complete")

    monkeypatch.setattr(f"{MODULE}.PATIENCE", 0.0)
    index = qdrant_index(items, client)
    assert f"the build of {name} has stopped; continued at item {last}" in caplog.text
    assert (client.count(name).count, index.recall) == (1001, 1.0)
    query = items.queries()[0]
    best = torch.topk(items.vectors @ query, 20).indices
    assert index.search(query, 20).rows.tolist() == best.tolist()
    client.close()


def test_processes_that_start_at_once_build_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one is held in the middle until the second one waits for it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(f"{MODULE}.BATCH", 100)
    items, client = some_items(tmp_path, 500), local_qdrant()
    half, waiting = threading.Event(), threading.Event()
    write = Collection._write_record

    def held(self: Collection, rows: int, about: dict[str, object] | None = None) -> None:
        write(self, rows, about)
        if rows == 200:
            half.set()
            waiting.wait()

    monkeypatch.setattr(Collection, "_write_record", held)
    first = threading.Thread(target=qdrant_index, args=(items, client))
    first.start()
    half.wait()
    caplog.handler.addFilter(lambda record: waiting.set() or True if "waits for" in record.getMessage() else True)
    second = qdrant_index(items, client)
    first.join()
    assert caplog.text.count("writes 500 items") == 1
    assert len(second.search(items.queries()[0], 20).rows) == 20
    assert len(collections(client)) == 1


def test_two_processes_that_write_the_same_points_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one continued the build, since the first one had stopped for a while, but then completed it."""
    monkeypatch.setattr(f"{MODULE}.PATIENCE", 0.0)
    items, client = some_items(tmp_path, 500), local_qdrant()
    first = qdrant_index(items, client)
    second = Collection(client, "here", items, SETTINGS)
    second._write(0)
    assert len(first.search(items.queries()[0], 20).rows) == 20
    assert second.about() is None
    third = qdrant_index(items, client)
    second.complete(third.about)
    assert second.about() == third.about == first.about


def test_a_collection_that_another_program_changed_is_refused(tmp_path: Path) -> None:
    items, client = some_items(tmp_path, 500), local_qdrant()
    qdrant_index(items, client)
    (name,) = collections(client)
    client.delete(name, models.PointIdsList(points=[7]))
    with pytest.raises(
        InputError, match=f"here: collection {name} was changed, it has 500 points .* delete it in Qdrant"
    ):
        qdrant_index(items, client)


def test_a_collection_that_was_deleted_is_an_error_until_it_is_built_again(tmp_path: Path) -> None:
    items, client = some_items(tmp_path, 500), local_qdrant()
    index, query = qdrant_index(items, client), items.queries()[0]
    (name,) = collections(client)
    client.delete_collection(name)
    for call in (lambda: index.search(query, 20), index.check):
        with pytest.raises(IndexUnavailable, match=f"Qdrant has no collection {name}-complete; POST /reload"):
            call()
    candidates = torch.arange(0, 500, 2)
    assert len(index.search(query, 20, Within(candidates)).rows) == 20, "given rows are compared in the process"
    qdrant_index(items, client)
    assert len(index.search(query, 20).rows) == 20


def test_no_search_sees_a_collection_that_is_being_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, client = some_items(tmp_path, 500), local_qdrant()
    index, query = qdrant_index(items, client), items.queries()[0]
    client.delete_collection(collections(client)[0])
    monkeypatch.setattr(f"{MODULE}.BATCH", 100)
    write, answers = Collection._write_record, list[str]()

    def written(self: Collection, rows: int, about: dict[str, object] | None = None) -> None:
        write(self, rows, about)
        with pytest.raises(IndexUnavailable) as error:
            index.search(query, 20)
        answers.append(str(error.value))

    monkeypatch.setattr(Collection, "_write_record", written)
    qdrant_index(items, client)
    assert len(answers) == 6
    assert len(index.search(query, 20).rows) == 20


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "--index qdrant=: give the address of the server, --index qdrant=http://HOST:6333"),
        ("localhost:6333", "--index qdrant=localhost:6333: give the address"),
        ("http://localhost:port", "--index qdrant=http://localhost:port: give the address"),
        ("http://127.0.0.1:{port}", r"http://127.0.0.1:\d+: no answer of Qdrant \(.*refused\); start it, or correct"),
    ],
)
def test_a_wrong_or_unreachable_address_is_one_line(run_folder: Path, address: str, says: str) -> None:
    settings = IndexSettings(kind="qdrant", address=address.format(port=free_port()))
    with pytest.raises(InputError, match=says) as error:
        load_recommender(run_folder, settings)
    assert "\n" not in str(error.value)


def test_a_server_that_is_no_qdrant_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split(" port ")[1].split()[0]
            with pytest.raises(InputError, match=f"http://127.0.0.1:{port}: ") as error:
                load_recommender(run_folder, IndexSettings(kind="qdrant", address=f"http://127.0.0.1:{port}"))
        finally:
            server.kill()
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_one_line(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(InputError, match=r"--index qdrant needs the extra 'qdrant' .*: pip install 'msm4sr\[qdrant\]'"):
        load_recommender(run_folder, IndexSettings(kind="qdrant", address="http://localhost:6333"))


def test_a_copy_of_a_run_has_the_same_collection(run_folder: Path, tmp_path: Path) -> None:
    names = set()
    for folder in (run_folder, shutil.copytree(run_folder, tmp_path / "copy")):
        recommender = load_recommender(folder)
        items = replace(some_items(tmp_path, 10), vectors=recommender.catalogue.tensors.item_vectors)
        names.add(Collection(local_qdrant(), "here", items, SETTINGS).name)
    assert len(names) == 1
