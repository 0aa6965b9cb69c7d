"""Models on the Hugging Face hub, against a local server: upload, download, and what is said when that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_stub import READER, WRITER, Hub, running_hub

from msm4sr.errors import InputError
from msm4sr.models import hub as hub_module
from msm4sr.models.base import Inputs, Model
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.registry import from_pretrained

Call = Callable[..., str]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server
    assert server.unknown == [], "the stub lacks endpoints"


@pytest.fixture
def call(hub: Hub, tmp_path: Path) -> Call:
    """Evaluate an expression in a new process with this hub: what it prints, or the message of its InputError.

    `folder` is a folder for it, `model_folder` and `push_to_hub` are imported.
    """

    def evaluate(expression: str, token: str = "", endpoint: str = hub.url, **variables: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
        kept |= home | ({"HF_TOKEN": token} if token else {}) | variables
        code = (
            "from pathlib import Path\nfrom msm4sr.errors import InputError\n"
            "from msm4sr.models.hub import model_folder, push_to_hub\n"
            f"try:\n    print({expression})\nexcept InputError as error:\n    print('InputError:', error)\n"
        )
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=kept, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return evaluate


def stored(folder: Path) -> Model:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=8), Inputs(5)).eval()
    model.save_pretrained(folder)
    return model


def test_a_model_is_uploaded_and_loaded_by_its_name(hub: Hub, call: Call, tmp_path: Path) -> None:
    model = stored(tmp_path / "model")
    (tmp_path / "model" / "items.json").write_text("{}")
    (tmp_path / "model" / "index.usearch").write_text("derived from the model")
    assert call("push_to_hub('model', 'shop/sasrec')", WRITER) == f"{hub.url}/shop/sasrec"
    files = hub.repositories["shop/sasrec"]
    assert set(files) - {".gitattributes"} == {"config.json", "model.safetensors", "items.json", "README.md"}
    assert files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    # a stranger's repository may have anything in it
    files |= {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit", "model/config.json": b"{}"}
    hub.served.clear()
    folder = Path(call("model_folder('shop/sasrec')"))
    assert sorted(hub.served) == ["README.md", "config.json", "items.json", "model.safetensors"]
    again = from_pretrained(folder)
    assert type(again) is SASRec
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    hub.served.clear()
    assert call("model_folder('shop/sasrec')") == str(folder)
    assert hub.served == [], "the files are in the cache"
    assert call("model_folder('shop/sasrec')", endpoint="http://127.0.0.1:9") == str(folder), "also without network"
    assert call("push_to_hub('model', 'shop/sasrec')", WRITER) == f"{hub.url}/shop/sasrec", "again, for a new version"


@pytest.mark.slow
def test_every_way_to_load_a_model_knows_the_hub(hub: Hub, call: Call, tmp_path: Path) -> None:
    stored(tmp_path / "model")
    hub.repositories["shop/loaded"] = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    load = "type(__import__('msm4sr').from_pretrained('shop/loaded')).__name__"
    assert call(load) == "SASRec"
    ours = "__import__('msm4sr.models.baselines.sasrec', fromlist='x').SASRec"
    assert call(f"{ours}.from_pretrained('shop/loaded').n_items") == "5"


def test_a_local_folder_takes_precedence_and_a_path_is_local(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.repositories["runs/shop"] = {"config.json": b"{}", "model.safetensors": b""}
    (tmp_path / "runs" / "shop").mkdir(parents=True)
    assert call("model_folder('runs/shop')") == "runs/shop"
    assert call("model_folder(Path('runs/other'))") == "runs/other"
    assert call("model_folder('runs/shop/model')") == "runs/shop/model"
    assert call("model_folder('model')") == "model"


def test_a_private_model_needs_a_token(hub: Hub, call: Call) -> None:
    hub.repositories["shop/private"] = {"config.json": b"{}", "model.safetensors": b""}
    hub.private.add("shop/private")
    assert call("model_folder('shop/private')") == (
        "InputError: shop/private: there is neither a folder of that name nor a model on the hub; for a private one "
        "run `hf auth login`, or set HF_TOKEN"
    )
    assert Path(call("model_folder('shop/private')", READER)).is_dir()


def test_an_unknown_or_incomplete_repository_is_one_message(hub: Hub, call: Call) -> None:
    for token in ("", READER):
        message = call("model_folder('shop/unknown')", token)
        assert message.startswith("InputError: shop/unknown: there is neither a folder of that name nor a model on the")
    hub.repositories["shop/incomplete"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    assert call("model_folder('shop/incomplete')") == (
        "InputError: shop/incomplete: no model of msm4sr: model.safetensors is missing in this repository of the hub"
    )


def test_without_network_the_address_is_named(call: Call, tmp_path: Path) -> None:
    message = call("model_folder('shop/sasrec')", endpoint="http://127.0.0.1:9")
    assert message.startswith("InputError: shop/sasrec: the hub (http://127.0.0.1:9) cannot be reached (")
    assert message.endswith("; check the network, or give a folder")
    stored(tmp_path / "model")
    message = call("push_to_hub('model', 'shop/sasrec')", WRITER, endpoint="http://127.0.0.1:9")
    assert message.startswith("InputError: shop/sasrec: the hub (http://127.0.0.1:9) cannot be reached (")
    message = call("model_folder('shop/sasrec')", HF_HUB_OFFLINE="1")
    assert "cannot be reached" in message


def test_an_upload_that_is_not_permitted_is_one_message(call: Call, tmp_path: Path) -> None:
    stored(tmp_path / "model")
    assert call("push_to_hub('model', 'shop/new')") == (
        "InputError: push_to_hub: no token for the hub; run `hf auth login`, or set HF_TOKEN"
    )
    for token, code in (("hf_wrong", 401), (READER, 403)):
        assert call("push_to_hub('model', 'shop/new')", token) == (
            f"InputError: shop/new: the token of the hub does not permit this ({code}); run `hf auth login`, or set "
            "HF_TOKEN"
        )
    assert call("push_to_hub('runs', 'shop/new')", WRITER) == (
        "InputError: runs: no model here (config.json is missing)"
    )
    assert "'new' is no name of a repository; give 'organisation/name'" in call("push_to_hub('model', 'new')", WRITER)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # its import fails
    with pytest.raises(InputError, match=r"shop/sasrec: .*not installed: pip install 'msm4sr\[hub\]'"):
        hub_module.model_folder("shop/sasrec")
