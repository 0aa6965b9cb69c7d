"""ItemKNN against similarities counted over sets of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import INTERACTIONS, make_dataset, make_inputs, make_itemknn, random_sequences
from torch import Tensor

from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models import graph
from msm4sr.models.baselines.itemknn import ItemKNN

N_ITEMS = 12
CROWD = random_sequences(users=50, n_items=N_ITEMS, longest=6)


def slow_nearest(histories: list[list[int]], k: int, shrinkage: float) -> list[dict[int, float]]:
    """Each item's k nearest items and their similarities."""
    users = [{user for user, items in enumerate(histories) if item in items} for item in range(N_ITEMS)]
    nearest = []
    for i in range(N_ITEMS):
        similar = {
            j: len(users[i] & users[j]) / ((len(users[i]) * len(users[j])) ** 0.5 + shrinkage)
            for j in range(N_ITEMS)
            if j != i and users[i] & users[j]
        }
        nearest.append(dict(sorted(similar.items(), key=lambda entry: (-entry[1], entry[0]))[:k]))
    return nearest


def scores(model: ItemKNN, histories: list[list[int]]) -> Tensor:
    lengths = torch.tensor([len(h) for h in histories])
    padded = torch.full((len(histories), int(lengths.max())), 7)  # padding is never read
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = torch.tensor(history)
    catalogue = model.encode_items()
    return model.score(padded, lengths, catalogue, model.scoring_vectors(catalogue))


@pytest.mark.parametrize("interactions", [INTERACTIONS, CROWD], ids=["few users", "many users"])
@pytest.mark.parametrize(("k", "shrinkage"), [(3, 0.0), (100, 2.0), (1, 0.5)])
def test_a_history_is_scored_by_the_nearest_items_of_each_of_its_items(
    interactions: list[list[int]], k: int, shrinkage: float
) -> None:
    model = make_itemknn(make_inputs(interactions), neighbours=k, shrinkage=shrinkage)
    nearest = slow_nearest(interactions, k, shrinkage)
    histories = [[1], [0, 3, 0, 5], [10], [2, 11, 8]]
    for history, ours in zip(histories, scores(model, histories), strict=True):
        expected = [sum(nearest[j].get(i, 0.0) for j in set(history)) for i in range(N_ITEMS)]
        torch.testing.assert_close(ours, torch.tensor(expected))


def test_blocks_of_the_product_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = make_itemknn(make_inputs(CROWD))
    monkeypatch.setattr(graph, "OVERLAPS_AT_ONCE", 50)
    for one, two in zip(complete.buffers(), make_itemknn(make_inputs(CROWD)).buffers(), strict=True):
        assert torch.equal(one, two)


def test_a_score_does_not_depend_on_the_other_histories() -> None:
    model = make_itemknn()
    together = scores(model, INTERACTIONS)
    for row, history in enumerate(INTERACTIONS):
        torch.testing.assert_close(scores(model, [history])[0], together[row])


def test_an_item_without_interactions_has_no_neighbours() -> None:
    assert not scores(make_itemknn(), [[10]]).any()
    assert not scores(make_itemknn(), INTERACTIONS)[:, 10].any()


def test_a_stored_model_scores_the_same_without_the_data(tmp_path: Path) -> None:
    model = make_itemknn(neighbours=4)
    model.save_pretrained(tmp_path)
    again = ItemKNN.from_pretrained(tmp_path)
    assert torch.equal(scores(again, INTERACTIONS), scores(model, INTERACTIONS))
    assert again.config == model.config


def test_items_with_common_users_are_found() -> None:
    """Even users interact with even items, odd users with odd ones."""
    rng = np.random.default_rng(0)
    sequences = [(2 * rng.choice(12, 8, replace=False) + user % 2).tolist() for user in range(40)]
    dataset = make_dataset(sequences, n_items=24)
    model = make_itemknn(make_inputs([s[:-2] for s in sequences], 24))
    assert evaluate(model, dataset, "test")["recall@5"] == 1.0  # 5 even items are unseen by an even user


def test_memory_is_proportional_to_the_number_of_items() -> None:
    n_items = 300_000  # N x N would be 360 GB
    interactions = [[user, user + 1, n_items - 1 - user] for user in range(50)]
    model = make_itemknn(make_inputs(interactions, n_items), neighbours=5)
    assert scores(model, [[0]])[0].topk(2).indices.sort().values.tolist() == [1, n_items - 1]
