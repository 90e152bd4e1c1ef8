"""Layers written out plainly, one head after the other, and methods whose weights are not those of the start."""

from __future__ import annotations

import torch

from methods.building import build


def shaken(name, space, clip, settings):
    """A method in evaluation mode whose trained weights were moved a little, so that nothing is zero or CLIP's own."""
    torch.manual_seed(0)
    method = build(name, space, clip, settings)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method.eval()


def plain_adapter(adapters):
    """Adapters as an `Adapter` of the image tower, written out."""
    if adapters is None:
        return None

    def add(index, x, onto):
        bottleneck = adapters[index]
        hidden = (x @ bottleneck.down_proj.weight.T + bottleneck.down_proj.bias).clamp(min=0)
        return onto + 0.1 * (bottleneck.dropout(hidden) @ bottleneck.up_proj.weight.T + bottleneck.up_proj.bias)

    return add


def norm(x, module):
    """Layer norm."""
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (var + module.eps).sqrt() * module.weight + module.bias


def plain_block(block, x_QW, y_nW=None):
    """One residual block for the queries and keys of one image or prompt, and its mean attention [Q, n]; no ``y``: self-attention."""
    q_in = norm(x_QW, block.ln_x)
    k_in = q_in if y_nW is None else norm(y_nW, block.ln_y)
    heads, width = block.attn.num_heads, x_QW.shape[1] // block.attn.num_heads
    w, b = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    q, k, v = q_in @ w[0].T + b[0], k_in @ w[1].T + b[1], k_in @ w[2].T + b[2]
    outs, weights = [], []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        share_Qn = (q[:, part] @ k[:, part].T / width**0.5).exp()
        weights.append(share_Qn / share_Qn.sum(1, keepdim=True))
        outs.append(weights[-1] @ v[:, part])
    x_QW = x_QW + torch.cat(outs, dim=1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    hidden = block.mlp[0](norm(x_QW, block.ln_2))
    return x_QW + block.mlp[2](hidden * torch.sigmoid(1.702 * hidden)), torch.stack(weights).mean(0)
