"""The identity of a model's inputs: equal for equal inputs, whatever the model makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import every_input, make_model

from msm4sr.models.registry import MODELS
from msm4sr.ragged import Ragged
from msm4sr.training.identity import inputs_identity

WITH_FEATURES = sorted(name for name, model in MODELS.items() if model.uses_features)


def features_of(identity: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in identity.items() if name.startswith("features.")}


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_the_digest_of_features_is_that_of_the_embeddings_for_every_model(name: str) -> None:
    expected = features_of(inputs_identity(make_model("msm4sr", whiten=0)))
    assert len(expected) == 2
    assert features_of(inputs_identity(make_model(name))) == expected
    assert features_of(inputs_identity(make_model("msm4sr", whiten=2))) == expected


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_another_embedding_or_another_item_changes_it(name: str) -> None:
    inputs = every_input()
    rows = inputs.features["text"]
    values, offsets = rows.values.clone(), rows.offsets.clone()
    values[0, 0] += 1
    offsets[1:-1] = offsets[1:-1].clamp(max=int(offsets[1]))  # the rows of the last item
    before = inputs_identity(make_model(name))["features.text"]
    for changed in (Ragged(values, rows.offsets), Ragged(rows.values, offsets)):
        other = make_model(name, replace(inputs, features={**inputs.features, "text": changed}))
        assert inputs_identity(other)["features.text"] != before
