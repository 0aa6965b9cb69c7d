"""Settings: every preset for every model, changes by name, and error messages."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings, parse_change, resolve_settings, validated
from msm4sr.models.baselines.popularity import PopularityConfig
from msm4sr.models.baselines.sasrec import SASRecConfig
from msm4sr.models.msm4sr import MSM4SRConfig
from msm4sr.models.registry import MODELS

PRESETS = ("seed", "released", "best")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", list(MODELS))
def test_every_preset_resolves_for_every_model(preset: str, model: str) -> None:
    settings = resolve_settings(preset, model)
    assert settings.model.name == model
    assert isinstance(settings.model, MODELS[model].Config)
    assert settings.seed == 0


def test_the_seed_preset_is_the_paper() -> None:
    settings = resolve_settings("seed")
    model = settings.model
    assert isinstance(model, MSM4SRConfig)
    assert (model.dim, model.layers, model.heads, model.inner_dim, model.experts) == (64, 2, 2, 256, 8)
    assert (model.dropout, model.temperature, model.max_history) == (0.2, 0.07, 50)
    assert (model.similarity, model.id_in_input) == ("dot", False)
    assert (model.expert_bias, model.projections) == (False, "pretrain")
    pretrain = settings.pretrain
    assert (pretrain.cmcl_weight, pretrain.negatives, pretrain.drop, pretrain.mixup) == (0.01, "cross", 0.2, 0.5)
    assert (pretrain.batch_pairs, pretrain.learning_rate, pretrain.patience) == (1024, 1e-3, 20)
    assert (pretrain.max_gradient_norm, pretrain.select) == (5.0, "recall@20")
    assert (settings.features.visual.kind, settings.features.visual.num_keywords) == ("keywords", 15)


def test_the_released_preset_differs_where_the_released_code_does() -> None:
    seed, released = (resolve_settings(name).model_dump() for name in ("seed", "released"))
    differing = {
        f"{section}.{key}": released[section][key]
        for section in ("dataset", "features", "model", "pretrain", "finetune", "evaluation", "device")
        for key, value in seed[section].items()
        if value != released[section][key]
    }
    assert differing == {
        "model.expert_bias": True,
        "model.projections": "none",
        "model.similarity": "cosine",
        "model.id_in_input": True,
        "pretrain.negatives": "within",
        "pretrain.epochs": 300,
        "pretrain.patience": 21,
        "finetune.epochs": 300,
        "finetune.patience": 21,
        "finetune.learning_rate": 1e-4,
        "finetune.weight_decay": 1e-3,
    }
    sasrec = resolve_settings("released", "sasrec").finetune
    assert (sasrec.learning_rate, sasrec.weight_decay) == (1e-3, 0.0)  # the README's values are of MSM4SR only


def test_another_model_takes_over_what_it_shares_with_the_preset() -> None:
    sasrec = resolve_settings("best", "sasrec").model
    ours = resolve_settings("best").model
    assert isinstance(sasrec, SASRecConfig)
    assert isinstance(ours, MSM4SRConfig)
    shared = (set(SASRecConfig.model_fields) & set(MSM4SRConfig.model_fields)) - {"name"}
    assert {"dim", "layers", "heads", "max_history"} <= shared
    assert {name: getattr(sasrec, name) for name in shared} == {name: getattr(ours, name) for name in shared}
    assert resolve_settings("best", "popularity").model == PopularityConfig()


def test_every_sequential_model_learns_the_seen_item_bias_by_default() -> None:
    biases = {name: getattr(resolve_settings("best", name).model, "seen_item_bias", None) for name in MODELS}
    sequential = {"msm4sr", "sasrec", "sasrecm", "s3rec", "difsr", "sine", "mvrnn"}
    assert {name for name, bias in biases.items() if bias} == sequential
    assert not any(biases[name] for name in set(MODELS) - sequential)


def test_a_preset_may_have_settings_of_single_models() -> None:
    rates = {name: resolve_settings("best", name).finetune.learning_rate for name in ("msm4sr", "sasrec", "lightgcn")}
    assert rates == {"msm4sr": 2e-3, "sasrec": 3e-3, "lightgcn": 3e-3}
    assert resolve_settings("best", changes=["finetune.learning_rate=1e-3"]).finetune.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("finetune.learning_rate=1e-4", "finetune", "learning_rate", 1e-4),  # text in YAML 1.1
        ("pretrain.negatives=within", "pretrain", "negatives", "within"),
        ("model.id_in_input=true", "model", "id_in_input", True),
        ("evaluation.exclude_seen=yes", "evaluation", "exclude_seen", True),
        ("model.score_with=[text]", "model", "score_with", ("text",)),
        ("dataset.item_core=5", "dataset", "item_core", 5),
    ],
)
def test_a_change_changes_one_setting(change: str, section: str, key: str, value: object) -> None:
    before, after = (resolve_settings("seed", changes=changes).model_dump() for changes in ((), (change,)))
    assert after[section][key] == value
    before[section][key] = value
    assert after == before


def test_nested_settings_and_the_last_of_two_changes_count() -> None:
    changes = ["features.visual.kind=pooled", "features.text.encoder=/models/a=b", "seed=3", "seed=4"]
    settings = resolve_settings("seed", changes=changes)
    assert settings.features.visual.kind == "pooled"
    assert settings.features.text.encoder == "/models/a=b"  # split at the first equals sign
    assert settings.seed == 4


def test_the_option_seed_is_the_setting_seed() -> None:
    assert resolve_settings("seed", seed=7).seed == 7


@pytest.mark.parametrize("name", ["max_history", "learning_rate", "user_core", "exclude_seen"])
def test_a_key_without_its_section_gets_the_complete_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean '\w+\.{name}'\?"):
        resolve_settings("seed", changes=[f"{name}=1"])


def test_stored_settings_are_read_back_unchanged() -> None:
    for model in MODELS:
        settings = resolve_settings("best", model, ["model.score_with=[text]"] if model == "msm4sr" else [])
        assert validated(RunSettings, settings.model_dump(mode="json"), "here") == settings


def test_an_error_names_the_file_and_the_key() -> None:
    with pytest.raises(InputError, match=r"^run/config\.yaml: pretrain\.drop: .*less than.*given: 2"):
        validated(RunSettings, {"pretrain": {"drop": 2}}, "run/config.yaml")


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunSettings().seed = 3  # type: ignore[misc]


# -- a file of settings ------------------------------------------------------------------------------------------------


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "tuned.yaml"
    file.write_text(text)
    return file


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "model: {dropout: 0.35}\nfinetune:\n  learning_rate: 5.0e-4\n")
    before, after = (resolve_settings("best", "sasrec", file=f).model_dump() for f in (None, file))
    assert (after["model"]["dropout"], after["finetune"]["learning_rate"]) == (0.35, 5e-4)
    before["model"]["dropout"], before["finetune"]["learning_rate"] = 0.35, 5e-4
    assert after == before


SIZES = """
model: {dropout: 0.1, dim: 32}
models: {sasrec: {model: {layers: 1}}}
sizes:
- {users_below: 100, model: {dropout: 0.5}, models: {sasrec: {finetune: {epochs: 90}}}}
- {users_below: 1000, model: {dropout: 0.3}}
"""


def write_interactions(folder: Path, users: int, items: int = 1_000_000) -> None:
    """Interactions of so many users, three each, with so many items in turn."""
    number = pl.arange(3 * users, eager=True)
    frame = pl.DataFrame({"user_id": number // 3, "item_id": number % items})
    frame.write_parquet(folder / "interactions.parquet")


@pytest.mark.parametrize(("users", "dropout", "epochs"), [(99, 0.5, 90), (100, 0.3, 150), (1000, 0.1, 150)])
def test_a_file_may_have_settings_for_few_users(tmp_path: Path, users: int, dropout: float, epochs: int) -> None:
    write_interactions(tmp_path, users)
    settings = resolve_settings("best", "sasrec", file=settings_file(tmp_path, SIZES), data=tmp_path)
    assert isinstance(settings.model, SASRecConfig)
    assert (settings.model.dropout, settings.finetune.epochs) == (dropout, epochs)
    assert (settings.model.dim, settings.model.layers) == (32, 1)
    changed = resolve_settings("best", "sasrec", ["model.dropout=0.2"], None, settings_file(tmp_path, SIZES), tmp_path)
    assert changed.model.model_dump()["dropout"] == 0.2


def test_the_default_trains_longer_on_few_users(tmp_path: Path) -> None:
    epochs = []
    for users in (1_999, 2_000):
        write_interactions(tmp_path, users)
        settings = resolve_settings(data=tmp_path)
        assert isinstance(settings.model, MSM4SRConfig)
        epochs.append((settings.finetune.epochs, settings.model.dropout))
    assert epochs == [(48, 0.4), (12, 0.2)]


def test_rules_for_sizes_are_used_in_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "shop[1]"
    folder.mkdir()
    write_interactions(folder, 1_999, 60)
    assert resolve_settings(data=folder).finetune.epochs == 48


@pytest.mark.parametrize(("items", "learning_rate"), [(60, 0.005), (61, 0.001)])
def test_a_file_may_have_settings_for_many_interactions_per_item(
    tmp_path: Path, items: int, learning_rate: float
) -> None:
    write_interactions(tmp_path, 2_000, items)
    rule = "{interactions_per_item_from: 100, finetune: {learning_rate: 0.005}}"
    file = settings_file(tmp_path, f"finetune: {{learning_rate: 0.001}}\nsizes: [{rule}]\n")
    assert resolve_settings("best", "sasrec", file=file, data=tmp_path).finetune.learning_rate == learning_rate


def test_the_default_for_dense_data_is_fine_tuned_as_other_models_are(tmp_path: Path) -> None:
    write_interactions(tmp_path, 2_000, 60)
    dense, other = resolve_settings(data=tmp_path), resolve_settings(model="sasrec", data=tmp_path)
    assert isinstance(dense.model, MSM4SRConfig)
    assert (dense.model.expert_dropout, dense.model.id_scale) == (0.0, 4.0)
    assert dense.finetune == other.finetune


def test_options_come_after_the_file(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "seed: 5\nmodel: {dropout: 0.3, layers: 1}\n")
    settings = resolve_settings("best", "sasrec", ["model.dropout=0.1"], 6, file)
    assert isinstance(settings.model, SASRecConfig)
    assert (settings.seed, settings.model.dropout, settings.model.layers) == (6, 0.1, 1)


def test_every_preset_is_a_settings_file_of_msm4sr() -> None:
    for preset in PRESETS:
        file = Path(str(files("msm4sr.experiments") / "presets" / f"{preset}.yaml"))
        assert resolve_settings("seed", file=file).model == resolve_settings(preset).model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: {learningrate: 1}", r"no setting 'finetune.learningrate' of sasrec; did you mean 'finetune.learn"),
        ("model: {attribute_weight: 1}", r"no setting 'model.attribute_weight' of sasrec \(difsr has it\)"),
        ("finetune: {learning_rate: fast}", r"finetune\.learning_rate: 'fast' is not a number"),
        ("model: {dropout: 2}", r"model\.dropout: .*less than 1.*given: 2"),
        ("models: [sasrec]", r"models: not a mapping from models to settings"),
        ("models: {sasrek: {model: {dim: 8}}}", r"models: there is no model 'sasrek', only .*; did you mean 'sasrec'"),
        ("models: {sasrec: {model: {dims: 8}}}", r"no setting 'model.dims' of sasrec"),
        ("model: {name: difsr}", r"settings of difsr, but --model is sasrec"),
        ("sizes: {users_below: 3}", r"sizes: not a list of settings, each with a number `users_below` or `inter"),
        ("sizes: [{model: {dropout: 0.4}}]", r"sizes: not a list of settings, each with a number `users_below` or"),
        ("sizes: [{users_below: 9, interactions_per_item_from: 9}]", r"sizes: not a list of settings, each with a num"),
        ("model: 3", r"no setting 'model'"),
        ("model: {dropout: {rate: 3}}", r"no setting 'model.dropout.rate'"),
        ("- model", r"not a mapping"),
        ("", r"not a mapping"),
        ("model: {", r"not YAML"),
    ],
)
def test_an_error_in_a_file_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: .*{message}"):
        resolve_settings("best", "sasrec", file=file)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml: not readable"):
        resolve_settings(file=tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("2024", 2024), ("'2024'", "2024"), ('"1e-4"', "1e-4"), ("1e-4", 1e-4), ("-2.5E+3", -2500.0), ("nan", "nan"),
     ("e4", "e4"), ("2023-01-05", "2023-01-05")],
)  # fmt: skip
def test_a_quoted_value_is_text(text: str, value: Any) -> None:
    key, found = parse_change(f"pretrain.init_from={text}")
    assert (key, found, type(found)) == ("pretrain.init_from", value, type(value))
