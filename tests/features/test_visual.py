from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msm4sr.features.images import BrokenImage
from msm4sr.features.keywords import LabelTagger, best_words, imagenet_labels
from msm4sr.features.visual import EfficientNetLite0, encode_pictures, prepare


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0()


def drawn(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 70))


def test_pixels_are_scaled_as_the_network_was_trained() -> None:
    prepared = prepare(Image.new("RGB", (30, 500), (255, 127, 0)), 224)
    assert prepared.shape == (224, 224, 3)
    assert np.allclose(prepared[0, 0], [1.0, 0.0, -127 / 128])


def test_pooled_layer_and_classifier_agree_with_the_network_itself(network: EfficientNetLite0) -> None:
    import torch

    pictures = [drawn(0), drawn(1)]
    pooled = network.encode(pictures)
    assert pooled.shape == (2, 1280)
    pixels = np.stack([prepare(picture, 224) for picture in pictures]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        logits = network._network(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
    weight, bias = network.label_weights()
    assert np.allclose(pooled @ weight.T + bias, logits, atol=1e-3)


def test_broken_pictures_keep_their_place_among_the_vectors(network: EfficientNetLite0) -> None:
    broken = BrokenImage("damaged")
    done: list[int] = []
    results = encode_pictures(network, iter([drawn(0), broken, drawn(1)]), batch_size=2, advance=done.append)
    assert results[1] is broken
    assert np.allclose(results[2], network.encode([drawn(1)])[0], atol=1e-4)
    assert done == [2, 1]


def test_labels_come_in_the_order_of_the_logits(network: EfficientNetLite0) -> None:
    tagger = LabelTagger(*network.label_weights())
    labels = list(dict.fromkeys(imagenet_labels()))
    pooled = network.encode([drawn(0)])
    weight, bias = network.label_weights()
    best = imagenet_labels()[int((pooled @ weight.T + bias).argmax())]
    words = best_words(tagger, pooled, labels, 15)
    assert words[0][0] == best
    assert len(set(words[0])) == 15
