"""msm4sr: a sequential recommender over interactions, texts and images.

The names below are the public interface. They are imported when first used, so that `import msm4sr` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msm4sr.data.dataset import DataSettings as DataSettings
    from msm4sr.data.dataset import load_dataset as load_dataset
    from msm4sr.data.items import Item as Item
    from msm4sr.errors import InputError as InputError
    from msm4sr.evaluation.evaluate import evaluate as evaluate
    from msm4sr.experiments.loading import load_recommender as load_recommender
    from msm4sr.experiments.settings import from_preset as from_preset
    from msm4sr.experiments.settings import resolve_settings as resolve_settings
    from msm4sr.features.extract import FeatureSettings as FeatureSettings
    from msm4sr.features.extract import extract_features as extract_features
    from msm4sr.models.baselines.difsr import DIFSR as DIFSR
    from msm4sr.models.baselines.dualgnn import DualGNN as DualGNN
    from msm4sr.models.baselines.grcn import GRCN as GRCN
    from msm4sr.models.baselines.itemknn import ItemKNN as ItemKNN
    from msm4sr.models.baselines.lightgcn import LightGCN as LightGCN
    from msm4sr.models.baselines.mvrnn import MVRNN as MVRNN
    from msm4sr.models.baselines.popularity import Popularity as Popularity
    from msm4sr.models.baselines.s3rec import S3Rec as S3Rec
    from msm4sr.models.baselines.sasrec import SASRec as SASRec
    from msm4sr.models.baselines.sasrecm import SASRecM as SASRecM
    from msm4sr.models.baselines.sine import SINE as SINE
    from msm4sr.models.msm4sr import MSM4SR as MSM4SR
    from msm4sr.models.msm4sr import MSM4SRConfig as MSM4SRConfig
    from msm4sr.models.registry import from_pretrained as from_pretrained
    from msm4sr.recommend.recommender import Recommender as Recommender
    from msm4sr.training.settings import FinetuneSettings as FinetuneSettings
    from msm4sr.training.settings import PretrainSettings as PretrainSettings
    from msm4sr.training.stages import finetune as finetune
    from msm4sr.training.stages import pretrain as pretrain

_MODULES = {
    "DataSettings": "data.dataset",
    "load_dataset": "data.dataset",
    "InputError": "errors",
    "Item": "data.items",
    "evaluate": "evaluation.evaluate",
    "load_recommender": "experiments.loading",
    "from_preset": "experiments.settings",
    "resolve_settings": "experiments.settings",
    "FeatureSettings": "features.extract",
    "extract_features": "features.extract",
    "DIFSR": "models.baselines.difsr",
    "DualGNN": "models.baselines.dualgnn",
    "GRCN": "models.baselines.grcn",
    "ItemKNN": "models.baselines.itemknn",
    "LightGCN": "models.baselines.lightgcn",
    "MVRNN": "models.baselines.mvrnn",
    "Popularity": "models.baselines.popularity",
    "S3Rec": "models.baselines.s3rec",
    "SASRec": "models.baselines.sasrec",
    "SASRecM": "models.baselines.sasrecm",
    "SINE": "models.baselines.sine",
    "MSM4SR": "models.msm4sr",
    "MSM4SRConfig": "models.msm4sr",
    "from_pretrained": "models.registry",
    "Recommender": "recommend.recommender",
    "FinetuneSettings": "training.settings",
    "finetune": "training.stages",
    "PretrainSettings": "training.settings",
    "pretrain": "training.stages",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'msm4sr' has no attribute {name!r}")
    return getattr(import_module(f"msm4sr.{_MODULES[name]}"), name)
