"""A residual transformer block whose queries and keys may come from different sides (VP-CMJL, DFSP).

Letters: B images, Q queries, n keys, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from czsl.clip.lean import QuickGELU
from czsl.clip.vision import attention


class AttentionBlock(nn.Module):
    """``x + attention(LN(x), LN(y))``, then ``x + MLP(LN(x))`` with four times the width.

    Parameters
    ----------
    dim : int
        D.
    heads : int
        Divides D.
    cross : bool, default True
        Give the keys a norm of their own. Without it they are tokens of the queries' kind and share the queries' norm.
    dropout : float, default 0
        Inside the MLP.
    """

    def __init__(self, dim: int, heads: int, cross: bool = True, dropout: float = 0.0):
        super().__init__()
        self.ln_x, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ln_y = nn.LayerNorm(dim) if cross else None
        self.attn = nn.MultiheadAttention(dim, heads)
        middle = nn.Sequential(QuickGELU(), nn.Dropout(dropout))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), middle, nn.Linear(4 * dim, dim))

    def forward(self, x_BQD: Tensor, y_BnD: Tensor) -> Tensor:
        """Queries [B, Q, D] that attended to keys [B, n, D]."""
        keys_BnD = (self.ln_y or self.ln_x)(y_BnD)
        x_BQD = x_BQD + attention(self.attn, self.ln_x(x_BQD), keys_BnD)
        return x_BQD + self.mlp(self.ln_2(x_BQD))

    def weighted(self, x_QD: Tensor, y_nD: Tensor) -> tuple[Tensor, Tensor]:
        """The same for queries [Q, D] and keys [n, D], and the attention to each key, mean over heads [Q, n]."""
        y_nD = (self.ln_y or self.ln_x)(y_nD)
        moved_QD, weights_Qn = self.attn(self.ln_x(x_QD), y_nD, y_nD)
        x_QD = x_QD + moved_QD
        return x_QD + self.mlp(self.ln_2(x_QD)), weights_Qn
