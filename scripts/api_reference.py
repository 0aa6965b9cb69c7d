"""The pages of the Python API: which objects they document, and which of these lack a docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import msm4sr


@dataclass(frozen=True)
class ApiPage:
    """A page of the Python API: its title, an introduction, and the objects that it documents."""

    title: str
    text: str
    names: tuple[str, ...]


def public_name(path: str) -> str:
    """The name by which a user imports an object: msm4sr.evaluate for msm4sr.evaluation.evaluate.evaluate."""
    name = path.rpartition(".")[2]
    exported = name in msm4sr.__all__ and getattr(msm4sr, name) is find_object(path)
    return f"msm4sr.{name}" if exported else path


API = {
    "data": ApiPage(
        "Data",
        "A prepared folder as arrays. [File formats](../file-formats.md) describes the folder.",
        (
            "msm4sr.data.dataset.load_dataset",
            "msm4sr.data.dataset.DataSettings",
            "msm4sr.data.dataset.Dataset",
            "msm4sr.data.dataset.Targets",
            "msm4sr.data.dataset.training_histories",
            "msm4sr.data.dataset.validation_targets",
            "msm4sr.data.dataset.test_targets",
            "msm4sr.data.items.Item",
            "msm4sr.data.statistics.statistics",
            "msm4sr.data.toyshop.generate_toyshop",
            "msm4sr.data.toyshop.write_toyshop_csv",
            "msm4sr.ragged.Ragged",
            "msm4sr.errors.InputError",
        ),
    ),
    "features": ApiPage(
        "Features",
        "From texts and images to stored embeddings.",
        (
            "msm4sr.features.extract.extract_features",
            "msm4sr.features.settings.FeatureSettings",
            "msm4sr.features.settings.TextSettings",
            "msm4sr.features.settings.VisualSettings",
            "msm4sr.features.store.Features",
            "msm4sr.features.store.load_features",
            "msm4sr.features.content.ContentEncoder",
        ),
    ),
    "models": ApiPage(
        "Models",
        "Models see tensors only. [Models and variants](../models.md) lists the systems and their settings.",
        (
            "msm4sr.models.msm4sr.MSM4SR",
            "msm4sr.models.msm4sr.MSM4SRConfig",
            "msm4sr.models.registry.from_pretrained",
            "msm4sr.models.registry.build",
            "msm4sr.models.hub.push_to_hub",
            "msm4sr.models.model_card.TrainingSummary",
            "msm4sr.models.base.Inputs",
            "msm4sr.models.base.Model",
            "msm4sr.models.base.FactorizedModel",
            "msm4sr.models.base.ContentModel",
            "msm4sr.objectives",
        ),
    ),
    "training": ApiPage(
        "Training",
        "The two stages, their settings, and callbacks.",
        (
            "msm4sr.training.stages.pretrain",
            "msm4sr.training.stages.finetune",
            "msm4sr.training.settings.PretrainSettings",
            "msm4sr.training.settings.FinetuneSettings",
            "msm4sr.training.trainer.TrainerOptions",
            "msm4sr.training.device.Device",
            "msm4sr.training.callbacks.Callback",
            "msm4sr.training.callbacks.TrainingPlan",
            "msm4sr.training.callbacks.StepRecord",
            "msm4sr.training.callbacks.EpochRecord",
            "msm4sr.training.callbacks.TrainingProgress",
            "msm4sr.progress.Progress",
        ),
    ),
    "evaluation": ApiPage(
        "Evaluation",
        "Full ranking, metrics and tests. [Metrics](../metrics.md) has the formulas.",
        (
            "msm4sr.evaluation.evaluate.evaluate",
            "msm4sr.evaluation.evaluate.EvaluationSettings",
            "msm4sr.evaluation.evaluate.rank_users",
            "msm4sr.evaluation.metrics.metrics_per_user",
            "msm4sr.evaluation.metrics.mean_metrics",
            "msm4sr.evaluation.metrics.chance",
            "msm4sr.evaluation.significance.paired_bootstrap",
            "msm4sr.evaluation.significance.Difference",
            "msm4sr.evaluation.significance.holm",
        ),
    ),
    "recommend": ApiPage(
        "Recommendation",
        "From a history to recommendations: the classes behind `msm4sr recommend` and `msm4sr serve`.",
        (
            "msm4sr.experiments.loading.load_recommender",
            "msm4sr.recommend.recommender.Recommender",
            "msm4sr.recommend.recommender.Recommendations",
            "msm4sr.recommend.recommender.Recommendation",
            "msm4sr.recommend.rules.Rules",
            "msm4sr.recommend.explanations.Explanation",
            "msm4sr.recommend.index.base.IndexSettings",
            "msm4sr.experiments.loading.export_run",
        ),
    ),
    "experiments": ApiPage(
        "Experiments",
        "Settings and presets. Runs, grids and studies are commands: see the [command line](../command-line.md).",
        (
            "msm4sr.experiments.settings.resolve_settings",
            "msm4sr.experiments.settings.RunSettings",
            "msm4sr.experiments.settings.WarmStart",
            "msm4sr.experiments.stages.build_model",
            "msm4sr.experiments.warm_start.warm_start",
        ),
    ),
    "plugins": ApiPage(
        "Plugins",
        "Your own package can add a model, source, encoder, kind of features, training task, vector index, state store "
        "or executor, most by a decorator and an entry point. [Contributing](../../contributing.md) has examples.",
        (
            "msm4sr.registry.Registry",
            "msm4sr.models.registry.register_model",
            "msm4sr.data.preparation.source.Source",
            "msm4sr.data.preparation.source.Rules",
            "msm4sr.features.extract.Extractor",
            "msm4sr.features.text.SentenceEncoder",
            "msm4sr.features.visual.ImageEncoder",
            "msm4sr.training.task.Task",
            "msm4sr.recommend.index.base.VectorIndex",
            "msm4sr.serving.state.store.StateStore",
            "msm4sr.executors.Executor",
        ),
    ),
}


def find_object(path: str) -> Any:
    """The module, class or function of a dotted path."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def undocumented() -> list[str]:
    """The objects of the API, and their public methods and properties, that have no docstring."""
    return [name for page in API.values() for path in page.names for name in _undocumented(path)]


