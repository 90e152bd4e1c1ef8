"""TOMCAT (Yan et al., NeurIPS 2025, arXiv 2510.20162): adaptation of compositions while testing, from the public code's behaviour.

Letters: B images, P candidates, C candidates that have cache entries, D joint width. Gradients are in closed form: with
u = t + w R and t' = u / |u|, dz/dR = w s / |u| (x - (x.t') t'), so that no [P, D] array but the residuals and one buffer is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from methods.adaptation.adaptation import Adaptation, entropy_of
from methods.adaptation.cache import ClassCache, doubled
from methods.adaptation.config import TomcatConfig

BETAS, EPS = (0.9, 0.999), 1e-3
ROWS = 1024  # of a residual updated at a time: gradient, residual and moments of a block stay in a processor's cache


class Tomcat(Adaptation[TomcatConfig]):
    """State: a residual per candidate text, a cache, and a residual per candidate that has cache entries.

    The score of an image belongs to the state before its own step, but after the image itself entered the cache, as in the public
    code. A step reads and writes the text residual and its two moments, [P, D] each; the alignment costs two products [C, D] x [D, C]
    and one more for each residual that learns.
    """

    def __init__(self, text_PD: Tensor, scale: float, config: TomcatConfig):
        super().__init__(text_PD, scale, config)
        self.cache = ClassCache(config.shots, text_PD)
        self.text_residual = _Residual(text_PD, config.text_lr, config.weight_decay) if config.text_lr else None
        self.image_residual = None
        if config.cache and config.image_lr:
            self.image_residual = _Residual(self.cache.keys.new_zeros(16, text_PD.shape[1]), config.image_lr, config.weight_decay)
        self._own_P = text_PD.new_zeros(len(text_PD))  # t.R of each candidate
        self._square_P = text_PD.new_zeros(len(text_PD))  # R.R
        self._buffer = torch.empty_like(text_PD[:ROWS]) if config.text_lr else None

    def shift(self, x_D: Tensor, cos_P: Tensor) -> Tensor:
        """Return what is added to the scaled cosines [P] of one unit image, and adapt to it."""
        c, s = self.config, self.scale
        w_P = torch.sigmoid(-c.theta * cos_P)
        moved_P, length_P = cos_P, torch.ones_like(cos_P)
        if self.text_residual is not None:
            length_P = (1 + 2 * w_P * self._own_P + w_P.square() * self._square_P).sqrt()
            moved_P = (cos_P + w_P * (self.text_residual.value @ x_D)) / length_P
        z_P = s * moved_P
        if not c.cache:
            self._learn_text(x_D, w_P, length_P, moved_P, _entropy_gradient(z_P), None)
            return z_P - s * cos_P
        self.cache.add(int(z_P.argmax()), x_D, float(entropy_of(z_P)))
        classes_C, keys_CD = self.cache.classes, self.cache.keys
        v_C = torch.sigmoid(-c.theta * (keys_CD @ x_D))
        u_CD = keys_CD
        if self.image_residual is not None:
            u_CD = torch.addcmul(keys_CD, v_C[:, None], self.image_residual.rows(len(v_C)))
        key_length_C = u_CD.norm(dim=1).clamp(min=1e-12)
        unit_CD = u_CD / key_length_C[:, None]
        bonus_C = c.weight(c.alpha, s) * torch.exp(-c.beta * (1 - unit_CD @ x_D))
        z_P = z_P.index_add(0, classes_C, bonus_C)
        if self.text_residual is not None or self.image_residual is not None:
            dz_P = _entropy_gradient(z_P)
            text_CD, to_text_CD, to_key_CD = self._alignment(unit_CD, classes_C, w_P, length_P)
            if self.image_residual is not None:
                grad_CD = torch.zeros_like(unit_CD) if to_key_CD is None else to_key_CD
                grad_CD.addr_(dz_P[classes_C] * c.beta * bonus_C, x_D)
                self.image_residual.step(0, _through_norm(grad_CD, unit_CD, v_C / key_length_C))
                self.image_residual.steps += 1
            aligned = None
            if to_text_CD is not None:
                assert text_CD is not None
                aligned = classes_C, _through_norm(to_text_CD, text_CD, (w_P / length_P)[classes_C])
            self._learn_text(x_D, w_P, length_P, moved_P, dz_P, aligned)
        return z_P - s * cos_P

    def _alignment(
        self, unit_CD: Tensor, classes_C: Tensor, w_P: Tensor, length_P: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Moved texts of the cached classes, and the alignment loss's gradients to them and to the keys, [C, D] each."""
        c = self.config
        if not c.align_weight or len(classes_C) < 2:  # of one class the loss is 0
            return None, None, None
        text_CD = self.text[classes_C]
        if self.text_residual is not None:
            text_CD = torch.addcmul(text_CD, w_P[classes_C, None], self.text_residual.value[classes_C])
            text_CD /= length_P[classes_C, None]
        logits_CC = (unit_CD @ text_CD.T).mul_(self.scale)
        # Mean of the cross-entropies of rows and of columns with the diagonal as labels.
        grad_CC = logits_CC.softmax(dim=1).add_(logits_CC.softmax(dim=0))
        grad_CC.diagonal().sub_(2)
        grad_CC *= c.align_weight * self.scale / (2 * len(classes_C))
        to_text = grad_CC.T @ unit_CD if self.text_residual is not None else None
        return text_CD, to_text, grad_CC @ text_CD if self.image_residual is not None else None

    def _learn_text(
        self,
        x_D: Tensor,
        w_P: Tensor,
        length_P: Tensor,
        moved_P: Tensor,
        dz_P: Tensor,
        aligned: tuple[Tensor, Tensor] | None,
    ) -> None:
        """One step of the text residual; block by block, so that nothing of the size of the residual is built."""
        if self.text_residual is None:
            return
        assert self._buffer is not None
        along_P = w_P * self.scale * dz_P / length_P
        across_P = along_P * moved_P / length_P
        own_P = across_P * w_P
        places_P = None
        if aligned is not None:
            places_P = torch.full((len(w_P),), -1, dtype=torch.int64, device=w_P.device)
            places_P[aligned[0]] = torch.arange(len(aligned[0]), device=w_P.device)
        for start in range(0, len(w_P), ROWS):
            block = slice(start, min(start + ROWS, len(w_P)))
            text, residual = self.text[block], self.text_residual.value[block]
            grad = self._buffer[: block.stop - start]
            torch.mul(text, -across_P[block, None], out=grad)
            grad.addcmul_(residual, own_P[block, None], value=-1).addr_(along_P[block], x_D)
            if aligned is not None and places_P is not None:
                rows = (places_P[block] >= 0).nonzero()[:, 0]
                grad.index_add_(0, rows, aligned[1][places_P[block][rows]])
            self.text_residual.step(start, grad)
            torch.mul(text, residual, out=grad)
            self._own_P[block] = grad.sum(dim=1)
            torch.mul(residual, residual, out=grad)
            self._square_P[block] = grad.sum(dim=1)
        self.text_residual.steps += 1

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` continues the stream."""
        out = {"images": torch.tensor(self.images), **self.cache.state("cache_")}
        for name, residual in (("text", self.text_residual), ("image", self.image_residual)):
            if residual is not None:
                count = len(self.text) if name == "text" else len(self.cache)
                out |= {f"{name}_{key}": x for key, x in residual.state(count).items()}
        return out

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state; ValueError or KeyError if it does not hold together."""
        self.images = int(state["images"])
        self.cache.restore(state, "cache_", len(self.text))
        for name, residual in (("text", self.text_residual), ("image", self.image_residual)):
            if residual is not None:
                count = len(self.text) if name == "text" else len(self.cache)
                residual.restore({key: state[f"{name}_{key}"] for key in ("value", "mean", "square", "steps")}, count)
        if self.text_residual is not None:
            self._own_P = (self.text * self.text_residual.value).sum(dim=1)
            self._square_P = self.text_residual.value.square().sum(dim=1)


class _Residual:
    """A residual [n, D] with the moments of AdamW. Rows that never had a gradient are zero, as they would be in a full table."""

    def __init__(self, like: Tensor, lr: float, weight_decay: float):
        self.value, self.mean, self.square = (torch.zeros_like(like) for _ in range(3))
        self.steps, self._lr, self._weight_decay = 0, lr, weight_decay

    def rows(self, count: int) -> Tensor:
        """The first rows; there are as many as asked for."""
        while len(self.value) < count:
            self.value, self.mean, self.square = (doubled(x) for x in (self.value, self.mean, self.square))
        return self.value[:count]

    def step(self, start: int, grad_nD: Tensor) -> None:
        """Move rows from ``start`` on by step ``steps + 1``."""
        rows = slice(start, start + len(grad_nD))
        moved = [[x[rows]] for x in (self.value, self.mean, self.square)]
        done = [torch.tensor(float(self.steps), device=grad_nD.device)]
        adamw(
            moved[0], [grad_nD], moved[1], moved[2], [], done, fused=True, amsgrad=False,
            beta1=BETAS[0], beta2=BETAS[1], lr=self._lr, weight_decay=self._weight_decay, eps=EPS, maximize=False,
        )  # fmt: skip

    def state(self, count: int) -> dict[str, Tensor]:
        parts = {"value": self.value, "mean": self.mean, "square": self.square}
        return {**{key: x[:count] for key, x in parts.items()}, "steps": torch.tensor(self.steps)}

    def restore(self, state: dict[str, Tensor], count: int) -> None:
        self.rows(count)
        for key in ("value", "mean", "square"):
            own, kept = getattr(self, key), state[key]
            if kept.shape != own[:count].shape or kept.dtype != own.dtype or not bool(kept.isfinite().all()):
                raise ValueError("a residual of another shape")
            own[:count] = kept.to(own.device)
        self.steps = int(state["steps"])


def _entropy_gradient(z_P: Tensor) -> Tensor:
    """Gradient [P] of the entropy of softmax(z)."""
    log_P = z_P.log_softmax(dim=0)
    p_P = log_P.exp()
    return -p_P * (log_P - (p_P * log_P).sum())


def _through_norm(grad_CD: Tensor, unit_CD: Tensor, factor_C: Tensor) -> Tensor:
    """Gradient to a residual R from that to (k + w R) / |k + w R|, with w / |k + w R| as the factor; in place."""
    along_C1 = (grad_CD * unit_CD).sum(dim=1, keepdim=True)
    return grad_CD.addcmul_(along_C1, unit_CD, value=-1).mul_(factor_C[:, None])
