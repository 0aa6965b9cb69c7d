"""Generate a catalogue of any size: interactions, items, and embeddings of two modalities.

    python benchmarks/generate.py OUT --items 30000 --users 6000 --length 9
    msm4sr run OUT --out RUN --features text=OUT/text.parquet --features visual=OUT/visual.parquet

Every item has a latent vector near the centre of its topic; a user has three topics, and stays with the topic of the
previous item with probability 0.7. Popularity falls with an item's rank. Embeddings are random projections of the
latent vectors with noise and a common offset, as real encoders have; a tenth of the items lacks the second one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import typer

from msm4sr.ragged import Ragged

LATENT = 16
TOPIC_SIZE = 100  # items of a topic, on average
STAY = 0.7
CHUNK = 1 << 16  # items whose embeddings are generated at once
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Generator:
    """A catalogue, by its sizes and a seed."""

    def __init__(self, items: int, seed: int = 0) -> None:
        self.items, self.seed = items, seed
        rng = np.random.default_rng([seed, 0])
        self.topics = max(3, items // TOPIC_SIZE)
        self.topic = rng.integers(0, self.topics, items)
        self.centres = rng.standard_normal((self.topics, LATENT), dtype=np.float32)
        popularity = 1 / (rng.permutation(items) + 20.0)
        self._by_topic = np.argsort(self.topic, kind="stable")
        self._mass = np.concatenate([[0], popularity[self._by_topic].cumsum()])
        self._bounds = np.searchsorted(self.topic[self._by_topic], np.arange(self.topics + 1))

    def histories(self, users: int, length: int) -> Ragged:
        """Histories of two thirds to four thirds of `length` items, at least three; int32 item numbers."""
        rng = np.random.default_rng([self.seed, 1])
        lengths = np.maximum(3, rng.integers(2 * length // 3, 4 * length // 3 + 1, users))
        weight = self._mass[self._bounds[1:]] - self._mass[self._bounds[:-1]]
        interests = rng.choice(self.topics, (users, 3), p=weight / weight.sum())
        steps = np.empty((users, lengths.max()), dtype=np.int32)
        topic = interests[:, 0]
        for step in range(steps.shape[1]):
            other = interests[np.arange(users), rng.integers(0, 3, users)]
            topic = np.where(rng.random(users) < STAY, topic, other)
            steps[:, step] = self._draw(topic, rng)
        return Ragged.from_lengths(steps[np.arange(steps.shape[1]) < lengths[:, None]], lengths)

    def _draw(self, topic: Ints, rng: np.random.Generator) -> Ints:
        """An item of each topic, by popularity."""
        low, high = self._mass[self._bounds[topic]], self._mass[self._bounds[topic + 1]]
        place = np.searchsorted(self._mass, rng.uniform(low, high), side="right") - 1
        return self._by_topic[np.clip(place, self._bounds[topic], np.maximum(self._bounds[topic + 1] - 1, 0))]

    def embeddings(self, dim: int, noise: float, number: int) -> Floats:
        """The embeddings of all items [items, dim]; different numbers give independent projections."""
        rng = np.random.default_rng([self.seed, 2, number])
        projection = rng.standard_normal((LATENT, dim), dtype=np.float32) / LATENT**0.5
        offset = rng.standard_normal(dim, dtype=np.float32)
        item = np.random.default_rng([self.seed, 3])  # the same for every modality
        rows = np.empty((self.items, dim), dtype=np.float32)
        for chunk in range(0, self.items, CHUNK):
            topic = self.topic[chunk : chunk + CHUNK]
            latent = self.centres[topic] + 0.5 * item.standard_normal((len(topic), LATENT), dtype=np.float32)
            noisy = offset + latent @ projection + noise * rng.standard_normal((len(topic), dim), dtype=np.float32)
            rows[chunk : chunk + CHUNK] = noisy
        return rows


def write_embeddings(file: Path, rows: Floats, missing: float, seed: int) -> None:
    """A Parquet file with item_id and vector, without a fraction of the items."""
    kept = np.flatnonzero(np.random.default_rng([seed, 4]).random(len(rows)) >= missing)
    pl.DataFrame({"item_id": [f"i{item}" for item in kept], "vector": rows[kept]}).write_parquet(file)


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    items: Annotated[int, typer.Option(min=10)] = 30_000,
    users: Annotated[int, typer.Option(min=1)] = 6_000,
    length: Annotated[int, typer.Option(min=3, help="Mean length of a history.")] = 9,
    text: Annotated[int, typer.Option(min=1, help="Dimension of the first modality.")] = 384,
    visual: Annotated[int, typer.Option(min=1, help="Dimension of the second modality.")] = 256,
    seed: int = 0,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator(items, seed)
    histories = generator.histories(users, length)
    position = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], histories.lengths)
    ids = pl.Series("item_id", [f"i{item}" for item in range(items)])
    pl.DataFrame(
        {
            "user_id": pl.Series([f"u{user}" for user in range(users)])[histories.row_numbers],
            "item_id": ids[histories.values],
            "position": position.astype(np.int32),
        }
    ).write_parquet(out / "interactions.parquet")
    titles = pl.DataFrame(
        {"item_id": ids, "title": [f"item {item} of topic {t}" for item, t in enumerate(generator.topic)]}
    )
    titles.write_parquet(out / "items.parquet")
    write_embeddings(out / "text.parquet", generator.embeddings(text, 0.5, 0), 0.0, seed)
    write_embeddings(out / "visual.parquet", generator.embeddings(visual, 1.0, 1), 0.1, seed)
    print(f"{out}: {items:,} items, {users:,} users, {len(histories.values):,} interactions")


if __name__ == "__main__":
    typer.run(main)