def summary(found: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")


def _undocumented(path: str) -> Iterator[str]:
    found = find_object(path)
    if not found.__doc__:  # that of a base class does not count
        yield path
    if inspect.ismodule(found):
        members = {name: value for name, value in vars(found).items() if getattr(value, "__module__", "") == path}
    else:
        members = dict(vars(found)) if isinstance(found, type) else {}
    for name, value in members.items():
        function = inspect.unwrap(getattr(value, "__func__", value)) if not isinstance(value, property) else value
        is_code = inspect.isfunction(function) or isinstance(function, property | type)
        if not name.startswith("_") and is_code and not inspect.getdoc(getattr(found, name)):
            yield f"{path}.{name}"


def api_pages() -> dict[str, str]:
    """The pages under `reference/api/`, by file name."""
    pages = {"index.md": _api_index()}
    for name, page in API.items():
        lines = [f"# {page.title}", "", page.text]
        for path in page.names:
            lines += ["", f"::: {path}"]
            if (public := public_name(path)) != path:
                lines += ["    options:", f"      heading: {public}", f"      toc_label: {public.rpartition('.')[2]}"]
        pages[f"{name}.md"] = "\n".join(lines) + "\n"
    return pages


def _api_index() -> str:
    """The names of `msm4sr.__all__` with their summaries, and the list of pages."""
    where = {public_name(path): (page, path) for page, of in API.items() for path in of.names}
    lines = [
        "# Python API",
        "",
        "`import msm4sr` gives these names; they are imported on first use. Everything else that is documented here is "
        "imported from its module.",
        "",
        "| name | what it is |",
        "|---|---|",
    ]
    for name in sorted(msm4sr.__all__, key=str.lower):
        page, path = where[f"msm4sr.{name}"]
        lines.append(f"| [`{name}`]({page}.md#{path}) | {summary(getattr(msm4sr, name))} |")
    return "\n".join(lines) + "\n"
