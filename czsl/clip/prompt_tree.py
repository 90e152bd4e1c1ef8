"""Prompts with a common beginning, and the computation of several sets of them in one pass of the text tower.

Letters: P prompts, T text tokens, W text width, F tokens of a trunk, M branches, Q tokens that end a prompt, N tokens of a pass,
R rows (Q tokens each) of a pass, K keys of a row, h heads, w head width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = 8  # a GPU's attention copies a mask whose rows do not begin at multiples of it
MAX_HOT = 1 << 25  # numbers in the matrix that adds up the gradients of branches


@dataclass
class PromptTree:
    """Prompts with a common beginning, as token embeddings without positions.

    Every prompt begins with trunk [F, W]. Branches [M, W] are possible next tokens (M may be 0), and parents [P] is the index of the
    branch that a prompt continues (unused if M is 0). Tokens [n, W] are those at the ends of prompts, and ends [P, Q] are the indices of
    the last tokens of each prompt, the end token last. Only indices grow with the number of prompts.
    """

    trunk: Tensor
    branches: Tensor
    tokens: Tensor
    ends: Tensor
    parents: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of a tree in the order in which it takes them."""
        return self.trunk, self.branches, self.tokens, self.ends, self.parents

    @property
    def leaves(self) -> Tensor:
        """The last tokens of each prompt, [P, Q, W]."""
        return self.tokens[self.ends]

    def part(self, rows: slice) -> PromptTree:
        """The tree of some of the prompts."""
        return PromptTree(self.trunk, self.branches, self.tokens, self.ends[rows], self.parents[rows])

    def flat(self) -> tuple[Tensor, Tensor]:
        """The prompts in full: token embeddings [P, T, W] and the end token's position [P]."""
        P = len(self)
        middle = [self.branches[self.parents][:, None]] if len(self.branches) else []
        x_PTW = torch.cat([self.trunk.expand(P, -1, -1), *middle, self.leaves], dim=1)
        return x_PTW, torch.full((P,), x_PTW.shape[1] - 1, device=x_PTW.device)


def parts_of(trees: Sequence[PromptTree], rows: slice) -> list[PromptTree]:
    """The trees of some of the prompts; ``rows`` counts through the prompts of all trees. A tree may have no prompts left."""
    start, out = 0, []
    for tree in trees:
        out.append(tree.part(slice(max(rows.start - start, 0), max(rows.stop - start, 0))))
        start += len(tree)
    return out


@dataclass(frozen=True)
class Skeleton:
    """Indices that depend only on the sizes of trees: positions of tokens, the keys of each row, and the attention mask.

    ``trunk_at`` and ``branch_at`` are the first tokens of each tree's trunk and branches, ``leaves_at`` that of all leaves. ``keys``
    int64 [R, K] without the branches of leaves; ``hidden`` bool [R, 1, Q, K]; ``positions`` int64 [N]. ``upper`` [leaves_at, rows * K]
    is 1 if a token is a key of the rows before the leaves; ``trunks`` [trees, prompts] is 1 if a prompt belongs to a tree.
    """

    trunk_at: tuple[int, ...]
    branch_at: tuple[int, ...]
    leaves_at: int
    keys: Tensor
    hidden: Tensor
    positions: Tensor
    upper: Tensor
    trunks: Tensor


