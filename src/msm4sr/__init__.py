"""msm4sr: pictures, texts and order, from a folder to recommendations.

The names below are all that a script needs. They are imported when first used, so that `import msm4sr` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msm4sr.data.dataset import DataSettings, load_dataset
    from msm4sr.errors import InputError
    from msm4sr.evaluation.evaluate import evaluate
    from msm4sr.experiments.settings import resolve_settings
    from msm4sr.features.extract import FeatureSettings, extract_features
    from msm4sr.models.baselines.difsr import DIFSR
    from msm4sr.models.baselines.dualgnn import DualGNN, DualGNNConfig
    from msm4sr.models.baselines.grcn import GRCN, GRCNConfig
    from msm4sr.models.baselines.itemknn import ItemKNN, ItemKNNConfig
    from msm4sr.models.baselines.lightgcn import LightGCN, LightGCNConfig
    from msm4sr.models.baselines.mvrnn import MVRNN
    from msm4sr.models.baselines.popularity import Popularity
    from msm4sr.models.baselines.s3rec import S3Rec
    from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
    from msm4sr.models.baselines.sasrecm import SASRecM
    from msm4sr.models.baselines.sine import SINE
    from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig
    from msm4sr.models.registry import from_pretrained
    from msm4sr.serving.catalogue import NewItem
    from msm4sr.serving.recommender import ItemTable, Recommender, recommend
    from msm4sr.training.finetune import FinetuneSettings, finetune
    from msm4sr.training.pretrain import PretrainSettings, pretrain

_HOME = {
    "DIFSR": "models.baselines.difsr",
    "DataSettings": "data.dataset",
    "DualGNN": "models.baselines.dualgnn",
    "DualGNNConfig": "models.baselines.dualgnn",
    "FeatureSettings": "features.extract",
    "FinetuneSettings": "training.finetune",
    "GRCN": "models.baselines.grcn",
    "GRCNConfig": "models.baselines.grcn",
    "InputError": "errors",
    "ItemKNN": "models.baselines.itemknn",
    "ItemKNNConfig": "models.baselines.itemknn",
    "ItemTable": "serving.recommender",
    "LightGCN": "models.baselines.lightgcn",
    "LightGCNConfig": "models.baselines.lightgcn",
    "MSM4SR": "models.msm4sr",
    "MSM4SRConfig": "models.msm4sr",
    "MVRNN": "models.baselines.mvrnn",
    "NewItem": "serving.catalogue",
    "Popularity": "models.baselines.popularity",
    "PretrainSettings": "training.pretrain",
    "S3Rec": "models.baselines.s3rec",
    "Recommender": "serving.recommender",
    "SASRec": "models.baselines.sasrec",
    "SASRecConfig": "models.baselines.sasrec",
    "SASRecM": "models.baselines.sasrecm",
    "SINE": "models.baselines.sine",
    "evaluate": "evaluation.evaluate",
    "extract_features": "features.extract",
    "finetune": "training.finetune",
    "from_pretrained": "models.registry",
    "load_dataset": "data.dataset",
    "pretrain": "training.pretrain",
    "recommend": "serving.recommender",
    "resolve_settings": "experiments.settings",
}

__all__ = [
    "DIFSR",
    "GRCN",
    "MSM4SR",
    "MVRNN",
    "SINE",
    "DataSettings",
    "DualGNN",
    "DualGNNConfig",
    "FeatureSettings",
    "FinetuneSettings",
    "GRCNConfig",
    "InputError",
    "ItemKNN",
    "ItemKNNConfig",
    "ItemTable",
    "LightGCN",
    "LightGCNConfig",
    "MSM4SRConfig",
    "NewItem",
    "Popularity",
    "PretrainSettings",
    "Recommender",
    "S3Rec",
    "SASRec",
    "SASRecConfig",
    "SASRecM",
    "evaluate",
    "extract_features",
    "finetune",
    "from_pretrained",
    "load_dataset",
    "pretrain",
    "recommend",
    "resolve_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'msm4sr' has no attribute {name!r}")
    return getattr(import_module(f"msm4sr.{_HOME[name]}"), name)
