"""Image encoders: the pooled layer of a vision network (the ResNet row of the paper), and CLIP.

The default is EfficientNet-Lite0 (module `efficientnet`); any vision model of transformers can replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from msm4sr.data.images import BrokenImage
from msm4sr.errors import InputError, first_line
from msm4sr.features.backends import FrozenModel, choose_device, move, quiet_loading
from msm4sr.features.images import in_threads
from msm4sr.registry import Registry

if TYPE_CHECKING:
    import torch

CALLERS = 2  # threads that call an encoder at once: one prepares pixels while the network works for the other
MAX_ASPECT = 16  # long side by short side; see `TransformersVision`


class ImageEncoder(Protocol):
    """Turns images into vectors; `name`, `fingerprint` (of the weights) and `backend` go into the manifest."""

    name: str
    fingerprint: str
    dim: int
    size: int  # side in pixels that the network sees
    backend: str

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB images of any size -> float32 [images, dim]. Called by several threads at once."""
        ...


@runtime_checkable
class WordEncoder(Protocol):
    """What a tagger needs beyond an image encoder: words in the space of the images."""

    name: str

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        """float32 [words, dim], unit length."""
        ...


class ImageEncoderClass(Protocol):
    """What is registered under a name: a class, usually."""

    def __call__(self, name: str, *, device: str) -> ImageEncoder: ...

    def fingerprint_of(self, name: str) -> str:
        """The fingerprint of the encoder, without loading it."""
        ...


IMAGE_ENCODERS = Registry[ImageEncoderClass]("image encoder", "msm4sr.image_encoders", ["msm4sr.features.efficientnet"])


def find_image_encoder(name: str, clip: bool = False) -> ImageEncoderClass:
    """The encoder registered under `name`, else the one of transformers folders and hub names, with `clip` of CLIPs."""
    return IMAGE_ENCODERS.get(name, Clip if clip else TransformersVision)


class TransformersVision(FrozenModel):
    """The pooled output of any transformers vision model (ViT, ResNet, DINOv2, the image encoder of a CLIP, ...).

    The processor of the model prepares the images. "Pooled" is what the model calls so: the projected image vector of
    a CLIP; the first token if the files lack the weights of the pooling layer (as those of a classifier often do, which
    classifies by that token); the mean if there is no pooling at all. bf16 where it agrees; see `backends`.

    A processor that scales the short side and then crops the centre would enlarge an image of 20,000 x 1 pixels to a
    gigabyte: an image longer than `MAX_ASPECT` times its short side is cropped to its middle first.
    """

    role, built_in = "vision network", "efficientnet-lite0"

    def __init__(self, name: str, device: str = "auto") -> None:
        role = self.role
        self._device = choose_device(device)
        source = self.source(name)
        local = Path(source).is_dir()
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModel

            with quiet_loading():
                model, report = AutoModel.from_pretrained(source, local_files_only=local, output_loading_info=True)
            # The default backend of transformers 5 needs torchvision.
            self._processor = AutoImageProcessor.from_pretrained(source, local_files_only=local, backend="pil")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"{role} {name!r} cannot be loaded: {first_line(error)}. Give {self.built_in!r} (built in), the "
                "folder of a transformers model with its image processor, or a hub name (needs the network)"
            ) from error
        absent = sorted(report["missing_keys"])
        if others := [key for key in absent if "pooler" not in key]:
            raise InputError(f"{role} {name!r}: its files lack {len(others)} of its weights, for example {others[0]}")
        self._has_pooler = not absent
        self.model = model.eval().to(self._device, memory_format=torch.channels_last)
        sides = _sides(getattr(self._processor, "size", None))
        self.size = max(sides.values(), default=224)
        self._crops = "shortest_edge" in sides
        self._choose_backend(name, self._device, [_probe_image(seed) for seed in range(4)])

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._encode(images, self._bf16)

    def _encode(self, images: Sequence[Image.Image], bf16: bool) -> np.ndarray:
        import torch

        if self._crops:
            images = [_middle(image) for image in images]
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]  # [B, 3, H, W]
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            pixels = move(pixels.contiguous(memory_format=torch.channels_last), self._device)
            vectors: np.ndarray = self._pooled(pixels).float().cpu().numpy()
        return vectors

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            return _projected(self.model.get_image_features(pixel_values=pixels))
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._has_pooler:
            flat: torch.Tensor = pooled.flatten(1)  # a ResNet's is [B, D, 1, 1]
            return flat
        hidden: torch.Tensor = output.last_hidden_state  # [B, D, H, W] or [B, tokens, D]
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if not self._has_pooler else hidden.mean(dim=1)


