"""The blocks of the sequence encoder, in the order in which data meets them (DESIGN section 2, M2SE).

Shape letters: N items, R feature rows (sentences or images) of those items, D_in encoder width, K experts,
D model width, B histories, L positions of a history.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn


class ItemFeatures(nn.Module):
    """What a frozen encoder said of every item in one modality: a ragged table, never trained.

    The tables stay where they are: mapped from a store, only what a step looks at is read into memory.

    Args:
        vectors: float [R_all, D_in], the sentences (or images) of all items, item after item.
        offsets: int64 [N_all + 1]; item i has rows `offsets[i]:offsets[i + 1]`. No row: the item lacks the modality.
    """

    vectors: Tensor
    offsets: Tensor

    def __init__(self, vectors: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("offsets", offsets)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def forward(self, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rows of `items` [N] (all when None): vectors [R, D_in] and how many belong to each item [N]."""
        if items is None:
            return self.vectors, self.offsets.diff()
        first, lengths = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        shift = first - (lengths.cumsum(0) - lengths)  # from the place in the result to the place in the table
        rows = torch.repeat_interleave(shift, lengths) + torch.arange(int(lengths.sum()), device=first.device)
        return self.vectors[rows], lengths


class Dropout(nn.Module):
    """Each number is 0 with probability `p`, and else divided by 1 - p; nothing in evaluation.

    As `nn.Dropout`, of which it is a several times faster form for CPUs, where drawing the mask costs more than the
    matrix products around it. Four draws share a 64-bit random number, so that p is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = round(self.p * 2**16)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class ItemMeans(ItemFeatures):
    """One frozen vector an item in one modality: the mean of its rows. No row: the item lacks the modality.

    Encoders differ in length and offset (pooled layers of an image network have no negative number), so the means
    are centred over the items that have one, and divided by their mean length: a weight of N(0, 0.02) then makes of
    any modality what it makes of an ID.
    """

    def __init__(self, vectors: Tensor, offsets: Tensor) -> None:
        lengths = offsets.diff()
        present = lengths > 0
        rows = torch.arange(len(vectors), device=vectors.device)
        means = F.embedding_bag(rows, vectors, offsets[:-1][present], mode="mean")
        centre = means.mean(dim=0)
        means = means - centre
        length = means.norm(dim=1).mean().clamp(min=1e-12)  # one vector for all: nothing is told, all is 0
        super().__init__(means / length, F.pad(present.long().cumsum(0), (1, 0)))
        self.centre: Tensor = centre
        self.length: Tensor = length

    def measure_as(self, other: ItemMeans) -> None:
        """Centre and divide by what `other`, which was made of other items, was centred and divided by."""
        self.vectors = (self.vectors * self.length + self.centre - other.centre) / other.length
        self.centre, self.length = other.centre, other.length


class ItemCategories(ItemFeatures):
    """Which categories every item has: their numbers, ragged, never trained. An item may have none, one or several.

    Args:
        numbers: int64 [R_all], the categories of all items, item after item.
        offsets: int64 [N_all + 1].
        n_categories: A, how many there are.
    """

    def __init__(self, numbers: Tensor, offsets: Tensor, n_categories: int) -> None:
        super().__init__(numbers, offsets)
        self.n_categories = n_categories

    def labels(self, items: Tensor) -> Tensor:
        """1 where the item has the category, else 0: items [P] to float [P, A]."""
        numbers, lengths = self(items)
        row = torch.repeat_interleave(torch.arange(len(items), device=items.device), lengths)
        labels = torch.zeros(len(items), self.n_categories, device=items.device)
        return labels.index_put((row, numbers), labels.new_ones(()))

    def sums(self, embedding: Tensor) -> Tensor:
        """The sum of each item's category vectors: embedding [A, D] to [N, D], zeros for an item without any."""
        return F.embedding_bag(self.vectors, embedding, self.offsets[:-1], mode="sum")


