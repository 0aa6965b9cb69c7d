"""From a data set to features: texts and images through frozen encoders, once, stored (equations 1, 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.errors import InputError
from msm4sr.executors import Executor, LocalExecutor
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.store import Features
from msm4sr.features.store_builder import Chunk, Shard, StoreBuilder
from msm4sr.features.text import SentenceEncoder, find_sentence_encoder
from msm4sr.features.visual import ImageEncoder, WordEncoder, find_image_encoder
from msm4sr.files import make_folder
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.ragged import Ragged
from msm4sr.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from msm4sr.data.dataset import Dataset


def extract_features(
    dataset: Dataset,
    out: str | Path,
    settings: FeatureSettings = FeatureSettings(),
    progress: Progress = NoProgress(),
    *,
    precomputed: Mapping[str, Path] = {},
    device: str = "auto",
    strict: bool = False,
) -> dict[str, Features]:
    """Extract the features of every item, or read features extracted before.

    Each modality and encoder has a folder under `out` (see `store`), such as `text-minilm/`. Only items whose content
    is new or changed are encoded, chunk by chunk, so a killed run loses at most one chunk.

    Args:
        dataset: its items, and its folder for their images.
        out: the folder of the stores.
        settings: the encoders and their limits.
        progress: shows how far it is.
        precomputed: modality to a Parquet file with item_id and vector; no encoder is run for it.
        device: of the encoders: "auto", "cpu", "cuda" or "mps".
        strict: an image that cannot be used is an error; else it is counted and skipped.

    Returns:
        Features of "text", "visual" and each modality of `precomputed`; entry i is item `dataset.item_ids[i]`, without
        rows if it lacks the modality.

    Raises:
        InputError: an encoder, embeddings, or with `strict` an image that cannot be used.
    """
    return Extraction(dataset, Path(out), settings, precomputed, device, strict, progress).extract()


class Encoders:
    """Sentence and image encoders by the names that settings give, loaded when they are first needed."""

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        self._text, self._visual, self._device = settings.text, settings.visual, device
        self._sentence_class = find_sentence_encoder(self._text.encoder)
        self._image_class = find_image_encoder(self._visual.image_encoder, self._visual.uses_clip)

    @cached_property
    def sentences(self) -> SentenceEncoder:
        return self._sentence_class(self._text.encoder, self._text.max_tokens, device=self._device)

    @cached_property
    def images(self) -> ImageEncoder:
        return self._image_class(self._visual.image_encoder, device=self._device)

    @property
    def clip(self) -> WordEncoder:
        """The image encoder, which must encode words as well."""
        if not isinstance(self.images, WordEncoder):
            raise InputError(f"features.visual.tagger={self.images.name}: it cannot encode words; choose a CLIP model")
        return self.images

    def sentence_record(self) -> dict[str, str]:
        """The name of the sentence encoder and the fingerprint of its weights, for the manifest."""
        name = self._text.encoder
        return {"name": name, "fingerprint": self._sentence_class.fingerprint_of(name)}

    def image_record(self) -> dict[str, str]:
        """The same for the image encoder."""
        name = self._visual.image_encoder
        return {"name": name, "fingerprint": self._image_class.fingerprint_of(name)}


@dataclass(frozen=True)
class Extraction:
    """Which features to extract, of which items, and where to store them.

    Attributes:
        out: the features folder. Several processes can use it at once.
        precomputed: modality to a Parquet file of precomputed embeddings, in place of an encoder,
            or for a further modality. Such a modality reads neither texts nor images.
        device: where the encoders run: "cpu", "cuda", ...; "auto" uses a GPU if there is one.
        strict: an image that cannot be used is an error.
        executor: where items are encoded and images tagged.
    """

    dataset: Dataset
    out: Path
    settings: FeatureSettings = FeatureSettings()
    precomputed: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    strict: bool = False
    progress: Progress = field(default_factory=NoProgress)
    executor: Executor = LocalExecutor()

    def __getstate__(self) -> dict[str, Any]:
        """For a worker, which loads its own encoders and needs no histories."""
        state = {part.name: getattr(self, part.name) for part in fields(self)}
        none = Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
        dataset = replace(self.dataset, histories=none, prefixes=(), user_ids=[])
        return state | {"dataset": dataset, "progress": NoProgress(), "executor": LocalExecutor()}

    @cached_property
    def encoders(self) -> Encoders:
        return Encoders(self.settings, self.device)

    def extract(self, merge: bool = False) -> dict[str, Features]:
        """See `extract_features`; with `merge`, join what `extract_shard` encoded: a missing shard is an InputError."""
        extractors = self._extractors()
        # Precomputed embeddings first: errors in their files appear at once.
        order = sorted(extractors, key=lambda modality: modality not in self.precomputed)
        found = {modality: extractors[modality].extract(merge) for modality in order}
        return {modality: found[modality] for modality in extractors}

    def extract_one(self, modality: str) -> Features:
        """The features of one modality; see `extract_features`."""
        return self._extractors()[modality].extract()

    def find_one(self, modality: str) -> Features | None:
        """The stored features of one modality, if they are those of the items; nothing is encoded."""
        return self._extractors()[modality].find()

    def extract_shard(self, shard: Shard) -> None:
        """Encode one shard of the items; `extract(merge=True)` joins them when all shards are in `out`.

        Only the images of the items of the shard are read.
        """
        for extractor in self._extractors().values():
            extractor.extract_shard(shard)

    def _extractors(self) -> dict[str, Extractor]:
        make_folder(self.out)
        kinds = {"text": "sentences", "visual": self.settings.visual.kind}
        kinds |= dict.fromkeys(self.precomputed, "precomputed")
        return {modality: EXTRACTORS[kind](self, modality) for modality, kind in kinds.items()}


class Extractor(ABC):
    """Makes the feature store of one modality: hashes and encodes its items chunk by chunk."""

    folder: Path
    manifest: Mapping[str, Any]  # modality, kind, encoder, settings: with the content of an item they fix its vectors
    title: str  # of the progress bar

    def __init__(self, job: Extraction, modality: str) -> None:
        self.job, self.modality = job, modality
        self.item_ids: Sequence[str] = job.dataset.item_ids
        self.extra: dict[str, Any] = {}  # further entries of the manifest, which do not change the vectors
        self.rows: pl.DataFrame | None = None  # these two tables, if they do not come from the chunks
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
        """The features of all items, from their store; what is new or changed is encoded first; see `StoreBuilder`."""
        return StoreBuilder(self, self.job.progress, self.job.executor).build(merge)

    def find(self) -> Features | None:
        """The store, if it is that of the items."""
        return StoreBuilder(self, self.job.progress).unchanged()

    def extract_shard(self, shard: Shard) -> None:
        """Encode one shard of the items; see `Extraction.extract_shard`."""
        StoreBuilder(self, self.job.progress).build_shard(shard)


EXTRACTORS = Registry[type[Extractor]]("kind of features", "msm4sr.extractors", ["msm4sr.features.extractors"])
