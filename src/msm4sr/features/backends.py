"""The backend that a frozen encoder runs on: a device, and bf16 or fp32.

bf16 is about twice as fast as fp32 on hardware that supports it, and is used where it agrees with fp32: an encoder runs
a fixed probe in both when it is loaded. The choice depends on the model and the machine alone, never on the data or on
a clock, so that a resumed run uses the same backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.errors import InputError

if TYPE_CHECKING:
    import torch

# Cosines to the fp32 vectors that another backend must reach on the probe.
MEAN_COSINE = 0.999
WORST_COSINE = 0.99


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name: "auto" (a GPU if there is one, else the CPU) or one that torch knows ("cpu", "cuda:1").

    Raises:
        InputError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here; use 'auto'") from error


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16; emulated, it is slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # The oldest torch that is allowed lacks get_capabilities: fp32 there.
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
