"""Models by name. A new model is one file, and one entry in each of the two lists here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field

from msm4sr.errors import InputError
from msm4sr.models.base import Inputs, Model, read_model
from msm4sr.models.baselines.difsr import DIFSR, DIFSRConfig
from msm4sr.models.baselines.dualgnn import DualGNN, DualGNNConfig
from msm4sr.models.baselines.grcn import GRCN, GRCNConfig
from msm4sr.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from msm4sr.models.baselines.lightgcn import LightGCN, LightGCNConfig
from msm4sr.models.baselines.mvrnn import MVRNN, MVRNNConfig
from msm4sr.models.baselines.popularity import Popularity, PopularityConfig
from msm4sr.models.baselines.s3rec import S3Rec, S3RecConfig
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.baselines.sasrecm import SASRecM, SASRecMConfig
from msm4sr.models.baselines.sine import SINE, SINEConfig
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig

MODELS: dict[str, type[Model]] = {
    "msm4sr": MSM4SR,
    "sasrec": SASRec,
    "sasrecm": SASRecM,
    "s3rec": S3Rec,
    "sine": SINE,
    "difsr": DIFSR,
    "mvrnn": MVRNN,
    "lightgcn": LightGCN,
    "grcn": GRCN,
    "dualgnn": DualGNN,
    "itemknn": ItemKNN,
    "popularity": Popularity,
}
CONFIGS: dict[str, type[BaseModel]] = {name: model.Config for name, model in MODELS.items()}

ModelConfig = Annotated[
    MSM4SRConfig
    | SASRecConfig
    | SASRecMConfig
    | S3RecConfig
    | SINEConfig
    | DIFSRConfig
    | MVRNNConfig
    | LightGCNConfig
    | GRCNConfig
    | DualGNNConfig
    | ItemKNNConfig
    | PopularityConfig,
    Field(discriminator="name"),
]


def build(config: ModelConfig, inputs: Inputs, seed: int = 0) -> Model:
    """A new model with the weights that `seed` draws; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MODELS[config.name](config, inputs)


def from_pretrained(folder: str | Path) -> Model:
    """Whatever model `save_pretrained` wrote to `folder`. Raises InputError when it is not there or not whole."""
    stored, _ = read_model(Path(folder))
    try:
        model = MODELS[stored["config"]["name"]]
    except (KeyError, TypeError):
        raise InputError(f"{folder}/config.json: it does not name one of the models {', '.join(MODELS)}") from None
    return model.from_pretrained(folder)