@functools.lru_cache(maxsize=8)
def skeleton(trunk: int, sizes: tuple[tuple[int, int], ...], ends: int, device: torch.device) -> Skeleton:
    """The skeleton of trees with trunks of ``trunk`` tokens, (branches, prompts) each, and ``ends`` tokens at the end of a prompt."""
    F_, Q, has_branches = trunk, ends, any(M for M, _ in sizes)
    K = F_ + has_branches + Q
    up = lambda n: -(-n // Q) * Q  # noqa: E731  (whole rows)
    trunk_at = [i * up(F_) for i in range(len(sizes))]
    branch_at, at = [], len(sizes) * up(F_)
    for M, _ in sizes:
        branch_at.append(at)
        at += up(M)
    N = at + Q * sum(P for _, P in sizes)
    keys, seen = np.zeros((N // Q, K), np.int64), np.zeros((N // Q, Q, K), bool)
    positions, own, causal = np.zeros(N, np.int64), np.arange(Q), np.tril(np.ones((Q, Q), bool))
    trunks = np.zeros((len(sizes), sum(P for _, P in sizes)), np.float32)
    leaf = at
    for i, ((M, P), t, b) in enumerate(zip(sizes, trunk_at, branch_at, strict=True)):
        slots = np.arange(up(F_))
        positions[t : t + F_] = np.arange(F_)
        rows = slice(t // Q, t // Q + len(slots) // Q)
        keys[rows, : len(slots)] = t + slots
        seen[rows, :, : len(slots)] = (slots[None] <= slots[:, None]).reshape(-1, Q, len(slots))
        for start, n, inner, depth in ((b, up(M) // Q, np.eye(Q, dtype=bool), F_), (leaf, P, causal, F_ + (M > 0))):
            rows = slice(start // Q, start // Q + n)
            keys[rows, :F_] = t + np.arange(F_)
            keys[rows, K - Q :] = (start + Q * np.arange(n))[:, None] + own
            seen[rows, :, :F_], seen[rows, :, K - Q :] = True, inner
            positions[start : start + n * Q] = depth + (np.tile(own, n) if start == leaf else 0)
        if M:
            seen[leaf // Q : leaf // Q + P, :, F_] = True
        first = (leaf - at) // Q
        trunks[i, first : first + P] = 1
        leaf += P * Q
    upper = np.zeros((at, at // Q * K), np.float32)
    upper[keys[: at // Q].ravel(), np.arange(at // Q * K)] = seen[: at // Q].any(1).ravel()
    on = lambda x: torch.from_numpy(x).to(device)  # noqa: E731
    return Skeleton(tuple(trunk_at), tuple(branch_at), at, on(keys), on(~seen[:, None]), on(positions), on(upper), on(trunks))


class Pass:
    """Several trees of the same shape in one pass through the blocks: trunks, then branches, then the leaves prompt by prompt.

    Attention works on rows of Q tokens with K keys each: a trunk's tokens, one branch, the row's own. Trunks and branches are
    padded to whole rows; the padding is never read.
    """

    def __init__(self, trees: Sequence[PromptTree]):
        trunks, ends = {len(t.trunk) for t in trees}, {t.ends.shape[1] for t in trees}
        if len(trunks) > 1 or len(ends) > 1:
            raise ValueError("all trees of one pass need trunks and ends of the same length")
        self.trees, self.F, self.Q = trees, trunks.pop(), ends.pop()
        self.sizes = tuple((len(t.branches), len(t)) for t in trees)
        self.bones = bones = skeleton(self.F, self.sizes, self.Q, trees[0].trunk.device)
        self.keys, self.upper_rows = bones.keys, bones.leaves_at // self.Q
        # Trees whose prompts continue branches: their rows, their branches, and the branch that each prompt continues.
        self.branched: list[tuple[slice, slice, Tensor]] = []
        row = self.upper_rows
        for tree, (M, P), at in zip(trees, self.sizes, bones.branch_at, strict=True):
            if M and P:
                self.branched.append((slice(row, row + P), slice(at, at + M), tree.parents))
            row += P
        if self.branched:
            self.keys = bones.keys.clone()
            for rows, branches, parents in self.branched:
                self.keys[rows, self.F] = parents + branches.start
        self._kept: dict[Any, Any] = {}

    def embeddings(self, positional_embedding: Tensor) -> Tensor:
        """The tokens of the pass with their positions, [N, W]."""
        Q, parts = self.Q, []

        def rows(x: Tensor) -> None:
            parts.append(x)
            if short := -len(x) % Q:
                parts.append(x.new_zeros(short, x.shape[1]))

        for tree in self.trees:
            rows(tree.trunk)
        for tree in self.trees:
            rows(tree.branches)
        parts += [tree.leaves.flatten(0, 1) for tree in self.trees]
        return torch.cat(parts) + positional_embedding[self.bones.positions]

    def attention(self, qkv_NW: Tensor, heads: int) -> Tensor:
        """Each token attends to itself and to those before it in its prompts; queries, keys and values [N, 3 W] -> [N, W]."""
        q, k, v = _Rows.apply(qkv_NW, self, heads)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q.dtype)).transpose(1, 2).reshape(len(qkv_NW), -1)

    def _bias(self, dtype: torch.dtype) -> Tensor:
        """The mask added to the attention logits, [R, 1, Q, K]: minus infinity for keys that a query must not attend to."""
        if ("bias", dtype) not in self._kept:
            hidden = F.pad(self.bones.hidden, (0, -self.bones.hidden.shape[-1] % ALIGNMENT))
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._kept["bias", dtype] = bias[..., : self.bones.hidden.shape[-1]]
        return self._kept["bias", dtype]

    def _sums(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Matrices of ones that add up the gradients of shared keys; None instead of one that would be too large."""
        if ("sums", dtype) not in self._kept:
            hot: list[Tensor | None] = []
            for rows, branches, parents in self.branched:
                M, P = branches.stop - branches.start, rows.stop - rows.start
                every_M1 = torch.arange(M, device=parents.device)[:, None]
                hot.append((every_M1 == parents).to(dtype) if M * P <= MAX_HOT else None)
            self._kept["sums", dtype] = self.bones.upper.to(dtype), self.bones.trunks.to(dtype), hot
        return self._kept["sums", dtype]

    def key_gradients(self, grad_RKX: Tensor, out_NX: Tensor) -> None:
        """Write the gradients of all tokens as keys: shared tokens get the sum over the rows that attend to them, in a fixed order."""
        upper, trunks, hot = self._sums(grad_RKX.dtype)
        n, U, F_, Q = self.bones.leaves_at, self.upper_rows, self.F, self.Q
        torch.mm(upper, grad_RKX[:U].flatten(0, 1), out=out_NX[:n])
        leaves, count = grad_RKX[U:], len(self.trees)
        if len(leaves):
            own_FcX = out_NX[: self.bones.branch_at[0]].unflatten(0, (count, -1))[:, :F_].transpose(0, 1)
            own_FcX.baddbmm_(trunks.expand(F_, -1, -1), leaves[:, :F_].transpose(0, 1))
        for (rows, branches, parents), matrix in zip(self.branched, hot, strict=True):
            if matrix is None:
                out_NX[branches].index_put_((parents,), grad_RKX[rows, F_], accumulate=True)
            else:
                out_NX[branches].addmm_(matrix, grad_RKX[rows, F_])
        out_NX[n:] = leaves[:, -Q:].flatten(0, 1)


class _Rows(torch.autograd.Function):
    """Queries [R, h, Q, w], and keys and values [R, h, K, w] of the rows of a pass, from those of its tokens [N, 3 W]."""

    @staticmethod
    def forward(ctx: Any, qkv_NW: Tensor, work: Pass, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.work, ctx.width = work, qkv_NW.shape[1] // 3
        W = ctx.width
        q = qkv_NW[:, :W].unflatten(1, (heads, -1)).unflatten(0, (-1, work.Q)).transpose(1, 2)
        kv = qkv_NW[:, W:][work.keys].unflatten(2, (2 * heads, -1)).transpose(1, 2)
        return (q, *kv.split(heads, dim=1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        q, k, v = (x.transpose(1, 2).flatten(2) for x in grads)
        out = q.new_empty(q.shape[0] * q.shape[1], 3 * ctx.width)
        out[:, : ctx.width] = q.flatten(0, 1)
        ctx.work.key_gradients(torch.cat([k, v], dim=2), out[:, ctx.width :])
        return out, None, None
