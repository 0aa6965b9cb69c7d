"""Models by name. A new model is one file: in `models/baselines`, or in another package with an entry point.

This module imports no torch, so that the command line can list the models at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msm4sr.errors import InputError
from msm4sr.registry import Registry

if TYPE_CHECKING:
    from msm4sr.models.base import Inputs, Model, ModelConfig

M = TypeVar("M", bound="type[Model]")


class Models(Registry["type[Model]"]):
    """In the order of lists and tables: MSM4SR, the baselines by name, and last the non-learned ones."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), key=lambda name: (name != "msm4sr", not self[name].tasks, name)))

    def names(self) -> list[str]:
        return sorted(super().names(), key=lambda name: (name != "msm4sr", name))


MODELS = Models("model", "msm4sr.models", ["msm4sr.models.msm4sr", "msm4sr.models.baselines"])


def register_model(name: str) -> Callable[[M], M]:
    """A class decorator that adds a model under `name`.

        @register_model("mymodel")
        class MyModel(FactorizedModel): ...

    Args:
        name: of the option `--model`. The file (or the entry point in the group `msm4sr.models`) must have the same
            name, and the `name` of the model's `Config` must have it as default.
    """
    return MODELS.register(name)  # type: ignore[return-value]


def build(config: ModelConfig, inputs: Inputs, seed: int = 0) -> Model:
    """A new model with the weights that `seed` draws; the global random state is not changed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MODELS[config.name](config, inputs)


def from_pretrained(source: str | Path) -> Model:
    """The model that `save_pretrained` wrote to a folder, or that is on the hub.

    Args:
        source: a folder, such as `runs/shop/model`, or a name on the hub, such as "organisation/name" (extra `hub`); a
            folder that exists is preferred.

    Raises:
        InputError: the model is missing or incomplete, or the hub cannot be reached.
    """
    from msm4sr.models.base import read_config
    from msm4sr.models.hub import model_folder

    folder = model_folder(source)
    stored = read_config(folder)
    try:
        model = MODELS[stored["config"]["name"]]
    except (KeyError, TypeError):
        raise InputError(f"{folder}/config.json: it does not name one of the models {', '.join(MODELS)}") from None
    return model.from_pretrained(folder)
