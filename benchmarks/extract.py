"""Extraction: its speed, where the time goes, a plain loop for comparison, and the backends of each encoder.

    python benchmarks/extract.py --data DATA/ml-1m                 # some minutes on two cores
    python benchmarks/extract.py --data DATA/ml-1m --items 1000 --compile

Four measurements with the default encoders on the first --items items of a prepared folder:

backends  each encoder in torch fp32 (the reference), torch bf16 autocast, torch.compile (--compile: a minute of
          compiling each) and ONNX Runtime fp32, on the same batches; cosines to the reference, which must have a mean
          of .999 and a minimum of .99. The package's choice is marked.
extract   the real extraction into an empty folder, texts and images separately, without loading the encoders.
plain     the loop that one would write with the same libraries: one `encode` call per item; one image at a time,
          opened, resized and through the network in torch.
bare      the encoder only, on tokenized and length-sorted batches, on prepared pixels.

Rates are per second and, because other processes disturb the clock, per CPU second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.data.images import BrokenImage
from msm4sr.features.backends import agrees, cosines
from msm4sr.features.efficientnet import EfficientNetLite0, squash
from msm4sr.features.extract import extract_features
from msm4sr.features.images import ImageFiles, in_threads
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.text import MiniLM, TransformerSentenceEncoder, item_sentences
from msm4sr.features.visual import CALLERS

BATCH = 16
SETTINGS = FeatureSettings.model_validate({"visual": {"kind": "pooled"}})


@dataclass(frozen=True)
class Timed:
    clock: float
    cpu: float
    result: Any = None

    def rate(self, n: int, unit: str) -> str:
        return f"{n / self.clock:7.0f} {unit}/s {n / self.cpu:7.0f} per CPU second"


def timed(function: Callable[[], Any]) -> Timed:
    clock, cpu = time.perf_counter(), time.process_time()
    result = function()
    return Timed(time.perf_counter() - clock, time.process_time() - cpu, result)


def print_backend(
    name: str, run: Callable[[], np.ndarray], reference: np.ndarray | None, unit: str, path: str
) -> np.ndarray:
    run()  # warm up
    once = timed(run)
    vectors: np.ndarray = once.result
    line = f"  {name:24} {once.rate(len(vectors), unit)}"
    if reference is not None:
        near = cosines(reference, vectors)
        line += f"  cosine {near.mean():.5f}, worst {near.min():.5f}"
        line += "" if agrees(reference, vectors) else "  (too far)"
    print(line + ("  <- selected" if path.startswith(name) else ""), flush=True)
    return vectors


# --- texts


def text_backends(encoder: TransformerSentenceEncoder, sentences: Sequence[str], with_compile: bool) -> None:
    print(f"backends for {len(sentences)} sentences, {encoder.name}")

    def torch_backend(bf16: bool) -> Callable[[], np.ndarray]:
        return lambda: encoder._encode(sentences, bf16)

    exact = print_backend("torch fp32", torch_backend(False), None, "sentences", encoder.backend)
    print_backend("torch bf16 autocast", torch_backend(True), exact, "sentences", encoder.backend)
    transformer, *after = list(encoder._model)
    if with_compile:
        uncompiled = transformer.model
        transformer.model = torch.compile(uncompiled, dynamic=True)
        print_backend("torch.compile fp32", torch_backend(False), exact, "sentences", encoder.backend)
        print_backend("torch.compile bf16", torch_backend(True), exact, "sentences", encoder.backend)
        transformer.model = uncompiled
    export = timed(lambda: export_text(transformer.model, next(encoder._batches(sentences))[1]))
    print(f"  (export to ONNX: {export.clock:.1f} s)")

    def onnx_backend() -> np.ndarray:
        vectors = np.zeros((len(sentences), encoder.dim), np.float32)
        for rows, features in encoder._batches(sentences):
            inputs = {key: features[key].numpy() for key in ("input_ids", "attention_mask")}
            output = {**features, "token_embeddings": torch.from_numpy(export.result.run(None, inputs)[0])}
            for module in after:
                output = module(output)
            vectors[rows] = output["sentence_embedding"].numpy()
        return vectors

    print_backend("onnxruntime fp32", onnx_backend, exact, "sentences", encoder.backend)


class TokenStates(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def export_text(model: torch.nn.Module, features: dict[str, Any]) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {0: "sentences", 1: "tokens"}
        torch.onnx.export(
            TokenStates(model).eval(),
            (features["input_ids"].clone(), features["attention_mask"].clone()),
            file.name,
            dynamo=False,  # the newer exporter is three times slower, and so is its graph
            input_names=["input_ids", "attention_mask"],
            output_names=["states"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "states": axes},
        )
        return onnx_session(file.name)


def onnx_session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# --- images


def image_backends(network: EfficientNetLite0, pixels: np.ndarray, with_compile: bool) -> None:
    print(f"backends for {len(pixels)} images, {network.name}")
    model = network._network

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), BATCH):
            yield pixels[start : start + BATCH]

    def in_torch(run: Callable[[torch.Tensor], torch.Tensor], bf16: bool = False) -> Callable[[], np.ndarray]:
        def backend() -> np.ndarray:
            parts = []
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                for batch in batches():
                    scaled = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - 127) / 128
                    parts.append(run(scaled).mean(dim=(2, 3)).float().numpy())
            return np.concatenate(parts)

        return backend

    exact = print_backend("torch fp32", in_torch(model.extract_features), None, "images", network.backend)
    print_backend("torch bf16 autocast", in_torch(model.extract_features, True), exact, "images", network.backend)
    if with_compile:
        compiled = torch.compile(model.extract_features)
        print_backend("torch.compile fp32", in_torch(compiled), exact, "images", network.backend)
    print_backend("onnxruntime fp32", lambda: bare_images(network, pixels), exact, "images", network.backend)


def bare_images(network: EfficientNetLite0, pixels: np.ndarray) -> np.ndarray:
    """As in the package: two calls at once, each with half of the threads."""
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    run = network._session.run
    parts = in_threads(lambda batch: run(None, {"pixels": batch})[0], batches, CALLERS, CALLERS + 1)
    return np.concatenate(list(parts))


# --- the real extraction, and the plain loops


def without(dataset: Dataset, *columns: str) -> Dataset:
    """The same items with null in these columns."""
    nothing = [pl.lit(None, dataset.items.schema[name]).alias(name) for name in columns]
    return replace(dataset, items=dataset.items.with_columns(nothing))


def first_items(dataset: Dataset, n: int) -> Dataset:
    return replace(dataset, item_ids=dataset.item_ids[:n], items=dataset.items.head(n))


def extraction(dataset: Dataset) -> Timed:
    """Extraction into an empty folder, minus the time for two items, which is that of loading."""
    times = []
    for part in (first_items(dataset, 2), dataset):
        with tempfile.TemporaryDirectory() as folder:
            times.append(timed(lambda part=part, folder=folder: extract_features(part, folder, SETTINGS)))
    return Timed(times[1].clock - times[0].clock, times[1].cpu - times[0].cpu)


def share(part: Timed, total: Timed) -> str:
    return f"{min(part.cpu / total.cpu, 1.0):.2f}"


def compare_text(dataset: Dataset, encoder: TransformerSentenceEncoder, longest: int) -> None:
    n = len(dataset.item_ids)
    rows = dataset.items.select("title", "text").rows()

    def split() -> list[list[str]]:
        return [item_sentences(title, text) for title, text in rows]

    splitting = timed(split)
    sentences: list[list[str]] = splitting.result
    distinct = list(dict.fromkeys(sentence for item in sentences for sentence in item))
    count = sum(map(len, sentences))
    batches = [features for _, features in encoder._batches(distinct)]

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=encoder._bf16):
            for features in batches:
                encoder._model(dict(features))

    def plain() -> None:
        model = encoder._model
        for item in (item_sentences(title, text) for title, text in rows[:longest]):
            if item:
                model.encode(item, show_progress_bar=False)

    real, alone = extraction(without(dataset, "image")), timed(bare)
    loop = timed(plain)
    print(f"texts of {n} items, {count} sentences, {len(distinct)} distinct; {encoder.backend}")
    print(f"  extract  {real.rate(n, 'items')}; {real.rate(count, 'sentences')}")
    print(f"  share of CPU time: splitting {share(splitting, real)}, encoder {share(alone, real)}; the remainder is")
    print("  reading, hashing, tokenizing and writing")
    print(f"  plain    {loop.rate(min(n, longest), 'items')}")
    print(f"  bare     {alone.rate(len(distinct), 'distinct sentences')}")
    compare(real, loop, alone, n, min(n, longest))


def compare_images(dataset: Dataset, network: EfficientNetLite0, longest: int) -> np.ndarray:
    n = len(dataset.item_ids)
    paths = [path for entry in dataset.items["image"].to_list() for path in entry or ()]

    def decode() -> list[np.ndarray]:
        """Without threads, so that the CPU time is that of decoding."""
        images = ImageFiles(dataset.folder).decode_all(paths, network.size, workers=1)
        return [squash(image, network.size) for image in images if not isinstance(image, BrokenImage)]

    decoding = timed(decode)
    pixels = np.stack(decoding.result)

    def plain() -> None:
        for path in paths[:longest]:
            image = Image.open(dataset.folder / path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            scaled = (np.asarray(image, np.float32) - 127) / 128
            with torch.no_grad():
                network._network.extract_features(torch.from_numpy(scaled).permute(2, 0, 1)[None]).mean(dim=(2, 3))

    real, alone = extraction(without(dataset, "title", "text")), timed(lambda: bare_images(network, pixels))
    loop = timed(plain)
    print(f"images of {n} items, {len(paths)} files; {network.backend}")
    print(f"  extract  {real.rate(n, 'items')}; {real.rate(len(paths), 'images')}")
    print(f"  share of CPU time: decoding {share(decoding, real)}, encoder {share(alone, real)}; the remainder is")
    print("  reading, hashing and writing")
    print(f"  plain    {loop.rate(min(len(paths), longest), 'images')}")
    print(f"  bare     {alone.rate(len(pixels), 'images')}")
    compare(real, loop, alone, len(paths), min(len(paths), longest))
    return pixels


def compare(real: Timed, loop: Timed, alone: Timed, n: int, n_loop: int) -> None:
    print(
        f"  against the plain loop: {(n / real.clock) / (n_loop / loop.clock):.1f} times as fast "
        f"({(n / real.cpu) / (n_loop / loop.cpu):.1f} by CPU time); "
        f"share of the bare encoder's speed: {alone.clock / real.clock:.2f} ({alone.cpu / real.cpu:.2f} by CPU time)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder with texts and images")
    parser.add_argument("--items", type=int, default=300, help="number of its items (default 300)")
    parser.add_argument("--plain", type=int, default=100, help="maximum items of the plain loops (default 100)")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    options = parser.parse_args()

    threads = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    print(f"{os.cpu_count()} cores, {threads}, {options.data.name}")
    dataset = first_items(load_dataset(options.data), options.items)
    encoder, network = MiniLM("minilm", device="cpu"), EfficientNetLite0(device="cpu")
    compare_text(dataset, encoder, options.plain)
    pixels = compare_images(dataset, network, options.plain)
    sentences = [
        sentence
        for title, text in dataset.items.select("title", "text").iter_rows()
        for sentence in item_sentences(title, text)
    ]
    text_backends(encoder, list(dict.fromkeys(sentences))[:1000], options.compile)
    image_backends(network, pixels[:200], options.compile)


if __name__ == "__main__":
    main()
