"""The losses, as pure functions of tensors: scalars, means over the pairs of a batch, so that a learning rate has the
same effect at every batch size.

Shape letters: P pairs (prefix, next item) of the batch, C distinct next items among them, N items, D embedding
dimension, Q dimension of scoring vectors. f(a, b) = exp(cos(a, b) / temperature).

Tensors of a static shape have padding among the P pairs: `weights` [P] is 1 for each pair and 0 for padding, which then
has no loss and is no negative. None: there is no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 1 << 20  # 4 MiB of float32: a chunk of the softmax that stays in cache
SCORES_AT_ONCE_ON_GPU = 1 << 26  # 256 MiB: there, a chunk costs the launch of its kernels


def mean_over_pairs(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of `losses` [..., P] over the pairs."""
    if weights is None:
        return losses.mean()
    rows = losses.numel() // losses.shape[-1]
    return torch.where(weights > 0, losses, 0).sum() / (rows * weights.sum())


def next_item_prediction(
    views: Sequence[Tensor],
    items: Tensor,
    target: Tensor,
    counts: Tensor,
    temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    """L_NIP in one modality: the content of the next item scores over that of the other pairs' next items.

    -mean_j log [ sum_v f(v_j, z_j) / sum_j' sum_v f(v_j, z_j') ], v over the views m, m~ of the history.

    Pairs with the same next item are not negatives of each other. The sum over pairs j' runs over the distinct items,
    each weighted by its count: the same value from C columns instead of P.

    Args:
        views: the history encodings projected into this modality's space, [P, D] each: m, m~ (or only m, or more).
        items: content vectors z of the distinct next items [C, D].
        target: int64 [P], each pair's next item as a row of `items`.
        counts: [C], the number of pairs with this next item.
        temperature: tau.
        weights: [P], see the module.

    Reference: MSM4SR, arXiv 2303.11879, equation 7: InfoNCE with in-batch negatives.
    """
    view, item = unit_vectors(torch.cat(tuple(views))), unit_vectors(items)  # [V P, D], [C, D]
    positive = exp_cosine(view, F.embedding(target.repeat(len(views)), item), temperature)
    total, _ = exp_cosine_sums(view, item, temperature, Masks(columns=counts))
    positive, total = (sums.view(len(views), -1).sum(dim=0) for sums in (positive, total))  # over the views: [P]
    total = total - positive * (counts[target] - 1)  # a pair's own next item counts once
    return mean_over_pairs(total.log() - positive.log(), weights)


def cross_modality_contrast(
    own: Tensor,
    other: Tensor,
    next_item: Tensor,
    temperature: float,
    negatives: Literal["cross", "within"] = "cross",
    rows: slice = slice(None),
    weights: Tensor | None = None,
) -> Tensor:
    """L_CMCL in one modality: two views of the same history, through two modalities, match.

    -1/2 mean_j (l(m_j, m~_j) + l(m~_j, m_j)), with, for `cross`, as printed,
    l(a_j, b_j) = log [ f(a_j, b_j) / (sum_j' f(a_j, b_j') + sum_{j' != j} f(b_j, a_j')) ],
    which is symmetric in a and b; and for `within`, as in the released code, f(a_j, a_j') in the last sum.

    Pairs with the same next item are not negatives of each other.

    Args:
        own: m, [P, D].
        other: m~, [P, D].
        next_item: int64 [P].
        temperature: tau.
        negatives: `cross` or `within`.
        rows: the pairs j of the mean (those of one process); the sums over j' run over all pairs.
        weights: [P], see the module.

    Reference: MSM4SR, arXiv 2303.11879, equation 9.
    """
    every_row = rows == slice(None)
    same = next_item[rows].unsqueeze(1) == next_item.unsqueeze(0)  # [R, P]
    masks = Masks(None if weights is None else weights[rows], weights, same)
    own, other = unit_vectors(own), unit_vectors(other)
    positive = exp_cosine(own[rows], other[rows], temperature)  # [R]
    own_to_other, other_to_own = exp_cosine_sums(own[rows], other, temperature, masks)
    if not every_row:
        other_to_own, _ = exp_cosine_sums(other[rows], own, temperature, masks)
    if negatives == "cross":
        rest = [own_to_other + other_to_own]  # the same in both directions
    else:
        rest = [
            sums + exp_cosine_sums(view[rows], view, temperature, masks)[0]
            for view, sums in ((own, own_to_other), (other, other_to_own))
        ]
    losses = torch.stack([(positive + negative).log() - positive.log() for negative in rest])
    return mean_over_pairs(losses, masks.rows)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors [A, D], divided by their lengths, in float32 at least.

    Divided by a temperature, the rounding errors of cosines in bf16 would be larger than the differences to learn.
    """
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


def exp_cosine(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """f(a_i, b_i) / exp(1 / temperature), for unit vectors [A, D] and [A, D]: [A].

    The losses are logarithms of ratios of such values, so the common factor cancels; it keeps the largest value at 1.
    Low temperatures, for which float32 cannot represent the smallest value, give float64.
    """
    return (((a * b).sum(dim=1).to(_dtype(a, temperature)) - 1) / temperature).exp()


class Masks(NamedTuple):
    """What counts in sums over a matrix [A, B]."""

    rows: Tensor | None = None  # [A], the weight of each row in the sum over rows; None: 1
    columns: Tensor | None = None  # [B], the weight of each column in the sum over columns; None: 1
    excluded: Tensor | None = None  # bool [A, B], what does not count; None: all counts


ALL_COUNT = Masks()


def exp_cosine_sums(a: Tensor, b: Tensor, temperature: float, masks: Masks = ALL_COUNT) -> tuple[Tensor, Tensor]:
    """Sums of f(a_i, b_j) / exp(1 / temperature) over j and over i, for unit vectors [A, D] and [B, D]: [A] and [B]."""
    return _ExpCosineSums.apply(a, b, temperature, *masks)  # type: ignore[no-any-return, no-untyped-call]


class _ExpCosineSums(torch.autograd.Function):
    """One matrix [A, B] is kept for the gradient, and passed over a few times only: it is larger than the caches."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        temperature: float,
        rows: Tensor | None,
        columns: Tensor | None,
        excluded: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(a.device.type, enabled=False):  # in mixed precision too: see `unit_vectors`
            f = (a @ (b / temperature).T).to(_dtype(a, temperature)).sub_(1 / temperature).exp_()
            if excluded is not None:
                f.masked_fill_(excluded, 0)
            columns = f.new_ones(len(b)) if columns is None else columns.to(f.dtype)
            rows = None if rows is None else rows.to(f.dtype)
            ctx.save_for_backward(a, b, f, rows, columns)
            ctx.temperature = temperature
            return f @ columns, f.sum(dim=0) if rows is None else rows @ f

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b, f, rows, columns = ctx.saved_tensors
        to_rows, to_columns = gradients
        if rows is not None:
            to_columns = to_columns * rows.unsqueeze(1)
        to_cosine = torch.addcmul(to_columns, to_rows.unsqueeze(1), columns).mul_(f).div_(ctx.temperature).to(a.dtype)
        return to_cosine @ b, to_cosine.T @ a, None, None, None, None


def _dtype(vectors: Tensor, temperature: float) -> torch.dtype:
    return torch.promote_types(vectors.dtype, torch.float32 if temperature > 0.025 else torch.float64)


class SeenItems(NamedTuple):
    """The seen items of each prefix, and the bias that is added to their scores."""

    items: Tensor  # int64 [P, L], the items of a prefix, and padding
    counts: Tensor  # bool [P, L], true for each distinct item of the prefix once
    bias: Tensor  # a scalar


def next_item_cross_entropy(
    prefixes: Tensor,
    items: Tensor,
    target: Tensor,
    log_weights: Tensor | None = None,
    seen: SeenItems | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Softmax over the catalogue: -mean log y(next item).

    Or over candidates: `log_weights` is the logarithm of how many items of the catalogue each represents, such as
    1 / q for one that is drawn with probability q (the log-q correction of sampled softmax, Bengio and Senecal 2008).

    The [P, N] matrix of scores exists only a chunk of pairs at a time, in cache, where it is turned into the gradient.

    Args:
        prefixes: a vector for each prefix [P, Q].
        items: item vectors [N, Q].
        target: int64 [P], the next item's row.
        log_weights: [N], 0 for each next item; None: `items` is the complete catalogue.
        seen: the seen items of the prefixes, as rows of `items`.
        weights: [P], see the module.

    Reference: MSM4SR, arXiv 2303.11879, equations 12 and 13.
    """
    if weights is not None:
        weights = weights * (len(weights) / weights.sum())
    of_seen = seen or (None, None, None)
    return _SoftmaxOverCatalogue.apply(prefixes, items, target, log_weights, weights, *of_seen)  # type: ignore[no-any-return, no-untyped-call]


class _SoftmaxOverCatalogue(torch.autograd.Function):
    """Cross-entropy of prefixes @ items.T; the forward pass computes the gradient, while the scores are in cache."""

    @staticmethod
    def forward(
        ctx: Any,
        prefixes: Tensor,
        items: Tensor,
        target: Tensor,
        log_weights: Tensor | None,
        weights: Tensor | None,
        seen: Tensor | None,
        counts: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        prefixes, items = prefixes.detach(), items.detach()
        pairs = max(1, (SCORES_AT_ONCE_ON_GPU if items.is_cuda else SCORES_AT_ONCE) // len(items))
        # at least float32, even if autocast computes the products in bfloat16
        total = prefixes.new_zeros((), dtype=torch.promote_types(prefixes.dtype, torch.float32))
        to_prefixes, to_items, to_bias = torch.empty_like(prefixes), torch.zeros_like(items), total.clone()
        for start in range(0, len(prefixes), pairs):
            chunk = slice(start, start + pairs)
            wanted = target[chunk].unsqueeze(1)
            scores = (prefixes[chunk] @ items.T).to(total.dtype)  # [pairs, N]
            if seen is not None and counts is not None and bias is not None:
                scores.scatter_add_(1, seen[chunk], counts[chunk] * bias.detach().to(scores.dtype))
            if log_weights is not None:
                scores += log_weights
            scores -= scores.amax(dim=1, keepdim=True)
            score_of_wanted = scores.gather(1, wanted)
            scores.exp_()
            normaliser = scores.sum(dim=1, keepdim=True)
            losses = normaliser.log() - score_of_wanted
            scores /= normaliser  # y
            scores.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=scores.dtype))  # dL/dscores
            if weights is not None:
                weight = weights[chunk].unsqueeze(1)
                losses, scores = losses * weight, scores * weight
            total += losses.sum()
            if seen is not None and counts is not None:
                to_bias += (scores.gather(1, seen[chunk]) * counts[chunk]).sum()
            to_prefixes[chunk] = scores @ items  # not in place: autocast ignores in-place products
            to_items += scores.T @ prefixes[chunk]
        ctx.save_for_backward(to_prefixes, to_items, to_bias)
        ctx.pairs = len(prefixes)
        return total / len(prefixes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_prefixes, to_items, to_bias = ctx.saved_tensors
        scale = gradients[0] / ctx.pairs
        of_bias = to_bias * scale if ctx.needs_input_grad[7] else None
        return to_prefixes * scale, to_items * scale, None, None, None, None, None, of_bias


def sampled_binary_cross_entropy(positive: Tensor, negative: Tensor, weights: Tensor | None = None) -> Tensor:
    """The loss of SASRec's authors (Kang and McAuley 2018, section III.E) classifies one positive and one negative.

    -mean [log sigmoid(s_i) + log(1 - sigmoid(s_j))], with the scores s_i [P] of the next items and s_j [P] of items
    that are not in the history.
    """
    return mean_over_pairs(F.softplus(-positive) + F.softplus(negative), weights)


def bayesian_personalised_ranking(positive: Tensor, negative: Tensor, weights: Tensor | None = None) -> Tensor:
    """BPR: a user's seen items score over unseen ones (Rendle et al. 2009, arXiv 1205.2618).

    -mean log sigmoid(s_ui - s_uj), with the scores s_ui [P] of seen items and s_uj [P] of unseen ones of the same user.
    """
    return mean_over_pairs(F.softplus(negative - positive), weights)


def squared_length(vectors: Sequence[Tensor]) -> Tensor:
    """1/2 sum |v|^2 over all rows of all `vectors`, for an L2 penalty."""
    return 0.5 * torch.stack([v.square().sum() for v in vectors]).sum()


def attribute_mutual_information(context: Tensor, attributes: Tensor, labels: Tensor) -> Tensor:
    """S3-Rec's AAP and MAP: which attributes has the item at a position? A loss for each [P].

    -sum_a [y_a log sigma(c . e_a) + (1 - y_a) log(1 - sigma(c . e_a))], with the position's encoding times the task's
    matrix c [P, D], the attributes e [A, D], and y [P, A] of 0 and 1.

    Reference: Zhou et al. 2020, equations 5 and 9. The paper prints a contrast of one attribute with sampled ones; its
    code has this sum over all.
    """
    return F.binary_cross_entropy_with_logits(context @ attributes.T, labels, reduction="none").sum(dim=1)


def contrastive_mutual_information(context: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """S3-Rec's MIP and SP: which of two items (segments) belongs to this context? A loss for each position [P].

    -log [exp f(c, x) / (exp f(c, x) + exp f(c, x'))] = -log sigma(f(c, x) - f(c, x')), f(c, x) = sigma(c . x), with the
    encoding of the context times the task's matrix c [P, D], the masked item (segment) x [P, D] and a random one x'.

    Reference: Zhou et al. 2020, equations 7 and 11.
    """
    return F.softplus(((context * negative).sum(dim=1)).sigmoid() - ((context * positive).sum(dim=1)).sigmoid())