class AttentionPooling(nn.Module):
    """One vector for an item out of its sentences or images (equation 3).

    alpha = softmax((x W1 + b1) W2 + b2) over the rows of the item, e = sum_j alpha_j x_j. The rows come ragged, so
    that there is no padded slot which could receive a weight.

    Args:
        dim: width of the rows.
        hidden: width between W1 and W2.
        activation: `none` as the paper prints it, `relu` between the two maps as its code has it. With `none` the
            two maps are one linear map, and are applied as one: x (W1 W2) costs a hidden-th of (x W1) W2.
    """

    def __init__(self, dim: int, hidden: int, activation: Literal["none", "relu"] = "none") -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)  # W1, b1
        self.outer = nn.Linear(hidden, 1)  # W2, b2
        self.activation = activation

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Pool rows [R, D_in], `lengths` [N] (all >= 1) of them an item, into [N, D_in]."""
        if len(rows) == len(lengths):
            return rows  # one row an item: alpha is 1
        return F.embedding_bag(
            torch.arange(len(rows), device=rows.device),
            rows,
            lengths.cumsum(0) - lengths,
            mode="sum",
            per_sample_weights=self.weights(rows, lengths).to(rows.dtype),
        )

    def weights(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """alpha of each row: [R]. They sum to 1 over the rows of an item."""
        if len(rows) == 0:
            return rows.new_zeros(0)
        scores, ends = self.scores(rows), lengths.cumsum(0)
        item = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)  # [R]
        slot = torch.arange(len(rows), device=rows.device) - (ends - lengths)[item]  # [R]
        table = scores.new_full((len(lengths), int(lengths.max())), -torch.inf).index_put((item, slot), scores)
        alpha: Tensor = table.softmax(dim=1)[item, slot]
        return alpha

    def scores(self, rows: Tensor) -> Tensor:
        """(x W1 + b1) W2 + b2 of each row: [R]."""
        if self.activation == "relu":
            return self.outer(self.inner(rows).relu()).squeeze(1)  # type: ignore[no-any-return]
        weight = self.outer.weight @ self.inner.weight  # [1, D_in]
        return F.linear(rows, weight, self.outer(self.inner.bias)).squeeze(1)


class Whitening(nn.Module):
    """(x - mean) (C + c I)^(-1/2), mean and covariance C of the rows that it is made from, c the mean of C's diagonal.

    What all vectors of an encoder have in common goes, and what few of them have counts as much as what most of them
    have. c keeps directions in which there is next to nothing from counting as much again.

    Args:
        rows: float [R, D_in], the frozen encoder's vectors of the catalogue. They are read in parts.

    Reference: whitening of frozen text vectors for sequential recommendation, Zhang et al. 2024, arXiv 2402.10602.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        parts = torch.split(rows, 1 << 16)
        mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / max(1, len(rows))
        centred = (part.double() - mean for part in parts)
        covariance = torch.stack([part.T @ part for part in centred]).sum(dim=0) / max(1, len(rows))
        sizes, directions = torch.linalg.eigh(covariance)
        shrunk = sizes.clamp(min=0) + sizes.mean().clamp(min=1e-6)
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", (directions * shrunk.rsqrt() @ directions.T).float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., D_in] to [..., D_in]."""
        return (x - self.mean) @ self.matrix

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [D_out, D_in] and bias [D_out] that make of x what `weight` makes of the whitened x."""
        folded = weight @ self.matrix  # which is symmetric
        return folded, -folded @ self.mean


class MixtureOfExperts(nn.Module):
    """From the encoder's space into the model's (equations 4 and 5).

    E_k(e) = LayerNorm(Dropout(e W_k)), g = softmax(e W3), z = sum_k g_k E_k(e). All experts are one product. With
    `whitening` e is whitened before.
    """

    def __init__(self, dim_in: int, dim: int, experts: int, dropout: float, whitening: Whitening | None = None) -> None:
        super().__init__()
        self.shape = (experts, dim)
        self.whitening = whitening
        self.weight = nn.Linear(dim_in, experts * dim, bias=False)  # W_1 ... W_K side by side
        self.gate = nn.Linear(dim_in, experts, bias=False)  # W3
        self.scale = nn.Parameter(torch.ones(experts, dim))
        self.shift = nn.Parameter(torch.zeros(experts, dim))
        self.dropout = Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D_in] to [N, D]."""
        experts = self.dropout(self._read(pooled, self.weight)).unflatten(1, self.shape)  # [N, K, D]
        experts = F.layer_norm(experts, self.shape[1:]) * self.scale + self.shift
        gates = self._read(pooled, self.gate).softmax(dim=1)  # [N, K]
        return torch.einsum("nk,nkd->nd", gates, experts)

    def _read(self, pooled: Tensor, linear: nn.Linear) -> Tensor:
        """[N, D_in] to [N, D_out]. To whiten the weights costs less than to whiten a catalogue of items."""
        return linear(pooled) if self.whitening is None else F.linear(pooled, *self.whitening.fold(linear.weight))


