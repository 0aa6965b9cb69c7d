"""Settings of feature extraction, and the names of the feature folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from msm4sr.strict import Strict


class TextSettings(Strict):
    """How the title and the text of an item become vectors."""

    encoder: str = Field(
        "minilm",
        min_length=1,
        description="Sentence encoder: 'minilm' (needs no network), a local model folder, or a hub name.",
    )
    max_sentences: int = Field(10, ge=1, description="Maximum number of sentences of an item, including the title.")
    max_characters: int = Field(4000, ge=1, le=20000, description="Maximum length of a text, in characters.")
    max_tokens: int = Field(128, ge=2, description="Maximum number of tokens of a sentence.")


class VisualSettings(Strict):
    """How the images of an item become vectors."""

    kind: Literal["keywords", "pooled"] = Field(
        "keywords",
        description="'keywords': the keywords of an image through the text encoder (equation 2). 'pooled': the pooled "
        "layer of a vision network.",
    )
    network: str = Field(
        "efficientnet-lite0",
        min_length=1,
        description="Vision network of the pooled layer: 'efficientnet-lite0' (needs no network connection), or the "
        "folder or hub name of a transformers vision model.",
    )
    tagger: str = Field(
        "offline",
        min_length=1,
        description="Model that finds the keywords: 'offline' (learned from the texts of the catalogue, out of fold), "
        "'clip' (openai/clip-vit-base-patch32, from the hub), or the folder or hub name of a CLIP model.",
    )
    num_keywords: int = Field(15, ge=1, description="Number of keywords per image, N in the paper.")
    min_texts: int = Field(
        500, ge=10, description="With fewer items with text and image, the labels of ImageNet are the keywords."
    )
    vocabulary_file: str | None = Field(
        None,
        min_length=1,
        description="A text file with one word or phrase per line as the vocabulary; null: the words of the catalogue.",
    )
    vocabulary_size: int = Field(4000, ge=1, description="Maximum size; the words used by most items are kept.")
    vocabulary_min_items: int = Field(3, ge=1, description="Minimum number of items that use a word.")
    vocabulary_max_fraction: float = Field(
        0.2, gt=0, le=1, description="A word that a larger fraction of the items uses is ignored."
    )

    @property
    def uses_clip(self) -> bool:
        """Whether a CLIP model scores the keywords."""
        return self.kind == "keywords" and self.tagger != "offline"

    @property
    def image_encoder(self) -> str:
        """The name of the model that images go through."""
        return self.tagger if self.uses_clip else self.network


class FeatureSettings(Strict):
    """Settings of feature extraction."""

    text: TextSettings = Field(TextSettings(), description="Titles and texts.")
    visual: VisualSettings = Field(VisualSettings(), description="Images.")


def store_names(settings: FeatureSettings, precomputed: Iterable[str] = ()) -> dict[str, str]:
    """The folder of each feature store, for example {"text": "text-minilm", "visual": ...}.

    `precomputed` are modalities with precomputed embeddings. Keywords have further stores: "images" (the image vectors
    that they are found with) and "vocabulary" (the vectors of its words).
    """
    text, visual = settings.text, settings.visual
    images = f"visual-{'clip' if visual.uses_clip else 'pooled'}-{_slug(visual.image_encoder)}"
    names = {"text": f"text-{_slug(text.encoder)}", "visual": images}
    if visual.kind == "keywords":
        names["images"] = images
        names["visual"] = f"visual-keywords-{_slug(visual.tagger)}-{_slug(text.encoder)}"
        names["vocabulary"] = f"words-{_slug(text.encoder)}"
    return names | {name: f"{name}-precomputed" for name in precomputed}


def _slug(name: str) -> str:
    """The name of an encoder as part of a folder name: the last part of a path, a hub name with `--` for its slash."""
    short = Path(name).name if name.startswith(("/", ".")) else name.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short) or "model"
