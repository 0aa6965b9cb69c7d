"""What a model can do beyond scoring. Other packages ask here, or read a class attribute of `Model`."""

from __future__ import annotations

from typing import TypeGuard

from msm4sr.models.base import ContentModel, FactorizedModel, Scorer


def is_factorized(model: Scorer) -> TypeGuard[FactorizedModel]:
    """Whether scores are inner products of a history's vector and item vectors, plus the seen-item bias."""
    return isinstance(model, FactorizedModel)


def has_content(model: Scorer) -> TypeGuard[ContentModel]:
    """Whether items are encoded from their content, so that new items can be recommended and scores be explained."""
    return isinstance(model, ContentModel)
