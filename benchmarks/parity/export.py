"""A data set as RecBole's atomic files, such that both libraries train on the same pairs and rank the same targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset, item_categories, test_targets, validation_targets
from msm4sr.experiments.settings import RunSettings

NAME = "exported"

DATA: dict[str, Any] = {
    # Every row of NAME.inter, and every item of NAME.item, with or without interactions.
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "timestamp",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
    "filter_inter_by_user_or_item": False,
    # Leave-one-out: the last item is test, the one before validation; all items are ranked, seen items included.
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "repeatable": True,
    "metrics": ["NDCG", "Recall"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 10,
}
"""RecBole's settings for our protocol."""


def export_dataset(dataset: Dataset, folder: Path) -> None:
    """Write `folder`/NAME/NAME.inter and .item.

    Users and items are named by their row numbers. The time of an interaction is its place in the user's history, so
    that ties keep our order.
    """
    table = pl.DataFrame(
        {
            "user_id:token": dataset.histories.row_numbers,
            "item_id:token": dataset.histories.values,
            "timestamp:float": np.concatenate([np.arange(n) for n in dataset.histories.lengths]),
        }
    )
    numbers, _ = item_categories(dataset)
    classes = [" ".join(map(str, numbers[item])) for item in range(dataset.n_items)]
    items = pl.DataFrame({"item_id:token": np.arange(dataset.n_items), "class:token_seq": classes})
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    table.write_csv(folder / NAME / f"{NAME}.inter", separator="\t")
    items.write_csv(folder / NAME / f"{NAME}.item", separator="\t")


def as_recbole_transformer(settings: RunSettings) -> dict[str, Any]:
    """Our settings of SASRec (or of S3-Rec, which is one) and of its training, by RecBole's names."""
    model = settings.model.model_dump()
    return {
        "n_layers": model["layers"],
        "n_heads": model["heads"],
        "hidden_size": model["dim"],
        "inner_size": model["inner_dim"],
        "hidden_dropout_prob": model["dropout"],
        "attn_dropout_prob": model["attention_dropout"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "MAX_ITEM_LIST_LENGTH": model["max_history"],
        "loss_type": "CE",
        "train_neg_sample_args": None,
        **as_recbole_training(settings),
    }


def as_recbole_training(settings: RunSettings) -> dict[str, Any]:
    """Our settings of the training, by RecBole's names."""
    training = settings.finetune
    return {
        "train_batch_size": training.batch_pairs,
        "learner": "adam",
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "clip_grad_norm": {"max_norm": training.max_gradient_norm},
        "seed": settings.seed,
    }


def check_same_data(theirs: dict[str, Any], dataset: Dataset, rows: int) -> None:
    """Raises RuntimeError unless both have the same number of rows, users and items, and the same targets."""
    wanted = {
        "rows": rows,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "targets": {
            "validation": validation_targets(dataset).targets.tolist(),
            "test": test_targets(dataset).targets.tolist(),
        },
    }
    for name, value in wanted.items():
        if theirs[name] != value:
            raise RuntimeError(f"the two libraries have different {name}")
