"""Our SASRec, S3-Rec or SINE beside RecBole's, on the same split with the same hyper-parameters and the same rows.

    python benchmarks/parity/sequential.py sasrec --data DATA/ml-100k                     # 3 seeds of 5 epochs each
    python benchmarks/parity/sequential.py sine --data DATA/ml-100k --seeds 1 --epochs 1  # to see that it works

First RecBole's trained weights are copied into our model: the scores must agree to 1e-5. Then both are trained, a row a
prefix in both (`finetune.pairs=last`), and each takes the epoch that validates best; what is printed is NDCG@10 of both
parts, with the mean and deviation over the seeds. All scores are ranked by our evaluation, among all items, those taken
included. A history is its last 10 items, fewer than any user of ml-100k has: no row that is ranked has padding, to
which RecBole's SINE attends. S3-Rec is pre-trained first: RecBole masks the prefixes of a history one by one, we the
history, which is so many times shorter an epoch; ours has so many more of them, for as many masked items.
RecBole gets an environment of its own (.venv-recbole, made on first use: some minutes, 2 GB).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from environment import ensure_environment, run_recbole
from export import DATA, NAME, as_recbole_training, as_recbole_transformer, check_same_data, export_dataset
from report import Reached, compare, ndcg_of
from torch import Tensor

from msm4sr.cli.console import told
from msm4sr.data.batches import pad_histories
from msm4sr.data.dataset import Dataset, Targets, load_dataset, test_targets, training_histories, validation_targets
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.models.base import ProductModel
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.training.finetune import finetune
from msm4sr.training.s3rec import pretrain_s3rec

PARTS = ("validation", "test")
HISTORY = 10


class Name(StrEnum):
    """The models that both libraries have."""

    sasrec = "sasrec"
    s3rec = "s3rec"
    sine = "sine"


THEIRS = {Name.sasrec: "SASRec", Name.s3rec: "S3Rec", Name.sine: "SINE"}


def main(
    model: Annotated[Name, typer.Argument()],
    data: Annotated[Path, typer.Option(help="A prepared folder.", show_default=False)],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of both.")] = 5,
    pretrain_epochs: Annotated[int, typer.Option(min=1, help="Of RecBole's S3-Rec; see above.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch.")] = 2,
    environment: Annotated[Path, typer.Option(help="RecBole's.")] = Path(".venv-recbole"),
) -> None:
    torch.set_num_threads(threads)
    with told():
        python = ensure_environment(environment)

        def train(seed: int) -> tuple[Reached, Reached, float]:
            settings = same_settings(model, epochs, seed)
            dataset = load_dataset(data, settings.dataset)
            ours = train_ours(dataset, settings, pretrain_epochs)
            with tempfile.TemporaryDirectory() as folder:
                theirs, difference = train_theirs(python, model, dataset, settings, pretrain_epochs, Path(folder))
            return ours, theirs, difference

        compare(f"{THEIRS[model]} on {data.name}, {epochs} epochs", seeds, train)


def same_settings(model: Name, epochs: int, seed: int) -> RunSettings:
    fixed = {
        "model.max_history": HISTORY,
        "finetune.epochs": epochs,
        "finetune.patience": epochs,
        "finetune.max_steps": 0,
        "finetune.batch_pairs": 1024,
        "finetune.pairs": "last",
        "finetune.learning_rate": 1e-3,
        "finetune.schedule": "constant",
        "finetune.select": "ndcg@10",
        "device.accelerator": "cpu",
    }
    if model == Name.sine:
        fixed |= {"model.recency": False, "model.prototypes": 50, "model.interests": 4}  # as RecBole's has it
    else:
        fixed |= {"model.dropout": 0.2, "model.attention_dropout": 0.2}
    return resolve_settings("seed", model, [f"{key}={value}" for key, value in fixed.items()], seed)


def as_recbole(name: Name, settings: RunSettings, pretrain_epochs: int) -> dict[str, Any]:
    """The same in RecBole's words."""
    model, training = settings.model.model_dump(), as_recbole_training(settings)
    common = training | {"MAX_ITEM_LIST_LENGTH": HISTORY, "train_neg_sample_args": None, "layer_norm_eps": 1e-5}
    if name == Name.sine:
        return common | {
            "embedding_size": model["dim"],
            "prototype_size": model["prototypes"],
            "interest_size": model["interests"],
            "tau_ratio": model["interest_temperature"],
            "reg_loss_ratio": model["prototype_weight"],
            "loss_type": "NLL",  # its cross-entropy leaves out the term that keeps the prototypes apart
        }
    sizes = common | as_recbole_transformer(settings)
    if name == Name.sasrec:
        return sizes
    weights = {key: model[key] for key in ("aap_weight", "mip_weight", "map_weight", "sp_weight")}
    attributes = {"load_col": {**DATA["load_col"], "item": ["item_id", "class"]}, "item_attribute": "class"}
    return sizes | weights | attributes | {"mask_ratio": model["mask_probability"], "pretrain_epochs": pretrain_epochs}


