"""Extraction: its speed, where the time goes, against a plain loop, and which way each encoder runs fastest.

    python benchmarks/extract.py --data ../shared/data/ml-1m                 # some minutes on two cores
    python benchmarks/extract.py --data ../shared/data/ml-1m --items 1000 --compile

Four parts, the default encoders, the first --items items of a prepared folder:

ways      each encoder in torch fp32 (the reference), torch bf16 autocast, torch.compile (--compile: a minute of
          compiling each) and ONNX Runtime fp32, on the same batches; cosines to the reference, of which a mean of .999
          and a worst of .99 are asked for. The way that the package takes is the one marked.
extract   the real extraction into a folder of its own, texts and pictures apart, loading of the encoders not counted.
plain     the loop that one would write with the same libraries: one `encode` call an item; one picture at a time,
          opened, resized and through the network in torch.
bare      the encoder alone, on tokenized and length-sorted batches, on prepared pixels.

Rates are per second of the clock and, where other jobs disturb the clock, per second of CPU time.
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
from msm4sr.features.backends import agrees, cosines
from msm4sr.features.extract import FeatureSettings, extract_features
from msm4sr.features.images import BrokenImage, in_threads, load_images
from msm4sr.features.text import TransformerSentenceEncoder, item_sentences
from msm4sr.features.visual import CALLERS, EfficientNetLite0, squash

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


def print_way(
    name: str, run: Callable[[], np.ndarray], reference: np.ndarray | None, unit: str, path: str
) -> np.ndarray:
    run()  # once for what is made at first use
    once = timed(run)
    vectors: np.ndarray = once.result
    line = f"  {name:24} {once.rate(len(vectors), unit)}"
    if reference is not None:
        near = cosines(reference, vectors)
        line += f"  cosine {near.mean():.5f}, worst {near.min():.5f}"
        line += "" if agrees(reference, vectors) else "  (too far)"
    print(line + ("  <- taken" if path.startswith(name) else ""), flush=True)
    return vectors


# --- texts


def text_ways(encoder: TransformerSentenceEncoder, sentences: Sequence[str], with_compile: bool) -> None:
    print(f"ways for {len(sentences)} sentences, {encoder.name}")

    def torch_way(bf16: bool) -> Callable[[], np.ndarray]:
        return lambda: encoder._encode(sentences, bf16)

    exact = print_way("torch fp32", torch_way(False), None, "sentences", encoder.path)
    print_way("torch bf16 autocast", torch_way(True), exact, "sentences", encoder.path)
    transformer, *after = list(encoder._model)
    if with_compile:
        whole = transformer.model
        transformer.model = torch.compile(whole, dynamic=True)
        print_way("torch.compile fp32", torch_way(False), exact, "sentences", encoder.path)
        print_way("torch.compile bf16", torch_way(True), exact, "sentences", encoder.path)
        transformer.model = whole
    export = timed(lambda: export_text(transformer.model, next(encoder._batches(sentences))[1]))
    print(f"  (export to ONNX: {export.clock:.1f} s)")

    def onnx_way() -> np.ndarray:
        vectors = np.zeros((len(sentences), encoder.dim), np.float32)
        for rows, features in encoder._batches(sentences):
            taken = {key: features[key].numpy() for key in ("input_ids", "attention_mask")}
            output = {**features, "token_embeddings": torch.from_numpy(export.result.run(None, taken)[0])}
            for module in after:
                output = module(output)
            vectors[rows] = output["sentence_embedding"].numpy()
        return vectors

    print_way("onnxruntime fp32", onnx_way, exact, "sentences", encoder.path)


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
            dynamo=False,  # the newer exporter takes three times as long and its graph runs slower
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


# --- pictures


def picture_ways(network: EfficientNetLite0, pixels: np.ndarray, with_compile: bool) -> None:
    print(f"ways for {len(pixels)} pictures, {network.name}")
    model = network._network

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), BATCH):
            yield pixels[start : start + BATCH]

    def in_torch(run: Callable[[torch.Tensor], torch.Tensor], bf16: bool = False) -> Callable[[], np.ndarray]:
        def way() -> np.ndarray:
            parts = []
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                for batch in batches():
                    scaled = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - 127) / 128
                    parts.append(run(scaled).mean(dim=(2, 3)).float().numpy())
            return np.concatenate(parts)

        return way

    exact = print_way("torch fp32", in_torch(model.extract_features), None, "images", network.path)
    print_way("torch bf16 autocast", in_torch(model.extract_features, True), exact, "images", network.path)
    if with_compile:
        compiled = torch.compile(model.extract_features)
        print_way("torch.compile fp32", in_torch(compiled), exact, "images", network.path)
    print_way("onnxruntime fp32", lambda: bare_pictures(network, pixels), exact, "images", network.path)


def bare_pictures(network: EfficientNetLite0, pixels: np.ndarray) -> np.ndarray:
    """As the package calls it: two callers at once, each with half of the threads."""
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    run = network._session.run
    parts = in_threads(lambda batch: run(None, {"pixels": batch})[0], batches, CALLERS, CALLERS + 1)
    return np.concatenate(list(parts))


# --- the real extraction, and the loops to compare it with


def without(dataset: Dataset, *columns: str) -> Dataset:
    """The same items without what these columns say."""
    nothing = [pl.lit(None, dataset.items.schema[name]).alias(name) for name in columns]
    return replace(dataset, items=dataset.items.with_columns(nothing))


def first_items(dataset: Dataset, n: int) -> Dataset:
    return replace(dataset, item_ids=dataset.item_ids[:n], items=dataset.items.head(n))


def extraction(dataset: Dataset) -> Timed:
    """Into an empty folder; the time of two items, which is that of loading, taken off."""
    times = []
    for part in (first_items(dataset, 2), dataset):
        with tempfile.TemporaryDirectory() as folder:
            times.append(timed(lambda part=part, folder=folder: extract_features(part, folder, SETTINGS)))
    return Timed(times[1].clock - times[0].clock, times[1].cpu - times[0].cpu)


def share(part: Timed, whole: Timed) -> str:
    return f"{min(part.cpu / whole.cpu, 1.0):.2f}"


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
    print(f"texts of {n} items, {count} sentences, {len(distinct)} distinct; {encoder.path}")
    print(f"  extract  {real.rate(n, 'items')}; {real.rate(count, 'sentences')}")
    print(f"  share of CPU time: splitting {share(splitting, real)}, encoder {share(alone, real)}; the remainder is")
    print("  reading, hashing, tokenizing and writing")
    print(f"  plain    {loop.rate(min(n, longest), 'items')}")
    print(f"  bare     {alone.rate(len(distinct), 'distinct sentences')}")
    compare(real, loop, alone, n, min(n, longest))


def compare_pictures(dataset: Dataset, network: EfficientNetLite0, longest: int) -> np.ndarray:
    n = len(dataset.item_ids)
    paths = [path for entry in dataset.items["image"].to_list() for path in entry or ()]

    def decode() -> list[np.ndarray]:
        """Without threads, so that its CPU time is its own."""
        pictures = load_images(dataset.folder, paths, network.size, workers=1)
        return [squash(picture, network.size) for picture in pictures if not isinstance(picture, BrokenImage)]

    decoding = timed(decode)
    pixels = np.stack(decoding.result)

    def plain() -> None:
        for path in paths[:longest]:
            picture = Image.open(dataset.folder / path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            scaled = (np.asarray(picture, np.float32) - 127) / 128
            with torch.no_grad():
                network._network.extract_features(torch.from_numpy(scaled).permute(2, 0, 1)[None]).mean(dim=(2, 3))

    real, alone = extraction(without(dataset, "title", "text")), timed(lambda: bare_pictures(network, pixels))
    loop = timed(plain)
    print(f"pictures of {n} items, {len(paths)} files; {network.path}")
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
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder with texts and pictures")
    parser.add_argument("--items", type=int, default=300, help="of its items, the first so many (default 300)")
    parser.add_argument("--plain", type=int, default=100, help="items of the plain loops at most (default 100)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    options = parser.parse_args()

    threads = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    print(f"{os.cpu_count()} cores, {threads}, {options.data.name}")
    dataset = first_items(load_dataset(options.data), options.items)
    encoder, network = TransformerSentenceEncoder(device="cpu"), EfficientNetLite0(device="cpu")
    compare_text(dataset, encoder, options.plain)
    pixels = compare_pictures(dataset, network, options.plain)
    sentences = [
        sentence
        for title, text in dataset.items.select("title", "text").iter_rows()
        for sentence in item_sentences(title, text)
    ]
    text_ways(encoder, list(dict.fromkeys(sentences))[:1000], options.compile)
    picture_ways(network, pixels[:200], options.compile)


if __name__ == "__main__":
    main()
