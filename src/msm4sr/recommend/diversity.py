"""Diversity by maximal marginal relevance (Carbonell and Goldstein 1998, doi 10.1145/290941.291025)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

POOL_PER_ITEM, LARGEST_POOL = 10, 1000

Floats = npt.NDArray[np.floating]


def pool_size(k: int) -> int:
    """The number of best items from which `k` are chosen: ten for each, at most 1,000, at least `k`."""
    return max(k, min(POOL_PER_ITEM * k, LARGEST_POOL))


def diversify(scores: Floats, similar_to: Callable[[int], Floats], k: int, diversity: float) -> list[int]:
    """The places of `k` items of a pool, in the order in which they are chosen.

    The first is the item with the highest score. With S the items chosen so far and d the diversity, the next one is

        argmax_{i not in S}  (1 - d) * r_i  -  d * max_{j in S} sim(i, j)

    where r_i is the score of i, scaled to 0 (the lowest of the pool) to 1 (the highest): scores have no fixed range,
    similarities do. d is 1 - lambda of the paper. Equal values are chosen in the order of the pool.

    Args:
        scores: of the pool [P], highest first.
        similar_to: the similarity, a cosine, of the item at a place to all of the pool: [P].
        k: number of items; fewer are returned if the pool has no more.
        diversity: d, 0 to 1.
    """
    if not len(scores):
        return []
    lowest, highest = float(scores[-1]), float(scores[0])
    relevance = (1 - diversity) * (scores - lowest) / ((highest - lowest) or 1.0)
    closest = np.full(len(scores), -np.inf)  # the similarity to the most similar item that is chosen
    chosen = [0]
    while len(chosen) < min(k, len(scores)):
        np.maximum(closest, similar_to(chosen[-1]), out=closest)
        value = relevance - diversity * closest
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
    return chosen
