"""Tensors on disk: what is read is what was written, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.digests import array_digest
from msm4sr.errors import InputError
from msm4sr.tensor_files import load_tensors, read_about, save_tensors, tensor_digest

TENSORS = {
    "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(2.5),
    "flags": torch.tensor([True, False]),
    "one of a row": torch.arange(4)[None].expand(1, 4)[:, :1].t(),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


def test_tensors_of_any_type_and_layout_come_back(tmp_path: Path) -> None:
    shared = TENSORS["transposed"]
    save_tensors(TENSORS | {"shared": shared}, tmp_path / "x.safetensors", {"epoch": 2})
    found = load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys() | {"shared"}
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    assert read_about(tmp_path / "x.safetensors") == {"epoch": 2}


@given(data=st.data())
def test_a_changed_byte_anywhere_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("x") / "x.safetensors"
    save_tensors(TENSORS, file, {"epoch": 2})
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        found = load_tensors(file)
    except InputError as error:
        assert str(error).startswith(f"{file}: damaged (")  # noqa: PT017 (blanks of the header may change unnoticed)
    else:
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
        assert read_about(file) == {"epoch": 2}


def test_a_digest_is_of_the_content() -> None:
    assert tensor_digest(torch.arange(6).reshape(2, 3).t()) == tensor_digest(torch.arange(6).reshape(2, 3).t().clone())
    assert tensor_digest(torch.arange(3)) != tensor_digest(torch.arange(3).int())
    assert tensor_digest(torch.zeros(2)) != tensor_digest(torch.zeros(1), torch.zeros(1))


def test_other_content_or_other_parts_have_another_digest() -> None:
    assert array_digest(b"ab", b"c") == array_digest(b"ab", b"c")
    assert len({array_digest(b"ab", b"c"), array_digest(b"a", b"bc"), array_digest(b"abc"), array_digest(b"abd")}) == 4
    assert array_digest(np.arange(3), b"") != array_digest(np.arange(4), b"")
    assert array_digest(np.arange(6).reshape(2, 3).T) != array_digest(np.arange(6).reshape(2, 3))
    assert array_digest(np.zeros((0, 3)))


@given(data=st.data())
def test_a_changed_byte_of_the_description_is_refused_without_reading_the_tensors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("x") / "x.safetensors"
    save_tensors(TENSORS, file, {"epoch": 2})
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, 7 + int.from_bytes(content[:8], "little")))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        assert read_about(file) == {"epoch": 2}
    except InputError as error:
        assert str(error).startswith(f"{file}: damaged (")  # noqa: PT017 (other bytes of the header may change)
