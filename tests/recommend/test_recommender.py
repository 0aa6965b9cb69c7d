"""`Recommender`: recommendations, similar items, added and removed items, explanations."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from services import make_catalogue, make_recommender, new_item, slow_scores

from msm4sr.data.dataset import load_dataset
from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.models.located_items import Segments
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.recommend.catalogue import ItemExists, UnknownItem
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.recommender import Recommendation
from msm4sr.recommend.rules import Rules

MODELS = ["msm4sr", "sasrec", "sasrecm", "lightgcn", "grcn", "dualgnn", "mvrnn", "s3rec", "sine", "difsr", "itemknn"]
HISTORY = ["i3", "i1", "i5"]


def row_of(one: Recommendation) -> int:
    return int(one.item_id.removeprefix("i"))


def slow_ranking(scores: torch.Tensor, hidden: set[int]) -> list[int]:
    return sorted((i for i in range(len(scores)) if i not in hidden), key=lambda i: (-float(scores[i]), i))


@pytest.mark.parametrize("name", [*MODELS, "popularity"])
def test_a_history_is_ranked_as_the_model_itself_ranks_it(name: str) -> None:
    recommender = make_recommender(name)
    scores = slow_scores(recommender, [3, 1, 5])
    found = recommender.recommend(HISTORY, k=6).items
    torch.testing.assert_close(
        torch.tensor([one.score for one in found]), scores[[row_of(one) for one in found]], atol=1e-5, rtol=1e-5
    )
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert set(slow_ranking(scores, {1, 3, 5})[:6]) == {row_of(one) for one in found}
    assert [one.rank for one in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_any_lengths_answers_as_each_history_alone(name: str) -> None:
    recommender = make_recommender(name)
    histories = [["i0"], HISTORY, [f"i{n % 12}" for n in range(30)], ["i2", "i2"]]
    together = recommender.recommend_batch(histories, k=5, exclude_seen=False)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend(history, k=5, exclude_seen=False)
        assert [one.item_id for one in alone.items] == [one.item_id for one in answer.items]
        assert [one.score for one in alone.items] == pytest.approx([one.score for one in answer.items], abs=1e-5)


def test_more_histories_than_are_encoded_at_once_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = make_recommender()
    histories = [[f"i{(n + m) % 12}" for m in range(1 + n % 6)] for n in range(20)]
    expected = recommender.recommend_batch(histories, k=3)
    monkeypatch.setattr("msm4sr.recommend.scoring.SLOTS_AT_ONCE", 13)
    again = recommender.recommend_batch(histories, k=3)
    assert [[one.item_id for one in a.items] for a in again] == [[one.item_id for one in a.items] for a in expected]


def test_unknown_items_of_a_history_are_ignored_and_reported() -> None:
    recommender = make_recommender()
    found = recommender.recommend(["gone", "i3", "i1", "gone", "i5", "never"], k=4)
    assert found.unknown == ["gone", "never"]
    assert found.items == recommender.recommend(HISTORY, k=4).items


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        (["i1"], {"k": 0}, "k is 0"),
        (["i1"], {"by": "sound"}, "by is 'sound': this model can recommend by text, visual, both"),
    ],
)
def test_a_request_without_an_answer_is_an_error(history: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recommender().recommend(history, **options)  # type: ignore[arg-type]


def test_in_a_batch_the_wrong_history_is_named() -> None:
    recommender = make_recommender()
    recommender.strict = True
    with pytest.raises(UnknownItem, match="history 2 of 2: no item 'x'"):
        recommender.recommend_batch([["i1"], ["x"]])


def test_seen_items_are_recommended_on_request_only() -> None:
    recommender = make_recommender()
    without = {one.item_id for one in recommender.recommend(HISTORY, k=12).items}
    assert without == {f"i{n}" for n in range(12)} - set(HISTORY)
    assert len(recommender.recommend(HISTORY, k=12, exclude_seen=False).items) == 12


def test_a_model_that_never_ranks_seen_items_excludes_them_always() -> None:
    found = make_recommender("lightgcn").recommend(HISTORY, k=12, exclude_seen=False).items
    assert not {one.item_id for one in found} & set(HISTORY)


@pytest.mark.parametrize("name", ["msm4sr", "itemknn"])
def test_categories_and_candidates_rank_what_is_left(name: str) -> None:
    recommender = make_recommender(name)
    everything = [one.item_id for one in recommender.recommend(HISTORY, k=12).items]
    even = recommender.recommend(HISTORY, k=3, rules=Rules(include_categories=["even"])).items
    assert [one.item_id for one in even] == [i for i in everything if int(i[1:]) % 2 == 0][:3]
    some = recommender.recommend(HISTORY, k=3, rules=Rules(candidates=["i7", "unknown", "i2", "i3", "i2"])).items
    assert [one.item_id for one in some] == [i for i in everything if i in ("i7", "i2")]
    for nothing in (Rules(include_categories=[]), Rules(include_categories=["none"]), Rules(candidates=[])):
        assert recommender.recommend(HISTORY, rules=nothing).items == []


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("modality", ["text", "visual"])
@pytest.mark.parametrize("modality_scores", ["sum", "mean"])
def test_by_one_modality_is_the_score_of_the_paper_s_variant(
    modality_scores: str, modality: str, similarity: str
) -> None:
    """MSM4SR-T: equation (12) without the term of the other modality, with the same weights; items with a text only."""
    recommender = make_recommender(similarity=similarity, modality_scores=modality_scores)
    model = recommender.model
    assert isinstance(model, MSM4SR)
    alone = MSM4SR(model.config.model_copy(update={"score_with": (modality,)}), make_inputs_of(model)).eval()
    alone.load_state_dict(model.state_dict())
    catalogue = alone.encode_items()
    expected = alone.score(torch.tensor([[3, 1, 5]]), torch.tensor([3]), catalogue, alone.scoring_vectors(catalogue))[0]
    found = recommender.recommend(HISTORY, k=12, by=modality, exclude_seen=False).items
    having = model.content_rows(modality).lengths.nonzero().flatten().tolist()
    assert 0 < len(having) < 12
    assert {row_of(one) for one in found} == set(having)
    torch.testing.assert_close(
        torch.tensor([one.score for one in found]),
        expected[[row_of(one) for one in found]].detach(),
        atol=1e-5,
        rtol=1e-5,
    )


def make_inputs_of(model: MSM4SR):  # type: ignore[no-untyped-def]
    return MSM4SR.inputs_of(model.sizes(), model.state_dict())


# -- similar items


@pytest.mark.parametrize("by", ["text", "visual"])
def test_similarity_is_the_cosine_of_the_content_embeddings(by: str) -> None:
    recommender = make_recommender()
    model = recommender.model
    assert isinstance(model, MSM4SR)
    z = model.encode_content(by).detach()
    there = [i for i in range(12) if model.content_rows(by).lengths[i] > 0]
    row = there[2]
    expected = {i: float(torch.cosine_similarity(z[i], z[row], dim=0)) for i in there if i != row}
    found = recommender.similar_items(f"i{row}", k=12, by=by)
    assert {row_of(one): one.score for one in found} == pytest.approx(expected, abs=1e-5)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_similarity_by_both_is_the_mean_over_the_modalities_of_the_item() -> None:
    recommender = make_recommender()
    both = next(i for i in range(12) if recommender.catalogue.tensors.present[i].all())
    by_one = {
        by: {row_of(o): o.score for o in recommender.similar_items(f"i{both}", 12, by)} for by in ("text", "visual")
    }
    found = {row_of(one): one.score for one in recommender.similar_items(f"i{both}", 12)}
    assert len(found) == 11
    for item, score in found.items():
        assert score == pytest.approx(sum(scores.get(item, 0.0) for scores in by_one.values()) / 2, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_finds_items_of_collaborative_similarity(name: str) -> None:
    recommender = make_recommender(name)
    found = recommender.similar_items("i5", k=3, by="collaborative")
    assert 1 <= len(found) <= 3
    assert "i5" not in {one.item_id for one in found}
    if name not in ("msm4sr",):
        assert [one.item_id for one in recommender.similar_items("i5", k=3)] == [one.item_id for one in found]


def test_items_that_cannot_be_compared_are_an_error() -> None:
    recommender = make_recommender()
    lacking = next(i for i in range(12) if not recommender.catalogue.tensors.present[i, 1])
    with pytest.raises(InputError, match=f"item 'i{lacking}' has no visual"):
        recommender.similar_items(f"i{lacking}", by="visual")
    with pytest.raises(InputError, match="by is 'text': this model can find similar items by collaborative"):
        make_recommender("sasrec").similar_items("i1", by="text")
    with pytest.raises(UnknownItem, match="no item 'x' in the catalogue of 12 items"):
        recommender.similar_items("x")


# -- adding and removing


def test_a_new_item_is_scored_by_its_content_alone() -> None:
    recommender = make_recommender()
    model = recommender.model
    assert isinstance(model, MSM4SR)
    recommender.add_items([new_item("n0", image=b"one")])
    encoded = recommender.catalogue.added[0]
    z = [
        model.encoders[a](torch.from_numpy(encoded.features[a]), Segments.of(torch.tensor([len(encoded.features[a])])))[
            0
        ]
        for a in ("text", "visual")
    ]
    keys = torch.cat(z).detach()
    catalogue = model.encode_items()
    prefix = model.encode_histories(torch.tensor([[3, 1, 5]]), catalogue)[0, -1].detach()
    found = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=20).items}
    assert found["n0"] == pytest.approx(float(prefix @ keys), abs=1e-5)


def test_two_added_items_with_the_same_content_have_the_same_score() -> None:
    recommender = make_recommender(similarity="cosine")
    recommender.add_items([new_item("a", "Same", b"p"), new_item("b", "Same", b"p"), new_item("c", "Else", b"q")])
    scores = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=20).items}
    assert scores["a"] == pytest.approx(scores["b"], abs=1e-6)
    assert scores["a"] != pytest.approx(scores["c"], abs=1e-3)
    assert recommender.similar_items("a", k=1)[0].item_id == "b"


def test_new_items_may_be_in_histories_and_candidates() -> None:
    recommender = make_recommender()
    recommender.add_items([new_item("n0"), new_item("n1", image=b"x")])
    with_new = recommender.recommend(["i3", "n0"], k=20)
    assert with_new.unknown == []
    assert "n0" not in {one.item_id for one in with_new.items}
    assert [o.score for o in with_new.items] != [o.score for o in recommender.recommend(["i3"], k=20).items]
    assert [o.item_id for o in recommender.recommend(HISTORY, rules=Rules(candidates=["n1"])).items] == ["n1"]
    batch = recommender.recommend_batch([["n1", "i2"], ["i2"]], k=3)[0].items
    alone = recommender.recommend(["n1", "i2"], k=3).items
    assert [one.item_id for one in batch] == [one.item_id for one in alone]
    assert [one.score for one in batch] == pytest.approx([one.score for one in alone], abs=1e-5)


def test_a_removed_item_is_neither_recommended_nor_known() -> None:
    recommender = make_recommender()
    recommender.add_items([new_item("n0"), new_item("n1"), new_item("n2")])
    recommender.remove_items(["i7", "n1"])
    found = recommender.recommend(["i3", "i7", "n1"], k=20)
    assert found.unknown == ["i7", "n1"]
    assert not {"i7", "n1"} & {one.item_id for one in found.items}
    assert not {"i7", "n1"} & {one.item_id for one in recommender.similar_items("i3", 20)}
    assert {"n0", "n2"} <= {one.item_id for one in found.items}
    assert recommender.catalogue.n_items == 13
    with pytest.raises(UnknownItem):
        recommender.item("i7")


def test_the_id_of_a_removed_item_can_be_used_again() -> None:
    recommender = make_recommender()
    recommender.remove_items(["i7"])
    recommender.add_items([new_item("i7", "Another thing")])
    assert recommender.item("i7").title == "Another thing"
    assert [o.item_id for o in recommender.recommend(HISTORY, k=20).items].count("i7") == 1
    recommender.remove_items(["i7"])
    assert "i7" not in {o.item_id for o in recommender.recommend(HISTORY, k=20).items}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([new_item("i3")], "item 'i3' is in the catalogue already"),
        ([new_item("n"), new_item("n")], "item 'n' is given twice"),
        ([new_item("")], "give 1 to 200 printable characters"),
        ([new_item("a\nb")], "give 1 to 200 printable characters"),
        ([Item("n")], "item 'n': it has no content that the model reads; give it a text or an image"),
    ],
)
def test_items_are_added_all_or_none(items: list[Item], message: str) -> None:
    recommender = make_recommender()
    before = recommender.catalogue
    with pytest.raises(InputError, match=message):
        recommender.add_items([new_item("fine"), *items])
    assert recommender.catalogue is before
    assert ItemExists.__mro__[1] is InputError


def test_the_last_item_cannot_be_removed() -> None:
    recommender = make_recommender()
    with pytest.raises(InputError, match="no item would be left"):
        recommender.remove_items([f"i{n}" for n in range(12)])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "msm4sr"])
def test_a_model_without_content_takes_no_new_items_but_removes_some(name: str) -> None:
    recommender = make_recommender(name)
    with pytest.raises(InputError, match=f"{name} cannot add items without retraining; msm4sr can"):
        recommender.add_items([new_item()])
    recommender.remove_items(["i2"])
    assert "i2" not in {one.item_id for one in recommender.recommend(HISTORY, k=20).items}


def test_threads_see_consistent_states_while_items_are_added_and_removed() -> None:
    """Items a and b are added and removed together: no answer has only one of them, and every score is right."""
    recommender = make_recommender()
    recommender.add_items([new_item("a", "Pair"), new_item("b", "Pair")])
    scores = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=30).items}
    recommender.remove_items(["a", "b"])
    stop, wrong, answers = threading.Event(), [], [0] * 4

    def ask(number: int) -> None:
        while not stop.is_set():
            found = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=30).items}
            answers[number] += 1
            if ("a" in found) != ("b" in found) or any(abs(scores[i] - s) > 1e-5 for i, s in found.items()):
                wrong.append(found)
            recommender.explain(["i3", "i1"], "i2")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    changes = 0
    while changes < 60 or min(answers) < 10:
        recommender.add_items([new_item("a", "Pair"), new_item("b", "Pair")])
        recommender.remove_items(["a", "b"])
        changes += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_one_of_several_threads_can_add_an_id() -> None:
    recommender = make_recommender()
    barrier, refused = threading.Barrier(6), []

    def add() -> None:
        barrier.wait()
        try:
            recommender.add_items([new_item("same")])
        except ItemExists:
            refused.append(1)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert recommender.catalogue.n_items == 13


# -- explaining


@pytest.mark.parametrize("name", ["msm4sr", "itemknn", "lightgcn"])
def test_an_unavailable_item_has_the_explanation_of_an_available_one(name: str) -> None:
    recommender = make_recommender(name)
    before = recommender.explain(HISTORY, "i7")
    recommender.set_available(["i7"], False)
    assert recommender.explain(HISTORY, "i7") == before


@pytest.mark.parametrize("modality_scores", ["sum", "mean"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_parts_of_a_score_sum_to_it(similarity: str, modality_scores: str) -> None:
    recommender = make_recommender(similarity=similarity, modality_scores=modality_scores)
    recommender.add_items([new_item("n0", image=b"x")])
    scores = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=30, exclude_seen=False).items}
    for item_id in ("i0", "i3", "i11", "n0"):
        explained = recommender.explain(HISTORY, item_id)
        assert list(explained.parts) == ["text", "visual", "id"]
        assert sum(explained.parts.values()) == pytest.approx(scores[item_id], abs=1e-5)
        assert explained.score == pytest.approx(scores[item_id], abs=1e-5)
    model = recommender.model
    assert isinstance(model, MSM4SR)
    if similarity == "dot" and modality_scores == "sum":
        prefix = model.encode_histories(torch.tensor([[3, 1, 5]]), model.encode_items())[0, -1].view(2, -1)
        explained = recommender.explain(HISTORY, "i0")
        assert explained.parts["text"] == pytest.approx(
            float((prefix[0] @ model.encode_content("text")[0]).detach()), abs=1e-5
        )
        assert explained.parts["id"] == pytest.approx(
            float((prefix.sum(0) @ model.item_embedding.weight[0]).detach()), abs=1e-5
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_past_item_weighs_what_the_score_loses_without_it(name: str) -> None:
    recommender = make_recommender(name)
    history = ["i3", "i1", "i3", "i5"]
    explained = recommender.explain(history, "i0")
    score = float(slow_scores(recommender, [3, 1, 3, 5])[0])
    expected = {
        f"i{left}": score - float(slow_scores(recommender, rest)[0])
        for left, rest in [(3, [1, 5]), (1, [3, 3, 5]), (5, [3, 1, 3])]
    }
    assert {past.item_id: past.weight for past in explained.history} == pytest.approx(expected, abs=1e-4)
    assert [past.weight for past in explained.history] == sorted((p.weight for p in explained.history), reverse=True)


def test_the_only_past_item_weighs_the_score() -> None:
    explained = make_recommender().explain(["i3"], "i0")
    assert [past.weight for past in explained.history] == [pytest.approx(explained.score)]


@pytest.mark.parametrize("bias", [-3.0, 3.0])
def test_a_seen_item_has_the_bias_of_the_model(bias: float) -> None:
    recommender = make_recommender(seen_item_bias=True, max_history=4)
    model = recommender.model
    assert isinstance(model, MSM4SR)
    model.seen_item_bias.data.fill_(bias)  # type: ignore[union-attr]
    history = ["i9", "i3", "i1", "i3", "i5"]  # the model does not read the first
    found = recommender.recommend(history, k=12, exclude_seen=False, reasons=True).items
    expected = slow_scores(recommender, [9, 3, 1, 3, 5])
    assert [row_of(one) for one in found] == slow_ranking(expected, set())
    for one in found:
        assert one.score == pytest.approx(float(expected[row_of(one)]), abs=1e-4)
        explained = recommender.explain(history, one.item_id)
        assert list(explained.parts) == ["text", "visual", "id", "seen"]
        assert explained.parts["seen"] == pytest.approx(
            float(model.seen_bias.detach()) if row_of(one) in (3, 1, 5) else 0.0
        )  # type: ignore
        assert explained.score == pytest.approx(one.score, abs=1e-4)
    hidden = recommender.recommend(history, k=12).items
    assert [row_of(one) for one in hidden] == slow_ranking(expected, {9, 3, 1, 5})
    # without the item itself, the bias goes as well
    rest = float(slow_scores(recommender, [1, 5])[3])  # what is read without i3
    weights = {past.item_id: past.weight for past in recommender.explain(history, "i3").history}
    assert weights["i3"] == pytest.approx(float(expected[3]) - rest, abs=1e-4)


def test_a_sentence_weighs_what_the_score_loses_without_it() -> None:
    recommender = make_recommender()
    two = Item("n2", "A heading", "And a text.", images=[b"p"])
    recommender.add_items([two, Item("n1", "A heading", images=[b"p"])])
    explained = recommender.explain(HISTORY, "n2")
    scores = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=30).items}
    assert explained.parts["id"] == 0
    assert [sentence.text for sentence in explained.sentences] == ["A heading", "And a text."]
    assert sum(sentence.attention for sentence in explained.sentences) == pytest.approx(1, abs=1e-5)
    assert explained.sentences[1].weight == pytest.approx(scores["n2"] - scores["n1"], abs=1e-5)
    # without its only sentence, it is an item that has no text
    alone = recommender.explain(HISTORY, "n1").sentences[0].weight
    recommender.add_items([Item("n3", images=[b"p"])])
    without = {one.item_id: one.score for one in recommender.recommend(HISTORY, k=30).items}["n3"]
    assert alone == pytest.approx(scores["n1"] - without, abs=1e-5)


def test_a_reason_is_the_past_item_that_weighs_most_and_the_part_that_counts_most() -> None:
    recommender = make_recommender()
    seen = set()
    for item in recommender.recommend(HISTORY, k=9, reasons=True).items:
        explained = recommender.explain(HISTORY, item.item_id)
        assert item.reason is not None
        assert item.reason.mostly == max(explained.parts, key=lambda name: explained.parts[name])
        most = explained.history[0]
        assert item.reason.because == (most.item_id if most.weight > 0 else None)
        seen.add(item.reason.because)
    assert len(seen) > 1


# -- a run


def test_a_run_is_loaded_and_recommends_items_that_came_after_it(run_folder: Path) -> None:
    recommender = load_recommender(run_folder)
    ids = recommender.catalogue.items.item_ids
    with_image = next(i for i in ids if recommender.item(i).images and recommender.item(i).text)
    known = recommender.item(with_image)
    recommender.add_items([Item("copy", known.title, known.text, images=[recommender.read_image(with_image)])])
    catalogue = recommender.catalogue
    rows = torch.tensor([catalogue.known_row(with_image), catalogue.known_row("copy")])
    embeddings = catalogue.gather("embeddings", rows)
    # bf16, if the machine has it, rounds differently in batches of other sentences
    torch.testing.assert_close(embeddings[0, :2], embeddings[1, :2], atol=0.03, rtol=0.03)
    assert recommender.similar_items("copy", k=1)[0].item_id == with_image
    assert "copy" in {one.item_id for one in recommender.recommend(ids[:3], k=100).items}
    explained = recommender.explain(ids[:3], with_image)
    assert explained.sentences
    assert explained.sentences[0].text == known.title
    assert recommender.keywords(recommender.item(with_image))


def test_a_broken_image_is_named_by_its_number(run_folder: Path) -> None:
    recommender = load_recommender(run_folder)
    with pytest.raises(InputError, match="item 'n': image 1 cannot be used: not an image"):
        recommender.add_items([Item("n", "A thing", images=[b"no image"])])


def test_a_run_serves_without_its_data(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    text = (copy / "config.yaml").read_text().splitlines()
    elsewhere = ["data: /nowhere" if row.startswith("data:") else row for row in text]
    (copy / "config.yaml").write_text("\n".join(elsewhere))
    complete, bare = load_recommender(run_folder), load_recommender(copy)
    ids = complete.catalogue.items.item_ids
    assert bare.recommend(ids[:4]).items == complete.recommend(ids[:4]).items
    assert bare.item(ids[0]).title == complete.item(ids[0]).title
    assert bare.item(ids[0]).text is None


def test_every_pair_of_items_gives_finite_scores(run_folder: Path) -> None:
    recommender = load_recommender(run_folder)
    ids = recommender.catalogue.items.item_ids[:6]
    for pair in itertools.permutations(ids, 2):
        assert all(np.isfinite(one.score) for one in recommender.recommend(list(pair)).items)


# Popular items: the counts of `make_catalogue` are 0 2 4 1 3 0 2 4 1 3 0 2

POPULAR = ["i2", "i7", "i4", "i9", "i1", "i6", "i11", "i3", "i8", "i0", "i5", "i10"]


@pytest.mark.parametrize("name", ["msm4sr", "itemknn", "lightgcn", "popularity"])
@pytest.mark.parametrize("history", [[], ["gone"], ["gone", "never"]])
def test_without_a_known_item_the_most_popular_are_recommended(name: str, history: list[str]) -> None:
    found = make_recommender(name).recommend(history, k=20, reasons=True)
    assert found.popular
    assert found.unknown == history
    assert [one.item_id for one in found.items] == POPULAR
    assert [one.score for one in found.items] == [4, 4, 3, 3, 2, 2, 2, 1, 1, 0, 0, 0]
    assert all(one.reason is None for one in found.items)


def test_popular_items_are_filtered_as_any_others() -> None:
    recommender = make_recommender()
    recommender.remove_items(["i7"])
    recommender.add_items([new_item("n0")])
    assert [one.item_id for one in recommender.recommend([], k=20).items] == [i for i in POPULAR if i != "i7"] + ["n0"]
    even = recommender.recommend([], k=3, rules=Rules(include_categories=["even"])).items
    assert [one.item_id for one in even] == ["i2", "i4", "i6"]
    some = recommender.recommend([], rules=Rules(candidates=["n0", "i10", "i1", "i7", "gone"])).items
    assert [one.item_id for one in some] == ["i1", "i10", "n0"]
    with pytest.raises(InputError, match="by is 'sound'"):
        recommender.recommend([], by="sound")


def test_empty_histories_in_a_batch_leave_the_others_as_they_are() -> None:
    recommender = make_recommender()
    found = recommender.recommend_batch([[], HISTORY, ["gone"], ["i2"]], k=4, reasons=True)
    assert [one.popular for one in found] == [True, False, True, False]
    assert found[0].items == found[2].items == recommender.recommend([], k=4).items
    for place, history in ((1, HISTORY), (3, ["i2"])):
        alone = recommender.recommend(history, k=4, reasons=True).items
        assert [one.item_id for one in found[place].items] == [one.item_id for one in alone]
        assert [one.reason for one in found[place].items] == [one.reason for one in alone]


def test_popular_items_need_no_index_and_no_data(run_folder: Path, toyshop: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(toyshop), "/nowhere"))
    counts: Counter[str] = Counter()
    dataset = load_dataset(toyshop)
    for history in dataset.histories:
        counts.update(dataset.item_ids[item] for item in history[:-2])  # the last two are validation and test
    expected = sorted(dataset.item_ids, key=lambda item_id: -counts[item_id])  # stable: ties in catalogue order
    found = load_recommender(copy, IndexSettings(kind="approximate")).recommend([], k=5)
    assert [one.item_id for one in found.items] == expected[:5]
    assert [one.score for one in found.items] == [counts[item_id] for item_id in expected[:5]]


def test_an_explanation_needs_a_known_item() -> None:
    for history in ([], ["gone"]):
        with pytest.raises(InputError, match="none of the history's items is in the catalogue"):
            make_recommender().explain(history, "i1")


def test_weights_that_are_not_finite_are_refused_also_where_short_histories_do_not_read_them() -> None:
    model = make_recommender().model
    with torch.no_grad():
        model.state_dict()["transformer.position.weight"][-1] = torch.nan
    with pytest.raises(InputError, match=r"transformer\.position\.weight is not finite"):
        make_catalogue(model)
