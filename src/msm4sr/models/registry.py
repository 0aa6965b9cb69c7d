"""Models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field
from torch import nn

from msm4sr.errors import InputError
from msm4sr.models.base import read_model
from msm4sr.models.baselines.popularity import Popularity, PopularityConfig
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig

CONFIGS: dict[str, type[BaseModel]] = {"msm4sr": MSM4SRConfig, "sasrec": SASRecConfig, "popularity": PopularityConfig}
MODELS: dict[str, type[MSM4SR] | type[SASRec] | type[Popularity]] = {
    "msm4sr": MSM4SR,
    "sasrec": SASRec,
    "popularity": Popularity,
}

ModelConfig = Annotated[MSM4SRConfig | SASRecConfig | PopularityConfig, Field(discriminator="name")]


def from_pretrained(folder: str | Path) -> nn.Module:
    """Whatever model `save_pretrained` wrote to `folder`. Raises InputError when it is not there or not whole."""
    stored, _ = read_model(Path(folder))
    try:
        model = MODELS[stored["config"]["name"]]
    except (KeyError, TypeError):
        raise InputError(f"{folder}/config.json: it does not name one of the models {', '.join(MODELS)}") from None
    return model.from_pretrained(folder)