def train_ours(dataset: Dataset, settings: RunSettings, pretrain_epochs: int) -> Reached:
    """NDCG@10 on validation and test of the epoch that validates best."""
    model = build_model(settings, dataset, {})
    assert isinstance(model, ProductModel)
    if isinstance(model, S3Rec):
        histories = training_histories(dataset)
        prefixes = sum(min(end, HISTORY) for n in np.diff(histories.offsets) for end in range(1, n))
        epochs = round(pretrain_epochs * prefixes / len(histories.values))
        stage = settings.pretrain.model_copy(update={"epochs": epochs, "max_steps": 0, "validate_every": epochs})
        pretrain_s3rec(model, dataset, stage, seed=settings.seed, device=settings.device)
    finetune(model, dataset, settings.finetune, seed=settings.seed, device=settings.device)
    parts = (validation_targets(dataset), test_targets(dataset))
    validation, test = (ndcg_of(scores_of(model, part), part.targets) for part in parts)
    return validation, test


def train_theirs(
    python: Path, name: Name, dataset: Dataset, settings: RunSettings, pretrain_epochs: int, folder: Path
) -> tuple[Reached, float]:
    """The same of RecBole, and how far our scores with its last weights are from its own."""
    export_dataset(dataset, folder)
    epochs = settings.finetune.epochs
    job = {
        "model": THEIRS[name],
        "dataset": NAME,
        "epochs": epochs,
        "pretrain_epochs": pretrain_epochs if name == Name.s3rec else 0,
        "parts": PARTS,
        "weights": True,
        "config": DATA | as_recbole(name, settings, pretrain_epochs),
    }
    about = run_recbole(python, job, folder, torch.get_num_threads())
    pairs = int(np.maximum(np.diff(training_histories(dataset).offsets) - 1, 0).sum())
    check_same_data(about, dataset, pairs)
    targets = {"validation": validation_targets(dataset), "test": test_targets(dataset)}
    found = [
        tuple(ndcg_of(np.load(folder / f"scores-{part}-{epoch}.npy"), targets[part].targets) for part in PARTS)
        for epoch in range(1, epochs + 1)
    ]
    best = max(found, key=lambda values: values[0])
    model = build_model(settings, dataset, {})
    assert isinstance(model, ProductModel)
    stored = np.load(folder / "weights.npz")
    copy = {Name.sine: sine_weights}.get(name, transformer_weights)
    model.load_state_dict(model.state_dict() | copy({key: torch.from_numpy(stored[key]) for key in stored}))
    theirs = np.load(folder / f"scores-validation-{epochs}.npy")
    return (best[0], best[1]), float(np.abs(theirs - scores_of(model, targets["validation"])).max())


def scores_of(model: ProductModel, targets: Targets) -> np.ndarray:
    """[users, items]."""
    histories = [targets.histories[user] for user in range(len(targets.targets))]
    items, lengths = pad_histories(histories, model.max_history)
    with torch.inference_mode():
        catalogue = model.eval().encode_items()
        return model.score(items, lengths, catalogue, model.scoring_vectors(catalogue)).numpy()


def item_vectors(theirs: Mapping[str, Tensor]) -> Tensor:
    """The item embedding in our order; its row 0 is padding, S3-Rec's last one is the mask."""
    order = theirs["items"]
    return torch.empty(len(order), theirs["item_embedding.weight"].shape[1]).index_copy_(
        0, order, theirs["item_embedding.weight"][1 : len(order) + 1]
    )


def transformer_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RecBole's weights of SASRec, or of a fine-tuned S3-Rec, by our names."""
    names = {"position_embedding.weight": "transformer.position.weight"}
    kinds = ("weight", "bias")
    names |= {f"LayerNorm.{kind}": f"transformer.norm.{kind}" for kind in kinds}
    modules = {
        "multi_head_attention.dense": "attention.out",
        "multi_head_attention.LayerNorm": "attention_norm",
        "feed_forward.dense_1": "feed_forward.0",
        "feed_forward.dense_2": "feed_forward.2",
        "feed_forward.LayerNorm": "feed_forward_norm",
    }
    ours = {"item_embedding.weight": item_vectors(theirs)}
    layer = 0
    while f"trm_encoder.layer.{layer}.feed_forward.dense_1.weight" in theirs:
        place, here = f"trm_encoder.layer.{layer}", f"transformer.layers.{layer}"
        for kind in kinds:
            names |= {f"{place}.{module}.{kind}": f"{here}.{own}.{kind}" for module, own in modules.items()}
            qkv = [theirs[f"{place}.multi_head_attention.{part}.{kind}"] for part in ("query", "key", "value")]
            ours[f"{here}.attention.qkv.{kind}"] = torch.cat(qkv)
        layer += 1
    return ours | {own: theirs[name] for name, own in names.items()}


def sine_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RecBole's weights of SINE by our names.

    Its interests begin with the least active concept, ours with the most. The bias of its ln2 changes nothing: it is
    the same for all concepts.
    """
    return {
        "item_embedding.weight": item_vectors(theirs),
        "prototypes.weight": theirs["C.weight"],
        "activation.inner.weight": theirs["w1"].T,
        "activation.outer": theirs["w2"].unsqueeze(0),
        "concept.weight": theirs["w3"].T,
        "next_concept.weight": theirs["w4"].unsqueeze(0),
        "importance.inner.weight": theirs["w_k_1"].flip(0).transpose(1, 2).flatten(0, 1),
        "importance.outer": theirs["w_k_2"].flip(0),
        "concept_norm.weight": theirs["ln2.weight"],
        "next_norm.weight": theirs["ln4.weight"],
        "next_norm.bias": theirs["ln4.bias"],
    }


if __name__ == "__main__":
    typer.run(main)
