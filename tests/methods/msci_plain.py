"""MSCI written out: one branch after the other, nothing shared, tiled, skipped or computed again."""

import torch
from plain_layers import plain_adapter
from torch.nn import functional as F

BRANCHES = ("pair", "attr", "obj")
CONTEXT_LENGTH = 8


def plain_maps(method, images):
    """Tokens behind every block in the joint space, a list of [B, L, D]."""
    tower, x, maps = method.clip.visual, method.clip.visual.embed(method.clip.normalise(images)), []
    for i in range(len(tower.blocks)):
        x = tower.block(i, x, plain_adapter(method.adapters))
        maps.append(tower.project(x))
    return maps


def plain_map(method, stage, maps):
    """What a stage attends to, [B, L, D]."""
    own = [maps[i] for i in method.taps[stage]]
    if len(own) == 1 or method.config.aggregator == "last":
        return own[-1]
    if method.config.aggregator == "mean":
        return sum(own) / len(own)
    linear, norm, _, dropout = method.aggregators[stage]
    return dropout(F.relu(norm(linear(torch.cat(own, dim=-1)))))


def plain_texts(method, pairs):
    """Unit text features of the branches from whole prompts of eight tokens."""
    words, text = method.prompts.words(), method.clip.text
    for tree in (method.prompts.pairs(words, pairs), *method.prompts.primitives(words)):
        tokens, end = tree.flat()
        padding = tokens.new_zeros(len(tokens), CONTEXT_LENGTH - tokens.shape[1], tokens.shape[2])
        yield F.normalize(text.encode_embeddings(torch.cat([tokens, padding], dim=1), end), dim=-1)


def plain_attention(attn, q, m):
    """Softmax written out; queries [B, n, D], memory [B, L, D]."""

    def split(x):
        return x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)

    q, k, v = split(attn.q_proj(q)), split(attn.k_proj(m)), split(attn.v_proj(m))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return attn.dropout(attn.proj((weights @ v).transpose(1, 2).reshape(len(m), q.shape[2], -1)))


def plain_stage(stage, q, m):
    """A stage's answer [B, n, D] to queries [B, n, D]."""
    m = stage.norm(m)
    for layer in stage.cross_attn_layers:
        q = q + plain_attention(layer.cross_attn, q, m)
        up, _, dropout, down = layer.mlp
        h = up(layer.norm(q))
        q = q + layer.dropout(down(dropout(h * torch.sigmoid(1.702 * h))))
    return q


def plain_images(method, images):
    """All maps, the image features of the branches [B, D], and what each stage attends to [B, L, D]."""
    maps = plain_maps(method, images)
    x = maps[-1][:, 0]
    features = [x, *(method.disentanglers[b](x) for b in ("attribute", "object"))]
    return maps, features, {stage: plain_map(method, stage, maps) for stage in method.stages}


def plain_branch(method, t, z, levels):
    """Answers of the stages to texts t [n, D] and logits [B, n] with image features z [B, D]."""
    answers: dict[str, torch.Tensor] = {}
    for s, stage in method.stages.items():
        asks = answers["low"] if s == "high" and method.config.stage_order == "sequential" else t.expand(len(z), -1, -1)
        answers[s] = plain_stage(stage, asks, levels[s])
    moved = t + sum(gate * answers[s] for s, gate in method.gates.items())
    cosines = (F.normalize(moved, dim=-1) * F.normalize(z, dim=-1)[:, None]).sum(-1)
    return answers, method.clip.logit_scale * cosines


def plain_tensors(method, images, pairs):
    """All tensors of a forward pass by the names of the specification."""
    maps, features, levels = plain_images(method, images)
    out = {"block_features": maps, **dict(zip(("x_cls", "x_attr", "x_obj"), features, strict=True)), **levels}
    for branch, z, t in zip(BRANCHES, features, plain_texts(method, pairs), strict=True):
        answers, logits = plain_branch(method, t, z, levels)
        out |= {f"text_{branch}": t, f"logits_{branch}": logits}
        out |= {f"q{i}_{branch}": answers[s] for i, s in ((1, "low"), (2, "high")) if s in answers}
    return out
