"""The backend that a frozen encoder runs on: a device, and bf16 or fp32.

bf16 is about twice as fast as fp32 on hardware that supports it, and is used if it agrees with fp32: an encoder runs
a fixed probe in both when it is loaded. The choice depends on the model and the machine alone, never on the data or on
a clock, so that a resumed run uses the same backend.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.errors import InputError

if TYPE_CHECKING:
    import torch

# Cosines to the fp32 vectors that another backend must reach on the probe.
MEAN_COSINE = 0.999
WORST_COSINE = 0.99


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name: "auto" (a GPU if there is one, else the CPU) or one that torch knows ("cpu", "cuda:1")."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} found; use 'auto'") from error


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16; emulated, it is slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # The oldest supported torch lacks get_capabilities; it uses fp32.
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def cosines(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each row of `exact` to the same row of `other`, float64 [rows]."""
    a, b = exact.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    values: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
    return values


def agrees(exact: np.ndarray, other: np.ndarray) -> bool:
    """Whether `other` may replace `exact`: mean and worst cosine reach the bounds above."""
    values = cosines(exact, other)
    return bool(values.mean() >= MEAN_COSINE and values.min() >= WORST_COSINE)


def backend_name(device: torch.device, bf16: bool) -> str:
    """The name for the manifest, such as "torch bf16 autocast on cpu"."""
    return f"torch {'bf16 autocast' if bf16 else 'fp32'} on {device.type}"


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; to a GPU without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class FrozenModel(ABC):
    """A model from a local folder or the hub, in bf16 if that agrees with fp32 on a probe."""

    @classmethod
    def source(cls, name: str) -> str:
        """The folder or hub name that the model is loaded from. Raises InputError for a path that is not a folder."""
        if name.startswith(("/", "./", "../")) and not Path(name).is_dir():
            raise InputError(f"model folder {name!r} does not exist")
        return name

    @classmethod
    def fingerprint_of(cls, name: str) -> str:
        """The sha256 of the files of a model folder, so that new weights are noticed; a hub name is its own."""
        source = cls.source(name)
        folder = Path(source)
        if not folder.is_dir():
            return source
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"}:
                digest.update(str(path.relative_to(folder)).encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _choose_backend(self, name: str, device: torch.device, probe: Sequence[Any]) -> None:
        """Encode the probe in fp32 and bf16, and set the attributes of an encoder. Call it when the model is loaded."""
        self.name, self.fingerprint = name, self.fingerprint_of(name)
        exact = self._encode(probe, bf16=False)
        self.dim = int(exact.shape[1])
        self._bf16 = native_bf16(device) and agrees(exact, self._encode(probe, bf16=True))
        self.backend = backend_name(device, self._bf16)

    @abstractmethod
    def _encode(self, inputs: Sequence[Any], bf16: bool) -> np.ndarray:
        """float32 [inputs, dim]."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from drawing a bar for every model and from listing unused weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of its bars, in a notebook without ipywidgets
        from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
