"""An extraction, and the base class of its extractors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msm4sr.features.chunks import Chunk
from msm4sr.features.encoders import Encoders
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.store import Features
from msm4sr.features.store_builder import Shard, StoreBuilder
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from msm4sr.data.dataset import Dataset


@dataclass(frozen=True)
class Extraction:
    """Which features are extracted, of which items, and where they are kept.

    Attributes:
        dataset: the items.
        out: the features folder. Several processes may use it at once.
        settings: encoders, and how much is read.
        precomputed: modality to a Parquet file of precomputed embeddings (see `precomputed`), in place of an encoder,
            or for a further modality. Such a modality reads neither texts nor images.
        device: where the encoders run: "cpu", "cuda", ...; "auto" uses a GPU if there is one.
        strict: an image that cannot be used is an error.
        progress: shows the items that are done.
    """

    dataset: Dataset
    out: Path
    settings: FeatureSettings = FeatureSettings()
    precomputed: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    strict: bool = False
    progress: Progress = field(default_factory=NoProgress)

    @cached_property
    def encoders(self) -> Encoders:
        return Encoders(self.settings, self.device)

    def extract(self, merge: bool = False) -> dict[str, Features]:
        """See `extract_features`; with `merge`, join what `extract_shard` encoded, and encode nothing.

        Raises:
            InputError: as `extract_features`; with `merge` also a missing shard.
        """
        extractors = self._extractors()
        # Precomputed embeddings first: errors in their files appear at once.
        order = sorted(extractors, key=lambda modality: modality not in self.precomputed)
        found = {modality: extractors[modality].extract(merge) for modality in order}
        return {modality: found[modality] for modality in extractors}

    def extract_shard(self, shard: Shard) -> None:
        """Encode one shard of the items; `extract(merge=True)` joins them when all shards are in `out`.

        Only the images of the items of the shard are read.
        """
        for extractor in self._extractors().values():
            extractor.extract_shard(shard)

    def _extractors(self) -> dict[str, Extractor]:
        self.out.mkdir(parents=True, exist_ok=True)
        kinds = {"text": "sentences", "visual": self.settings.visual.kind}
        kinds |= dict.fromkeys(self.precomputed, "precomputed")
        return {modality: EXTRACTORS[kind](self, modality) for modality, kind in kinds.items()}


class Extractor(ABC):
    """Makes the feature store of one modality: hashes and encodes its items chunk by chunk.

    Args:
        job: what is asked for.
        modality: "text", "visual", or the name of a modality with precomputed embeddings.

    Attributes:
        folder: of the store.
        manifest: modality, kind, encoder, settings: together with the content of an item they determine its vectors.
        item_ids: the items of the store.
        title: of the progress bar.
        extra: further entries of the manifest, which do not change the vectors.
        rows: the table of rows, where it does not come from the chunks.
        missing: the table of what is missing, where it does not come from the chunks.
    """

    folder: Path
    manifest: Mapping[str, Any]
    title: str

    def __init__(self, job: Extraction, modality: str) -> None:
        self.job, self.modality = job, modality
        self.item_ids: Sequence[str] = job.dataset.item_ids
        self.extra: dict[str, Any] = {}
        self.rows: pl.DataFrame | None = None
        self.missing: pl.DataFrame | None = None

    @abstractmethod
    def content_hashes(self, items: range) -> list[str]:
        """A hash of the content of each item of a chunk."""

    @abstractmethod
    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        """Encode items of the chunk that was hashed last; `advance` counts items."""

    def check(self, chunk: Chunk, items: Sequence[int]) -> None:  # noqa: B027 (most extractors accept every chunk)
        """Raise InputError if a chunk, encoded or found, may not be used."""

    def extract(self, merge: bool = False) -> Features:
        """The features of all items, from their store; what is new or changed is encoded first.

        Args:
            merge: encode nothing; all chunks must come from shards.
        """
        return StoreBuilder(self, self.job.progress).build(merge)

    def extract_shard(self, shard: Shard) -> None:
        """Encode one shard of the items."""
        StoreBuilder(self, self.job.progress).build_shard(shard)


EXTRACTORS = Registry[type[Extractor]]("kind of features", "msm4sr.extractors", ["msm4sr.features.extractors"])
