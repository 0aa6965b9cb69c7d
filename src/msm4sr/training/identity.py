"""What trained weights depend on. It is stored with them, and compared whenever they are read."""

from __future__ import annotations

from typing import Any

from msm4sr.data.dataset import Dataset
from msm4sr.dotted import flatten
from msm4sr.models.base import Scorer
from msm4sr.models.layers import ItemFeatures
from msm4sr.tensor_files import tensor_digest
from msm4sr.training.settings import StageSettings

CODE_VERSION = 5  # raised when a change of the code changes weights or metrics of the same settings and data


def stage_identity(model: Scorer, dataset: Dataset, settings: StageSettings, seed: int) -> dict[str, Any]:
    """What the weights of a stage depend on besides the settings of the model, and the device.

    Returns:
        Dotted names and values: version of the code, seed, data set, inputs of the model, settings of the stage.
    """
    decisive = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    inputs = {"data": dataset.identity, "inputs": inputs_identity(model)}
    return flatten({"code": CODE_VERSION, "seed": seed, **inputs, settings.stage: decisive})


def inputs_identity(model: Scorer) -> dict[str, str]:
    """A digest of each input that a model keeps, such as "features.text" or "graph".

    Of features it is that of the encoder's embeddings: equal for all models, however each of them prepares them.
    """
    trained = dict(model.named_parameters())
    features = {name: module.source for name, module in model.named_modules() if isinstance(module, ItemFeatures)}
    kept = {name: [rows.values, rows.offsets] for name, rows in features.items()}
    for name, tensor in model.state_dict().items():
        if name not in trained and (module := name.rpartition(".")[0] or name) not in features:
            kept.setdefault(module, []).append(tensor)
    return {name: tensor_digest(*tensors) for name, tensors in kept.items()}