class ItemEncoder(nn.Module):
    """Attention pooling, then experts; an item without this modality has a learned stand-in."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        experts: int,
        dropout: float,
        activation: Literal["none", "relu"],
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.pooling = AttentionPooling(dim_in, dim, activation)
        self.experts = MixtureOfExperts(dim_in, dim, experts, dropout, whitening)
        # as long as what it stands for: a mean of `experts` independent normalised vectors
        self.missing = nn.Parameter(torch.randn(dim) / experts**0.5)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows [R, D_in], `lengths` [N] of them an item (0: missing), to item vectors [N, D]."""
        present = lengths.nonzero().squeeze(1)
        stand_in = self.missing.expand(len(lengths), -1)
        if len(present) == 0:
            return stand_in
        encoded = self.experts(self.pooling(rows, lengths[present]))
        return stand_in.to(encoded.dtype).index_copy(0, present, encoded)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with dropout of the weights; causal, or over what is `visible`, bool [B, L].

    q and k [B, heads, L, any], v [B, heads, L, d] to [B, heads, L, d].
    """
    scale, mask = v.shape[-1] ** -0.5, None if visible is None else visible[:, None, None, :]  # [B, 1, 1, L]
    if not (dropout.training and dropout.p > 0 and q.device.type == "cpu"):
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=mask is None, scale=scale)
    if mask is None:
        hidden = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu(1)
    else:
        hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    weights = (q * scale @ k.transpose(2, 3) + hidden).softmax(-1)  # [B, heads, L, L]
    return dropout(weights) @ v  # type: ignore[no-any-return]


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what came before it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. With `visible`, bool [B, L], a position sees these in place of what came before."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, D/heads]
        mixed = attend(q, k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at one place of each row alone: x [B, L, D], places [B] to [B, D]."""
        own, dim = x[torch.arange(x.shape[0], device=x.device), places], x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = (
            F.linear(own, weight[:dim], bias[:dim]).view(x.shape[0], 1, self.heads, -1).transpose(1, 2)
        )  # [B, heads, 1, d]
        keys = F.linear(x, weight[dim:], bias[dim:])
        k, v = keys.view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [B, heads, L, d]
        visible = torch.arange(x.shape[1], device=x.device) <= places.unsqueeze(1)  # [B, L]
        mixed = attend(q, k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward net, each added to its input and normalised after."""

    def __init__(self, attention: nn.Module, dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = nn.Sequential(nn.Linear(dim, inner_dim), nn.GELU(), nn.Linear(inner_dim, dim))
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. `context` is what the attention is given beside them."""
        return self._after(x, self.attention(x, context))

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at one place of each row alone: [B, D]."""
        own = x[torch.arange(x.shape[0], device=x.device), places]
        return self._after(own, self.attention.at(x, places))  # type: ignore[operator]


class TransformerConfig(BaseModel):
    """The settings of the sequence encoder, shared by every model that has one; defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(64, ge=1, description="width of item and history vectors")
    layers: int = Field(2, ge=1, description="Transformer layers")
    heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    inner_dim: int = Field(256, ge=1, description="width inside the feed-forward net")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout wherever the model has one, attention weights apart")
    attention_dropout: float = Field(0.2, ge=0, lt=1, description="dropout of attention weights")
    max_history: int = Field(50, ge=1, description="items of a history that are read, the latest ones")
    repeat_bias: bool = Field(
        False, description="learn a number that is added to the scores of the items which the history holds"
    )

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads: {self.dim} is not a multiple of {self.heads}")
        return self


class CausalTransformer(nn.Module):
    """Position embedding and L layers; the output at a position is the encoding of the prefix that ends there.

    Histories are padded on the right. A padded slot comes after every real one, so the causal mask alone keeps it
    out of everything that is read.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.max_history, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                CausalAttention(config.dim, config.heads, config.attention_dropout),
                config.dim,
                config.inner_dim,
                config.dropout,
            )
            for _ in range(config.layers)
        )

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Input vectors [B, L, D], L <= max_history, to prefix encodings [B, L, D].

        With `visible`, bool [B, L], it is no longer causal: each position sees all of these (one a row at least).
        """
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers:
            x = layer(x, visible)
        return x

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The encoding of each whole history: [B, L, D], of which the first `lengths` [B] count, to [B, D].

        As `forward` at the last places, for less: what the last layer gives at the others is read by nobody.
        """
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].at(x, lengths - 1)  # type: ignore[no-any-return,operator]


def take(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for a trained table [N, ...] and int64 rows [...], by an embedding look-up.

    The gradient of plain indexing adds rows that occur twice in whatever order its threads come to them; that of an
    embedding adds them in order, so that a seed gives the same digits on several threads too. It is faster as well.
    """
    return F.embedding(rows, table.flatten(1)).view(*rows.shape, *table.shape[1:])


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0, as the method's code and SASRec's do. Apply with `model.apply(initialise)`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