@IMAGE_ENCODERS.register("clip")
class Clip(TransformersVision):
    """A CLIP model (2103.00020): images and words as unit vectors of one space.

    "clip" is openai/clip-vit-base-patch32, the model of the paper, if the hub can be reached. A word is encoded alone,
    without a sentence around it (equation 2).
    """

    role, built_in = "image tagger", "offline"
    batch_words = 256

    def __init__(self, name: str, device: str = "auto") -> None:
        from transformers import AutoTokenizer

        super().__init__(name, device)
        if not hasattr(self.model, "get_text_features"):
            kind = self.model.config.model_type
            raise InputError(f"image tagger {name!r} is a {kind} model, which cannot encode words. Give a CLIP model")
        source = self.source(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
        except (OSError, ValueError) as error:
            raise InputError(f"image tagger {name!r}: no tokenizer in its files ({first_line(error)})") from error

    @classmethod
    def source(cls, name: str) -> str:
        return "openai/clip-vit-base-patch32" if name == "clip" else super().source(name)

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return unit(super().encode(images))

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        import torch

        longest = self.model.config.text_config.max_position_embeddings
        vectors = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(words), self.batch_words):
            batch = list(words[start : start + self.batch_words])
            inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            inputs = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                output = self.model.get_text_features(**inputs)
            vectors.append(unit(_projected(output).float().cpu().numpy()))
        return np.concatenate(vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors scaled to unit length, float32."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(np.float32, copy=False)


def _projected(output: Any) -> torch.Tensor:
    """The projected vectors of a CLIP: transformers 5 wraps them in an output object, 4 does not."""
    tensor: torch.Tensor = getattr(output, "pooler_output", output)
    return tensor


def _sides(size: Any) -> dict[str, int]:
    """The sides in pixels that the size of a processor names: a mapping, a number for the short side, or None."""
    named = {} if size is None else {"shortest_edge": size} if isinstance(size, int) else dict(size)
    return {key: named[key] for key in ("height", "width", "shortest_edge") if named.get(key)}


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    keep = MAX_ASPECT * min(width, height)
    if max(width, height) <= keep:
        return image
    left, top = max(0, width - keep) // 2, max(0, height - keep) // 2
    return image.crop((left, top, left + min(width, keep), top + min(height, keep)))


def _probe_image(seed: int) -> Image.Image:
    """A blurred patchwork with edges, areas and colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4 + 4 * seed, 6 + 4 * seed, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)


def encode_images(
    encoder: ImageEncoder,
    images: Iterable[Image.Image | BrokenImage],
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[np.ndarray | BrokenImage]:
    """Yield one vector [dim] per image, in order, as they are made; a broken image stays its `BrokenImage`.

    `images` is read a few batches ahead, so that an iterator that decodes in threads works while the network does.
    `advance(n)` is called after each n images.
    """
    source = iter(images)
    batches = iter(lambda: list(islice(source, batch_size)), [])
    for batch in in_threads(partial(_encode_batch, encoder), batches, CALLERS, ahead=CALLERS + 1):
        yield from batch
        advance(len(batch))


def _encode_batch(encoder: ImageEncoder, batch: list[Image.Image | BrokenImage]) -> list[np.ndarray | BrokenImage]:
    good = [image for image in batch if not isinstance(image, BrokenImage)]
    vectors = iter(encoder.encode(good)) if good else iter(())
    return [image if isinstance(image, BrokenImage) else next(vectors) for image in batch]
