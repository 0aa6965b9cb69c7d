"""The encoders of an extraction, found by name and loaded when they are first needed."""

from __future__ import annotations

from functools import cached_property

from msm4sr.errors import InputError
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.text import SentenceEncoder, find_sentence_encoder
from msm4sr.features.visual import ImageEncoder, WordEncoder, find_image_encoder


class Encoders:
    """Sentence and image encoders by the names that settings give; what is stored already loads none of them."""

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        self._settings, self._device = settings, device

    @cached_property
    def sentences(self) -> SentenceEncoder:
        text = self._settings.text
        return find_sentence_encoder(text.encoder)(text.encoder, text.max_tokens, device=self._device)

    @cached_property
    def images(self) -> ImageEncoder:
        visual = self._settings.visual
        return find_image_encoder(visual.image_encoder, visual.uses_clip)(visual.image_encoder, device=self._device)

    @property
    def clip(self) -> WordEncoder:
        """The image encoder, which must encode words as well."""
        if not isinstance(self.images, WordEncoder):
            raise InputError(f"features.visual.tagger={self.images.name}: it cannot encode words; name a CLIP model")
        return self.images

    def sentence_record(self) -> dict[str, str]:
        """The name of the sentence encoder and the fingerprint of its weights, for the manifest."""
        name = self._settings.text.encoder
        return {"name": name, "fingerprint": find_sentence_encoder(name).fingerprint_of(name)}

    def image_record(self) -> dict[str, str]:
        """The same for the image encoder."""
        visual = self._settings.visual
        found = find_image_encoder(visual.image_encoder, visual.uses_clip)
        return {"name": visual.image_encoder, "fingerprint": found.fingerprint_of(visual.image_encoder)}
