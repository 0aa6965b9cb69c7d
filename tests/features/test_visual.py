from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image

from msm4sr.data.images import BrokenImage
from msm4sr.errors import InputError
from msm4sr.features.backends import cosines
from msm4sr.features.efficientnet import EfficientNetLite0, squash
from msm4sr.features.keywords import LabelTagger, imagenet_labels, scored_words
from msm4sr.features.visual import (
    IMAGE_ENCODERS,
    Clip,
    ImageEncoder,
    TransformersVision,
    encode_images,
    find_image_encoder,
)


def load_image_encoder(name: str, device: str = "auto") -> ImageEncoder:
    return find_image_encoder(name)(name, device=device)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0(device="cpu")


def drawn(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


# --- EfficientNet-Lite0


def test_pooled_layer_and_classifier_agree_with_the_network_itself(network: EfficientNetLite0) -> None:
    """The ONNX graph, its scaling of pixels included, against the package's own forward in torch."""
    import torch

    images = [drawn(0), drawn(1), Image.new("RGB", (30, 500), (255, 127, 0))]
    pooled = network.encode(images)
    assert network.backend == "onnxruntime fp32 on cpu"
    assert pooled.shape == (3, 1280)
    assert pooled.dtype == np.float32
    pixels = np.stack([squash(image, 224) for image in images])
    assert np.allclose(pooled, network.encode_torch(pixels), atol=1e-4)
    scaled = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = network._network(scaled).numpy()
    weight, bias = network.label_weights()
    assert np.allclose(pooled @ weight.T + bias, logits, atol=1e-3)


def test_labels_come_in_the_order_of_the_logits(network: EfficientNetLite0) -> None:
    tagger = LabelTagger(*network.label_weights())
    pooled = network.encode([drawn(0)])
    weight, bias = network.label_weights()
    best = imagenet_labels()[int((pooled @ weight.T + bias).argmax())]
    words = scored_words(tagger, pooled, 15)[0]
    assert words[0][0] == best
    assert len(set(words[0])) == 15


# --- any vision model of transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "vit": tiny_models.save_vit(root / "vit"),
        "classifier": tiny_models.save_vit(root / "classifier", pooler=False),
        "resnet": tiny_models.save_resnet(root / "resnet"),
        "clip": tiny_models.save_clip(root / "clip"),
        "bert": tiny_models.save_bert(root / "bert"),
    }


def vit_pooled(folder: Path, pixels: Any) -> Any:
    from transformers import ViTModel

    return ViTModel.from_pretrained(folder).eval()(pixel_values=pixels).pooler_output


def classifier_pooled(folder: Path, pixels: Any) -> Any:
    """The input of the last layer of the classifier."""
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder).eval()
    seen: list[Any] = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(pixel_values=pixels)
    return seen[0]


def resnet_pooled(folder: Path, pixels: Any) -> Any:
    from transformers import ResNetModel

    return ResNetModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state.mean(dim=(2, 3))


def clip_pooled(folder: Path, pixels: Any) -> Any:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


@pytest.mark.parametrize(
    ("name", "pooled", "dim"),
    [
        ("vit", vit_pooled, 32),
        ("classifier", classifier_pooled, 32),
        ("resnet", resnet_pooled, 24),
        ("clip", clip_pooled, 24),
    ],
)
def test_any_vision_model_gives_what_it_calls_pooled(
    folders: dict[str, Path], name: str, pooled: Callable[..., Any], dim: int
) -> None:
    import torch
    from transformers import AutoImageProcessor

    encoder = load_image_encoder(str(folders[name]), device="cpu")
    images = [drawn(seed) for seed in range(6)]
    vectors = np.concatenate([encoder.encode(images[:4]), encoder.encode(images[4:])])
    assert vectors.shape == (6, dim) == (6, encoder.dim)
    assert vectors.dtype == np.float32
    processor = AutoImageProcessor.from_pretrained(folders[name], backend="pil")
    with torch.inference_mode():
        expected = pooled(folders[name], processor(images=images, return_tensors="pt")["pixel_values"]).numpy()
    assert cosines(expected, vectors).min() > 0.99
    centred = expected - expected.mean(axis=0)
    assert cosines(centred, vectors - vectors.mean(axis=0)).mean() > 0.98  # their differences agree too
    assert encoder.backend in {"torch fp32 on cpu", "torch bf16 autocast on cpu"}
    assert encoder.fingerprint == TransformersVision.fingerprint_of(str(folders[name]))


