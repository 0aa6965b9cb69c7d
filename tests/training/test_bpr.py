"""Batches of (user, seen item, unseen item), and the loss over them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from builders import HISTORIES, make_dataset, make_inputs, make_lightgcn, ragged, random_sequences

from msm4sr.data.dataset import training_histories
from msm4sr.errors import InputError
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.stages import finetune
from msm4sr.training.tasks.bpr import BPRTask, PairBatch, bpr_loss, pair_batches
from msm4sr.training.trainer import TrainerOptions

N_ITEMS = 12


def batches(seen: list[list[int]] = HISTORIES, n_items: int = N_ITEMS, size: int = 4, seed: int = 0) -> list[PairBatch]:
    return list(pair_batches(ragged(seen), n_items, size, np.random.default_rng(seed)))


@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_epoch_has_every_interaction_once(size: int) -> None:
    found = Counter(pair for b in batches(size=size) for pair in zip(b.users.tolist(), b.seen.tolist(), strict=True))
    assert found == Counter((user, item) for user, items in enumerate(HISTORIES) for item in items)
    settings = FinetuneSettings(batch_pairs=size)
    sizes = [len(batch.users) for batch in batches(size=size)]
    assert all(n == size for n in sizes[:-1])
    assert len(sizes) == BPRTask(make_lightgcn(), settings).count_batches(ragged(HISTORIES), settings)


def test_the_other_item_is_any_that_the_user_has_not_seen() -> None:
    drawn: dict[int, Counter[int]] = {user: Counter() for user in range(len(HISTORIES))}
    for seed in range(400):
        for batch in batches(seed=seed):
            for user, item in zip(batch.users.tolist(), batch.unseen.tolist(), strict=True):
                drawn[user][item] += 1
    for user, counts in drawn.items():
        assert set(counts) == set(range(N_ITEMS)) - set(HISTORIES[user])
        expected = sum(counts.values()) / len(counts)
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())  # uniform


def test_prefixes_are_refused() -> None:
    with pytest.raises(InputError, match=r"finetune\.pairs=last: LightGCN is trained on users and items"):
        BPRTask(make_lightgcn(), FinetuneSettings(pairs="last"))


def test_a_user_who_has_seen_everything_is_skipped() -> None:
    users = torch.cat([batch.users for batch in batches([[0, 1, 2], [1], [2, 0, 1, 1]], n_items=3)])
    assert users.tolist() == [1]


def test_a_seed_draws_the_same_batches_and_another_seed_others() -> None:
    def drawn(seed: int) -> list[list[int]]:
        return [part.tolist() for b in batches(seed=seed) for part in (b.users, b.seen, b.unseen)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_loss_is_bpr_and_the_penalty_of_the_vectors_in_the_batch() -> None:
    model = make_lightgcn(l2=0.3)
    batch = batches(size=100)[0]
    users, items = (part.detach() for part in model.propagate())
    expected = 0.0
    for u, i, j in zip(batch.users, batch.seen, batch.unseen, strict=True):
        expected -= float(torch.log(torch.sigmoid(users[u] @ items[i] - users[u] @ items[j])))
        rows = (model.user_embedding.weight[u], model.item_embedding.weight[i], model.item_embedding.weight[j])
        expected += 0.3 * 0.5 * sum(float(row.detach().square().sum()) for row in rows)
    assert float(bpr_loss(model, batch).detach()) == pytest.approx(expected / len(batch.users), rel=1e-5)


def test_graph_models_are_trained_by_bpr_in_the_fine_tuning_stage() -> None:
    dataset = make_dataset(random_sequences(users=30, n_items=20, longest=9), n_items=20)
    seen = training_histories(dataset)
    model = make_lightgcn(make_inputs([seen[user].tolist() for user in range(30)], 20))
    settings = FinetuneSettings(epochs=6, batch_pairs=16, learning_rate=0.05, select="mrr")
    records = finetune(model, dataset, settings, TrainerOptions(device=Device(accelerator="cpu")))
    assert records[-1].loss < records[0].loss
