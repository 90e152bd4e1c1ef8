"""TOMCAT and TDA written down plainly, with autograd and torch's own AdamW over full tables: the oracles of the fast forms."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def entropy(z):
    return -(z.softmax(0) * z.log_softmax(0)).sum()


def offer(cache, label, feature, value, shots, extra=None):
    """The cache rule of both papers' programs: append, or replace the entry of the highest entropy; sorted after each change."""
    entries = cache.setdefault(label, [])
    if len(entries) < shots:
        entries.append((value, feature, extra))
    elif value < entries[-1][0]:
        entries[-1] = (value, feature, extra)
    entries.sort(key=lambda entry: entry[0])


def plain_tomcat(images, text, s, *, shots, alpha, beta, theta, text_lr, image_lr, weight_decay, align_weight, cache=True):
    """Scores [N, P]; ``alpha`` as it enters the formula."""
    t = F.normalize(text, dim=1)
    R_t, R_v = nn.Parameter(torch.zeros_like(t)), nn.Parameter(torch.zeros_like(t))
    optimizers = [
        torch.optim.AdamW([R], lr=lr, betas=(0.9, 0.999), eps=1e-3, weight_decay=weight_decay)
        for R, lr in ((R_t, text_lr), (R_v, image_lr))
    ]
    kept, out = {}, []
    for image in images:
        x = F.normalize(image, dim=0)
        w = 1 / (1 + torch.exp(theta * (t @ x)))
        moved = F.normalize(t + w[:, None] * R_t, dim=1)
        z, align = s * moved @ x, torch.zeros((), dtype=t.dtype)
        if cache:
            offer(kept, int(z.argmax()), x, float(entropy(z.detach())), shots)
            classes = sorted(kept)
            k = torch.stack([torch.stack([feature for _, feature, _ in kept[c]]).mean(0) for c in classes])
            v = 1 / (1 + torch.exp(theta * (k @ x)))
            k = F.normalize(k + v[:, None] * R_v[classes], dim=1)
            bonus = torch.zeros_like(z)
            bonus[classes] = alpha * torch.exp(-beta * (1 - k @ x))
            z = z + bonus
            if align_weight:
                logits, diagonal = s * k @ moved[classes].T, torch.arange(len(classes))
                align = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        out.append(z.detach())
        loss = entropy(z) + align_weight * align
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return torch.stack(out)


def plain_tda(
    images, text, s, *, shots, alpha, beta, negative, negative_shots, negative_alpha, negative_beta, entropy_low, entropy_high,
    mask_low, mask_high,
):  # fmt: skip
    """Scores [N, P]; alphas as they enter the formula."""
    t = F.normalize(text, dim=1)
    positive, against, out = {}, {}, []
    for image in images:
        x = F.normalize(image, dim=0)
        z = s * t @ x
        value, label = float(entropy(z)), int(z.argmax())
        offer(positive, label, x, value, shots)
        if negative and entropy_low < value / math.log2(len(z)) < entropy_high:
            p = z.softmax(0)
            offer(against, label, x, value, negative_shots, ((p > mask_low) & (p < mask_high)).to(z))
        z = z.clone()
        for c, entries in positive.items():
            z[c] += sum(alpha * torch.exp(-beta * (1 - x @ feature)) for _, feature, _ in entries)
        for entries in against.values():
            for _, feature, mask in entries:
                z -= negative_alpha * torch.exp(-negative_beta * (1 - x @ feature)) * mask
        out.append(z)
    return torch.stack(out)