def test_a_machine_without_bf16_gives_the_vectors_of_fp32(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoImageProcessor

    monkeypatch.setattr("msm4sr.features.backends.native_bf16", lambda device: False)
    encoder = TransformersVision(str(folders["vit"]), device="cpu")
    assert encoder.backend == "torch fp32 on cpu"
    processor = AutoImageProcessor.from_pretrained(folders["vit"], backend="pil")
    with torch.inference_mode():
        expected = vit_pooled(folders["vit"], processor(images=[drawn(0)], return_tensors="pt")["pixel_values"])
    assert np.allclose(encoder.encode([drawn(0)]), expected.numpy(), atol=1e-5)


def test_bf16_that_does_not_agree_is_not_used(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msm4sr.features.backends.native_bf16", lambda device: True)
    monkeypatch.setattr("msm4sr.features.backends.agrees", lambda exact, other: False)
    assert TransformersVision(str(folders["vit"]), device="cpu").backend == "torch fp32 on cpu"


@pytest.mark.parametrize("name", ["vit", "resnet", "clip"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5, 3), (1, 7), (20_000, 1), (1, 20_000)])
def test_images_of_any_shape_have_finite_vectors(folders: dict[str, Path], name: str, size: tuple[int, int]) -> None:
    encoder = load_image_encoder(str(folders[name]))
    red, blue = encoder.encode([Image.new("RGB", size, "red"), Image.new("RGB", size, "blue")])
    assert np.isfinite([red, blue]).all()
    assert not np.allclose(red, blue)
    square = encoder.encode([Image.new("RGB", (64, 64), "red")])  # one colour: the same vector in every shape
    assert cosines(square, red[None])[0] > 0.999


def test_the_middle_of_a_long_image_is_what_a_crop_would_show(folders: dict[str, Path]) -> None:
    """Of 3,000 x 100 pixels the processor sees the same middle, whether the rest is cut off before or after."""
    encoder = TransformersVision(str(folders["clip"]))
    long = drawn(0, 3000, 100)
    before = encoder.encode([long])
    encoder._crops = False
    assert cosines(before, encoder.encode([long]))[0] > 0.999


def test_a_model_of_another_kind_is_an_input_error(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in (str(folders["bert"]), str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(InputError, match=name):
            load_image_encoder(name)


def test_missing_weights_are_an_input_error_and_not_random(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["resnet"], tmp_path / "holed")
    weights = load_file(tmp_path / "holed" / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("convolution.weight")))
    save_file(weights, tmp_path / "holed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of its weights"):
        load_image_encoder(str(tmp_path / "holed"))


def test_a_device_that_is_not_here_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no device 'cuda:99'"):
        EfficientNetLite0(device="cuda:99")


# --- many images


class Means:
    """An encoder with known vectors: the mean colour."""

    name = fingerprint = backend = "means"
    dim, size = 3, 8

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_keep_their_order_and_broken_ones_their_place(batch_size: int) -> None:
    images: list[Image.Image | BrokenImage] = [Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(20)]
    images[7] = images[8] = broken = BrokenImage("damaged")
    done: list[int] = []
    results = list(encode_images(Means(), iter(images), batch_size, done.append))
    assert results.pop(8) is broken
    assert results.pop(7) is broken
    expected = [number for number in range(20) if number not in {7, 8}]
    assert [int(vector[0]) for vector in results if isinstance(vector, np.ndarray)] == expected
    assert sum(done) == 20
    assert max(done) == min(batch_size, 20)


def test_no_image_gives_no_vector_and_broken_ones_need_no_encoder() -> None:
    assert list(encode_images(Means(), [])) == []
    broken = [BrokenImage("one"), BrokenImage("two")]
    assert list(encode_images(Means(), broken)) == broken


def test_images_are_read_a_few_batches_ahead_and_no_further() -> None:
    read = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal read
        while True:
            read += 1
            yield Image.new("RGB", (2, 2))

    vectors = encode_images(Means(), endless(), batch_size=4)
    for _ in range(10):
        next(vectors)
    assert read <= 10 + 5 * 4
    vectors.close()


def test_two_batches_are_encoded_at_once() -> None:
    both = threading.Barrier(2, timeout=60)

    class Meeting(Means):
        def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
            both.wait()  # passes only when another thread is here too
            return super().encode(images)

    assert len(list(encode_images(Meeting(), [Image.new("RGB", (2, 2))] * 4, batch_size=2))) == 4


def test_an_encoders_error_is_raised_not_swallowed() -> None:
    class Failing(Means):
        def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(encode_images(Failing(), [Image.new("RGB", (2, 2))] * 9, batch_size=2))


def test_encoders_are_found_by_name_else_read_as_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_image_encoder("efficientnet-lite0") is EfficientNetLite0
    assert find_image_encoder("clip") is Clip
    assert Clip.source("clip") == "openai/clip-vit-base-patch32"
    assert find_image_encoder("folder") is TransformersVision
    assert find_image_encoder("folder", clip=True) is Clip
    monkeypatch.setitem(IMAGE_ENCODERS._entries, "means", Means)
    assert find_image_encoder("means") is Means
