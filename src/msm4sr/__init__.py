"""msm4sr: a sequential recommender over interactions, texts and images.

The names below are the public interface. They are imported on first use, so `import msm4sr` is fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msm4sr.data.dataset import DataSettings as DataSettings
    from msm4sr.data.dataset import load_dataset as load_dataset
    from msm4sr.data.items import Item as Item
    from msm4sr.errors import InputError as InputError
    from msm4sr.evaluation.evaluate import evaluate as evaluate
    from msm4sr.experiments.loading import load_recommender as load_recommender
    from msm4sr.experiments.settings import resolve_settings as resolve_settings
    from msm4sr.experiments.stages import build_model as build_model
    from msm4sr.experiments.warm_start import warm_start as warm_start
    from msm4sr.features.extract import extract_features as extract_features
    from msm4sr.features.settings import FeatureSettings as FeatureSettings
    from msm4sr.models.hub import push_to_hub as push_to_hub
    from msm4sr.models.model_card import TrainingSummary as TrainingSummary
    from msm4sr.models.msm4sr import MSM4SR as MSM4SR
    from msm4sr.models.registry import from_pretrained as from_pretrained
    from msm4sr.models.registry import register_model as register_model
    from msm4sr.recommend.recommender import Recommender as Recommender
    from msm4sr.recommend.rules import Rules as Rules
    from msm4sr.training.callbacks import Callback as Callback
    from msm4sr.training.settings import FinetuneSettings as FinetuneSettings
    from msm4sr.training.settings import PretrainSettings as PretrainSettings
    from msm4sr.training.stages import finetune as finetune
    from msm4sr.training.stages import pretrain as pretrain
    from msm4sr.training.trainer import TrainerOptions as TrainerOptions

_MODULES = {
    "DataSettings": "data.dataset",
    "load_dataset": "data.dataset",
    "Item": "data.items",
    "InputError": "errors",
    "evaluate": "evaluation.evaluate",
    "load_recommender": "experiments.loading",
    "resolve_settings": "experiments.settings",
    "build_model": "experiments.stages",
    "warm_start": "experiments.warm_start",
    "FeatureSettings": "features.settings",
    "extract_features": "features.extract",
    "push_to_hub": "models.hub",
    "TrainingSummary": "models.model_card",
    "MSM4SR": "models.msm4sr",
    "from_pretrained": "models.registry",
    "register_model": "models.registry",
    "Recommender": "recommend.recommender",
    "Rules": "recommend.rules",
    "Callback": "training.callbacks",
    "FinetuneSettings": "training.settings",
    "finetune": "training.stages",
    "PretrainSettings": "training.settings",
    "pretrain": "training.stages",
    "TrainerOptions": "training.trainer",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("msm4sr")
    if name not in _MODULES:
        raise AttributeError(f"module 'msm4sr' has no attribute {name!r}")
    return getattr(import_module(f"msm4sr.{_MODULES[name]}"), name)
