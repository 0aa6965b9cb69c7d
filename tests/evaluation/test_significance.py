"""The paired bootstrap against scipy's and by its properties; Holm's correction by hand and by its properties."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from msm4sr.evaluation import significance
from msm4sr.evaluation.significance import bootstrap_means, holm, mean_over_seeds, paired_bootstrap


def two_systems(users: int = 60, tests: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hard = rng.random((users, tests))  # what is hard for one system is hard for the other
    return hard + 0.1 * rng.random((users, tests)), hard


# The bootstrap


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_scipys_from_the_same_draws(confidence: float) -> None:
    ours, theirs = two_systems()
    found = paired_bootstrap(ours, theirs, resamples=500, confidence=confidence, seed=7)
    for column, difference in enumerate(found):
        expected = bootstrap(
            (ours[:, column], theirs[:, column]),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=500,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(7),
        ).confidence_interval
        assert difference.mean == pytest.approx(np.mean(ours[:, column]) - np.mean(theirs[:, column]))
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_draws_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = two_systems(users=11)[0]
    at_once = bootstrap_means(values, resamples=50, seed=3)
    monkeypatch.setattr(significance, "COUNTS_AT_ONCE", 80)
    assert np.allclose(bootstrap_means(values, resamples=50, seed=3), at_once, rtol=0, atol=1e-14)
    assert not np.allclose(bootstrap_means(values, resamples=50, seed=4), at_once)


def test_a_resample_draws_as_many_users_with_replacement() -> None:
    values = np.eye(5)  # the means are then the shares of the users in the resample
    shares = bootstrap_means(values, resamples=400, seed=0)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.allclose(shares * 5, np.round(shares * 5))
    assert (shares == 0).any(axis=1).mean() > 0.9  # all five users only in 5! of 5^5
    assert shares.mean(axis=0) == pytest.approx(0.2, abs=0.03)


def test_p_is_twice_the_smaller_tail_and_counts_the_sample_itself() -> None:
    ours, theirs = two_systems(users=12, tests=1, seed=5)
    theirs = theirs + 0.04
    (found,) = paired_bootstrap(ours, theirs, resamples=999, seed=2)
    rng = np.random.default_rng(2)
    means = [np.mean((ours - theirs)[rng.integers(0, 12, 12)]) for _ in range(999)]
    below, above = sum(m <= 0 for m in means), sum(m >= 0 for m in means)
    assert min(below, above) > 0
    assert found.p == pytest.approx(2 * (min(below, above) + 1) / 1000)


def test_a_clear_difference_is_found_and_has_the_smallest_p() -> None:
    ours, theirs = two_systems(users=500, tests=1)
    (found,) = paired_bootstrap(ours, theirs, resamples=1000)
    assert 0.03 < found.low < found.mean < found.high < 0.07
    assert found.p == pytest.approx(2 / 1001)


def test_pairing_finds_what_unpaired_samples_of_this_size_would_not() -> None:
    ours, theirs = two_systems(users=200, tests=1)
    shuffled = np.random.default_rng(0).permutation(theirs)
    assert paired_bootstrap(ours, theirs, resamples=1000)[0].p < 0.01
    assert paired_bootstrap(ours, shuffled, resamples=1000)[0].p > 0.05


METRIC = arrays(
    np.float64, st.tuples(st.integers(1, 30), st.just(1)), elements=st.sampled_from([0.0, 1 / 3, 0.63, 1.0])
)


@given(METRIC, st.integers(0, 9))
def test_identical_systems_are_never_significant(values: np.ndarray, seed: int) -> None:
    (found,) = paired_bootstrap(values, values.copy(), resamples=99, seed=seed)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


@given(METRIC, st.randoms(use_true_random=False), st.integers(0, 9))
def test_swapping_the_systems_flips_the_sign_and_keeps_p(values: np.ndarray, random: object, seed: int) -> None:
    other = np.random.default_rng(random.randint(0, 99)).permutation(values)  # type: ignore[attr-defined]
    (one,) = paired_bootstrap(values, other, resamples=99, seed=seed)
    (two,) = paired_bootstrap(other, values, resamples=99, seed=seed)
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low), abs=1e-12)
    assert one.p == two.p
    assert 0 < one.p <= 1
    assert one.low - 1e-12 <= one.high


def test_the_mean_over_seeds_is_user_by_user() -> None:
    seeds = [np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])]
    assert mean_over_seeds(seeds).tolist() == [0.5, 1.0, 0.5]


def test_thirds_that_cancel_are_no_difference() -> None:
    ours = np.array([[1 / 3 + 1 / 3 + 1 / 3 - 0.9], [0.1], [0.2]])
    theirs = np.array([[0.1], [0.2], [0.1]])
    (found,) = paired_bootstrap(ours, theirs[[0, 2, 1]], resamples=99)
    assert found.p == 1


def test_what_cannot_be_compared_is_refused() -> None:
    for first, second in (((3, 1), (4, 1)), ((3,), (3,)), ((0, 2), (0, 2))):
        with pytest.raises(ValueError, match="are compared"):
            paired_bootstrap(np.zeros(first), np.zeros(second))
    with pytest.raises(ValueError, match="not a number"):
        paired_bootstrap(np.array([[np.nan]]), np.zeros((1, 1)))


def test_memory_does_not_grow_with_the_resamples() -> None:
    ours, theirs = two_systems(users=20_000, tests=2)
    peaks = []
    for resamples in (250, 1000):
        tracemalloc.start()
        paired_bootstrap(ours, theirs, resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 400 * 2**20


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Recall of two systems that agree on most users; the true difference is 0.03."""
    rng = np.random.default_rng(0)
    held = rejected = 0
    trials = 600
    for trial in range(trials):
        luck = rng.random((400, 1))
        ours, theirs = (luck < 0.23).astype(float), (luck < 0.20).astype(float)
        flipped = rng.random((400, 1)) < 0.1
        theirs[flipped] = (rng.random(int(flipped.sum())) < 0.20).astype(float)
        ours_again = np.where(rng.random((400, 1)) < 0.1, rng.random((400, 1)) < 0.20, luck < 0.20).astype(float)
        (found,) = paired_bootstrap(ours, theirs, resamples=1000, seed=trial)
        held += found.low <= 0.03 <= found.high
        rejected += paired_bootstrap(ours_again, theirs, resamples=1000, seed=trial)[0].p <= 0.05
    assert held / trials == pytest.approx(0.95, abs=0.03)  # 3.4 standard errors
    assert rejected / trials == pytest.approx(0.05, abs=0.03)


# Holm


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


P_VALUES = st.lists(st.floats(1e-9, 1), min_size=1, max_size=20)


@given(P_VALUES)
def test_holm_keeps_the_order_and_lies_between_the_value_and_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)
    for value, after in zip(p, adjusted, strict=True):
        assert value <= after <= min(1.0, len(p) * value) + 1e-12
    by_p = [after for _, after in sorted(zip(p, adjusted, strict=True))]
    assert by_p == sorted(by_p)


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], level: float) -> None:
    rejected: set[int] = set()
    for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[place] * (len(p) - step) > level:
            break
        rejected.add(place)
    assert {place for place, after in enumerate(holm(p)) if after <= level} == rejected
