"""The user-item graph, and the contract of the models that propagate over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import INTERACTIONS, make_dataset, make_dualgnn, make_grcn, make_inputs, make_lightgcn, ragged
from torch import Tensor

from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.base import Inputs
from msm4sr.models.graph import UserItemGraph
from msm4sr.models.graph_model import GraphModel
from msm4sr.ragged import Ragged
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.stages import finetune
from msm4sr.training.tasks.bpr import bpr_loss, pair_batches
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
N_ITEMS = 12
EDGES = sorted({(user, item) for user, items in enumerate(INTERACTIONS) for item in items})
MODELS: dict[str, Callable[..., GraphModel]] = {"lightgcn": make_lightgcn, "grcn": make_grcn, "dualgnn": make_dualgnn}


@pytest.fixture
def graph() -> UserItemGraph:
    return UserItemGraph(make_inputs().histories, N_ITEMS)


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Callable[..., GraphModel]:
    return MODELS[request.param]


def a_batch(seed: int = 0) -> Any:
    return next(pair_batches(ragged(INTERACTIONS), N_ITEMS, 64, np.random.default_rng(seed)))


def scores(model: GraphModel, histories: list[list[int]], users: list[int] | None = None) -> Tensor:
    """[B, N]."""
    lengths = torch.tensor([len(h) for h in histories])
    padded = torch.zeros(len(histories), int(lengths.max()), dtype=torch.int64)
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = torch.tensor(history)
    with torch.inference_mode():
        catalogue = model.encode_items()
        keys = model.scoring_vectors(catalogue)
        rows = None if users is None else torch.tensor(users)
        return model.score(padded, lengths, catalogue, keys, rows)


# The graph


def test_a_repeated_interaction_is_one_edge(graph: UserItemGraph) -> None:
    assert list(zip(graph.users.tolist(), graph.items.tolist(), strict=True)) == EDGES
    assert graph.user_degrees().tolist() == [len(set(items)) for items in INTERACTIONS]
    assert graph.item_degrees().tolist() == [sum(item in items for items in INTERACTIONS) for item in range(N_ITEMS)]


def by_hand(weights: Tensor, users: Tensor, items: Tensor) -> dict[str, Tensor]:
    """The sums, products and softmaxes, edge by edge."""
    to_users, to_items = torch.zeros_like(users), torch.zeros_like(items)
    for edge, (user, item) in enumerate(EDGES):
        to_users = to_users.index_add(0, torch.tensor([user]), (weights[edge] * items[item]).unsqueeze(0))
        to_items = to_items.index_add(0, torch.tensor([item]), (weights[edge] * users[user]).unsqueeze(0))
    products = torch.stack([users[user] @ items[item] for user, item in EDGES])
    of_user = torch.stack(
        [w.exp() / sum(weights[e].exp() for e, (v, _) in enumerate(EDGES) if v == u)
         for w, (u, _) in zip(weights, EDGES, strict=True)]
    )  # fmt: skip
    of_item = torch.stack(
        [w.exp() / sum(weights[e].exp() for e, (_, j) in enumerate(EDGES) if j == i)
         for w, (_, i) in zip(weights, EDGES, strict=True)]
    )  # fmt: skip
    return {"to_users": to_users, "to_items": to_items, "products": products, "of_user": of_user, "of_item": of_item}


def test_sums_products_and_softmaxes_over_edges_are_those_of_a_loop_and_so_are_their_gradients(
    graph: UserItemGraph,
) -> None:
    given = [torch.randn(len(EDGES)), torch.randn(len(INTERACTIONS), 3), torch.randn(N_ITEMS, 3)]

    def with_gradients(compute: Callable[..., dict[str, Tensor]]) -> dict[str, Any]:
        leaves = [tensor.double().requires_grad_() for tensor in given]
        results = compute(*leaves)
        return {
            name: (result, torch.autograd.grad((result * result.detach().sin()).sum(), leaves, allow_unused=True))
            for name, result in results.items()
        }

    ours = with_gradients(
        lambda weights, users, items: {
            "to_users": graph.sum_to_users(weights, items),
            "to_items": graph.sum_to_items(weights, users),
            "products": graph.products(users, items),
            "of_user": graph.softmax_by_user(weights),
            "of_item": graph.softmax_by_item(weights),
        }
    )
    expected = with_gradients(by_hand)
    for name, (result, gradients) in expected.items():
        torch.testing.assert_close(ours[name][0], result)
        for a, b in zip(ours[name][1], gradients, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(a, b)


# The contract of graph models


def test_a_user_of_the_training_data_is_scored_by_the_node(make: Callable[..., GraphModel]) -> None:
    model = make().eval()
    users, items = model.propagate()
    assert users.shape[0] == len(INTERACTIONS)
    assert items.shape == (N_ITEMS, users.shape[1])
    torch.testing.assert_close(scores(model, [[1], [4, 4]], users=[3, 0]), (users[[3, 0]] @ items.T).detach())


def test_an_unknown_history_is_folded_in_as_a_new_user(make: Callable[..., GraphModel]) -> None:
    model = make().eval()
    _, items = model.propagate()
    for history in ([1, 5, 0], [10], [3, 3, 4, 3]):
        folded = sum(model.fold_in_weights[item] * items[item] for item in set(history)) / len(set(history)) ** 0.5
        torch.testing.assert_close(scores(model, [history])[0], (items @ folded).detach(), rtol=1e-4, atol=1e-5)


def test_a_known_users_new_items_are_folded_in_if_asked(make: Callable[..., GraphModel]) -> None:
    plain, model = make().eval(), make(fold_in_new_items=True).eval()
    trained = INTERACTIONS[0]  # 1, 5, 0
    repeated = scores(model, [[*trained, 1, 1]], users=[0])
    torch.testing.assert_close(repeated, scores(plain, [trained], users=[0]), rtol=1e-4, atol=1e-6)
    users, items = (vectors.detach() for vectors in model.propagate())

    def folded(history: list[int]) -> torch.Tensor:
        return sum(model.fold_in_weights[item] * items[item] for item in history) / len(history) ** 0.5  # type: ignore

    new = [*trained, 7, 10, 7]
    moved = users[0] + folded([*trained, 7, 10]) - folded(trained)
    torch.testing.assert_close(scores(model, [new], users=[0])[0], items @ moved, rtol=1e-4, atol=1e-5)
    cut = scores(model, [[7, 10]], users=[0])  # a long history, of which the latest items are given
    torch.testing.assert_close(cut[0], items @ moved, rtol=1e-4, atol=1e-5)
    together = scores(model, [new, [2]], users=[0, 2])  # padded
    torch.testing.assert_close(together[0], items @ moved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], items @ users[2], rtol=1e-4, atol=1e-5)


def test_a_score_does_not_depend_on_the_other_histories_nor_on_what_comes_later(
    make: Callable[..., GraphModel],
) -> None:
    model = make().eval()
    histories = [[1, 5, 0, 5], [4], [11, 2, 2]]
    together = scores(model, histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(scores(model, [history])[0], together[row], rtol=1e-4, atol=1e-6)
    known = scores(model, histories, users=[4, 0, 2])
    torch.testing.assert_close(scores(model, histories[1:2], users=[0])[0], known[1], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        catalogue = model.encode_items()
        prefixes = (
            model.encode_histories(torch.tensor(histories[:1]), catalogue)[0] @ model.scoring_vectors(catalogue).T
        )
    for end in range(1, 5):
        torch.testing.assert_close(scores(model, [histories[0][:end]])[0], prefixes[end - 1], rtol=1e-4, atol=1e-5)


def test_an_item_without_interactions_has_finite_scores(make: Callable[..., GraphModel]) -> None:
    model = make().eval()
    assert scores(model, INTERACTIONS, users=[0, 1, 2, 3, 4])[:, 10].isfinite().all()
    assert scores(model, [[10], [1, 10]]).isfinite().all()


def test_the_scores_of_a_stored_graph_model_are_bit_identical(make: Callable[..., GraphModel], tmp_path: Path) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(scores(again, INTERACTIONS), scores(model, INTERACTIONS))
    assert torch.equal(
        scores(again, INTERACTIONS, users=[0, 1, 2, 3, 4]), scores(model, INTERACTIONS, users=[0, 1, 2, 3, 4])
    )


def test_gradients_reach_every_weight(make: Callable[..., GraphModel]) -> None:
    model = make(l2=0.01)
    bpr_loss(model, a_batch()).backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.any(), name


def test_mixed_precision_trains_to_about_the_same_loss(make: Callable[..., GraphModel]) -> None:
    sequences = two_communities()
    dataset, inputs = make_dataset(sequences, 24), make_inputs([s[:-2] for s in sequences], 24, ("text", "visual"))
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        options = TrainerOptions(device=Device(accelerator="cpu", precision=precision))  # type: ignore[arg-type]
        records = finetune(make(inputs, dim=16), dataset, FinetuneSettings(epochs=2), options)
        losses.append([record.loss for record in records])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_cached_propagation_is_dropped_by_a_step_and_by_new_weights(make: Callable[..., GraphModel]) -> None:
    def fresh() -> Tensor:
        with torch.no_grad():
            return model.propagate()[1]

    model = make().eval()
    other = make(seed=1).state_dict()
    with torch.no_grad():
        assert model.nodes()[0] is model.nodes()[0]  # it is cached
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    for change in ("step", "load", "copy"):
        before = scores(model, INTERACTIONS)
        if change == "step":
            bpr_loss(model, a_batch()).backward()
            optimizer.step()
        elif change == "load":
            model.load_state_dict(other)
        else:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight))
        assert not torch.equal(scores(model, INTERACTIONS), before), change
        assert torch.equal(model.encode_items()[:, 0], fresh()), change


def test_results_are_bit_identical_on_two_threads(make: Callable[..., GraphModel]) -> None:
    rng = np.random.default_rng(0)
    dataset = make_dataset([rng.integers(0, 40, rng.integers(3, 30)).tolist() for _ in range(60)], n_items=40)
    inputs = make_inputs([dataset.histories[user][:-2].tolist() for user in range(60)], 40, ("text", "visual"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trained = []
        for _ in range(2):
            model = make(inputs, dim=64)
            finetune(model, dataset, FinetuneSettings(epochs=1, batch_pairs=600), TrainerOptions(device=CPU))
            trained.append(model.state_dict())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def two_communities(users: int = 40, n_items: int = 24) -> list[list[int]]:
    """Even users interact with even items, odd users with odd ones."""
    rng = np.random.default_rng(0)
    half = n_items // 2
    return [(2 * rng.choice(half, half * 2 // 3, replace=False) + user % 2).tolist() for user in range(users)]


def test_two_communities_are_found(make: Callable[..., GraphModel]) -> None:
    sequences = two_communities()
    dataset = make_dataset(sequences, n_items=24)
    model = make(make_inputs([s[:-2] for s in sequences], 24, ("text", "visual")), dim=16)
    settings = FinetuneSettings(epochs=10, batch_pairs=64, learning_rate=0.03, select="recall@10", validate_every=5)
    finetune(model, dataset, settings, TrainerOptions(device=CPU))
    assert evaluate(model, dataset, "test")["recall@10"] > 0.95  # of 18 unseen items, 6 are of the user's group
    folded = scores(model, [[0, 2, 4], [1, 3, 5]])
    assert folded[0, ::2].min() > folded[0, 1::2].max()
    assert folded[1, 1::2].min() > folded[1, ::2].max()


@pytest.mark.parametrize("name", ["grcn", "dualgnn"])
@pytest.mark.parametrize("shown", ["text", "visual", None])
def test_one_modality_is_enough_to_distinguish_new_items(name: str, shown: str | None) -> None:
    """Four items without interactions, two of each kind; one modality shows the kind of every item, or none does."""
    sequences = two_communities()
    kind = torch.tensor([1.0, -1.0]).repeat(14).unsqueeze(1)  # [28, 1]
    noise = torch.randn(2, 28, 4, generator=torch.Generator().manual_seed(0))
    features = {
        modality: Ragged(torch.cat([3 * kind * (modality == shown), rows], dim=1), torch.arange(29))
        for modality, rows in zip(("text", "visual"), noise, strict=True)
    }
    inputs = replace(make_inputs([s[:-2] for s in sequences], 28), features=features)
    model = MODELS[name](inputs, dim=16)
    settings = FinetuneSettings(epochs=10, batch_pairs=64, learning_rate=0.03, select="recall@10", validate_every=5)
    finetune(model, make_dataset(sequences, n_items=28), settings, TrainerOptions(device=CPU))
    users = list(range(40))
    new = scores(model, [[0]] * 40, users)[:, 24:]  # even, odd, even, odd
    right = ((new[:, 0::2].sum(dim=1) > new[:, 1::2].sum(dim=1)) == (torch.tensor(users) % 2 == 0)).float().mean()
    assert right > 0.95 if shown else right < 0.95


def test_training_items_are_never_ranked(make: Callable[..., GraphModel]) -> None:
    dataset = make_dataset([[0, 1, 0, 0]], n_items=3)  # the next item is a seen item: it cannot be recommended
    model = make(make_inputs([[0, 1]], 3, ("text", "visual")))
    assert evaluate(model, dataset, "validation")["mrr"] < 0.5


def test_a_graph_model_needs_no_user(make: Callable[..., GraphModel]) -> None:
    model = make(Inputs(4, features=make_inputs([[0]], 4, ("text", "visual")).features)).eval()
    assert scores(model, [[0, 1]]).isfinite().all()
