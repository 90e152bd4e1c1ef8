"""The public programs' training loops, written out from the specifications of what they do, with plain forward passes.

A plain model holds the same modules as a method (so that weights have the same names) and none of its arithmetic. Dropout masks and Gumbel
noise are functions of (step, place, row), so that both sides draw the same whatever the order of their calls.
Letters: B images, n texts, P pairs, A attributes, O objects, K prototypes a primitive, M all prototypes, D joint width.
"""

import hashlib

import numpy as np
import torch
from msci_plain import plain_attention, plain_map, plain_maps, plain_texts
from test_transport import plain_plan
from torch import nn
from torch.nn import functional as F

# -- draws that both sides share -----------------------------------------------------------------------------------------


class Draws:
    """Masks and noise by (step, name); ``tokens`` is the number of an image's tokens, of which some callers compute the first only."""

    def __init__(self, tokens):
        self.step, self.tokens = 0, tokens

    def uniform(self, name, *shape):
        seed = hashlib.blake2b(f"{self.step} {name} {shape}".encode(), digest_size=7).digest()
        return torch.rand(*shape, generator=torch.Generator().manual_seed(int.from_bytes(seed)), dtype=torch.float64)

    def kept(self, name, shape, p):
        """Mask of a dropout, 1 where an element is kept."""
        if name.startswith("adapters") and len(shape) == 3:
            return (self.uniform(name, shape[0], self.tokens, shape[2]) >= p).double()[:, : shape[1]]
        return (self.uniform(name, *shape) >= p).double()

    def gumbel(self, shape):
        return -(-self.uniform("gumbel", *shape).clamp(1e-12, 1 - 1e-12).log()).log()

    def attach(self, method, monkeypatch):
        """Let all dropout below take its masks from here."""
        for name, module in method.named_modules():
            module.place = name

        def forward(module, x):
            if not module.training or not module.p:
                return x
            return x * self.kept(module.place, x.shape, module.p).to(x.dtype) / (1 - module.p)

        monkeypatch.setattr(nn.Dropout, "forward", forward)


# -- plain models ----------------------------------------------------------------------------------------------------------


class PlainCSP:
    """Frozen image features and prompts of learned words; nothing else."""

    def __init__(self, method, draws):
        self.method, self.draws = method, draws

    def texts(self, pairs):
        m = self.method
        tokens, end = m.prompts.pairs(m.prompts.words(), pairs).flat()
        return F.normalize(m.clip.text.encode_embeddings(tokens, end), dim=-1)

    def logits(self, images, pairs):
        m = self.method
        with torch.no_grad():
            features = plain_maps_without_adapters(m, images)
        return (m.clip.logit_scale * F.normalize(features, dim=-1) @ self.texts(pairs).T,)

    def loss(self, images, attr, obj, pair, train_pairs):
        return F.cross_entropy(self.logits(images, train_pairs)[0], pair)

    def scores(self, images, pairs):
        return self.logits(images, pairs)[0]


def plain_maps_without_adapters(method, images):
    tower = method.clip.visual
    x = tower.embed(method.clip.normalise(images))
    for i in range(len(tower.blocks)):
        x = tower.block(i, x, None)
    return tower.project(x)[:, 0]


class PlainBranches(PlainCSP):
    """Three branches, their losses and the fused score; a subclass says what images and texts are compared with."""

    def loss(self, images, attr, obj, pair, train_pairs):
        logits = self.logits(images, train_pairs)
        weights = self.method.config.loss_weights
        return sum(w * F.cross_entropy(x, y) for w, x, y in zip(weights, logits, (pair, attr, obj), strict=True))

    def scores(self, images, pairs):
        """The training loop's evaluation: primitives stand once among the texts, whatever the number of pairs."""
        pair, attr, obj = self.logits(images, pairs)
        return pair + attr.softmax(1)[:, pairs[:, 0]] * obj.softmax(1)[:, pairs[:, 1]]

    def cosines(self, t, z):
        return self.method.clip.logit_scale * (F.normalize(t, dim=-1) * F.normalize(z, dim=-1)[:, None]).sum(-1)


def plain_head(mlp, x):
    """torch's own batch norm, in the mode that the loop left it in."""
    return mlp.dropout(mlp.bn1_fc(mlp.fc1(x)).relu())


def plain_layers(layers, q, memory):
    for layer in layers:
        q = q + plain_attention(layer.cross_attn, q, memory)
        up, _, dropout, down = layer.mlp
        h = up(layer.norm(q))
        q = q + layer.dropout(down(dropout(h * torch.sigmoid(1.702 * h))))
    return q


class PlainTroika(PlainBranches):
    """The norm of the tokens is applied once more for each branch."""

    def logits(self, images, pairs):
        m = self.method
        tokens = plain_maps(m, images)[-1]
        x, out = tokens[:, 0], []
        features = [x, *(plain_head(m.disentanglers[b], x) for b in ("attribute", "object"))]
        for t, z in zip(plain_texts(m, pairs), features, strict=True):
            tokens = m.patch_norm(tokens)
            moved = t + m.traction_scale * plain_layers(m.traction, t.expand(len(x), -1, -1), tokens)
            out.append(self.cosines(moved, z))
        return out


class PlainMSCI(PlainBranches):
    """All branches' texts in one set of queries, so that masks have the rows they have on the other side."""

    def logits(self, images, pairs):
        m = self.method
        maps = plain_maps(m, images)
        x, texts = maps[-1][:, 0], list(plain_texts(m, pairs))
        features = [x, *(plain_head(m.disentanglers[b], x) for b in ("attribute", "object"))]
        t = torch.cat(texts)
        q, moved = t.expand(len(x), -1, -1), t
        for level in ("low", "high"):
            q = plain_layers(m.stages[level].cross_attn_layers, q, m.stages[level].norm(plain_map(m, level, maps)))
            moved = moved + m.gates[level] * q
        parts = moved.split([len(t) for t in texts], dim=1)
        return [self.cosines(part, z) for part, z in zip(parts, features, strict=True)]


class PlainClusPro(PlainBranches):
    """As released: whole-batch transport, Gumbel draws on the plan, prototypes copied for each image before the second MLPs."""

    def branches(self, images):
        m = self.method
        x = plain_maps(m, images)[-1][:, 0]
        hidden = [plain_head(m.hidden_mlps[b], x) for b in ("attribute", "object")]
        return x, hidden, [plain_head(m.head_mlps[b], g) for b, g in zip(("attribute", "object"), hidden, strict=True)]

    def compare(self, x, z, pairs):
        texts = plain_texts(self.method, pairs)
        scale = self.method.clip.logit_scale
        return [scale * F.normalize(f, dim=-1) @ t.T for f, t in zip((x, *z), texts, strict=True)]

    def logits(self, images, pairs):
        x, _, z = self.branches(images)
        return self.compare(x, z, pairs)

    def loss(self, images, attr, obj, pair, train_pairs):
        m, B = self.method, len(images)
        x, hidden, z = self.branches(images)
        A, K = m.space.num_attributes, m.config.num_prototypes
        labels = self.move(torch.stack(hidden).detach(), attr, obj)
        bank, ring = m.prototypes.bank.detach().clone(), m.prototypes.ring.detach().clone()
        rows = []
        for mlp, own in zip((m.head_mlps["attribute"], m.head_mlps["object"]), (slice(0, A), slice(A, None)), strict=True):
            copies = bank[own].flatten(0, 1).repeat(B, 1)
            rows.append(mlp.bn1_fc(mlp.fc1(copies)).relu().view(B, -1, bank.shape[-1]))
            with torch.no_grad():  # their only effect is on the running statistics
                mlp.bn1_fc(mlp.fc1(ring[own].flatten(0, 2).repeat(B, 1)))
        rows_BMD = torch.cat(rows, dim=1)
        p = m.config.head_dropout
        if p:
            rows_BMD = rows_BMD * self.draws.kept("prototypes", rows_BMD.shape, p) / (1 - p)
        contrast = 0.0
        for i, ids in enumerate((attr, A + obj)):
            cosines = (F.normalize(z[i], dim=-1)[:, None] * F.normalize(rows_BMD, dim=-1)).sum(-1)
            contrast = contrast + F.cross_entropy(cosines / 0.07, ids * K + labels[i])
        self.remember(hidden, attr, A + obj, labels)
        logits = self.compare(x, z, train_pairs)
        weights = m.config.loss_weights
        base = sum(w * F.cross_entropy(v, y) for w, v, y in zip(weights, logits, (pair, attr, obj), strict=True))
        return base + 0.1 * contrast

    @torch.no_grad()
    def move(self, hidden, attr, obj):
        """One primitive after the other; the plans of all come from the prototypes before the step."""
        bank, A, B = self.method.prototypes.bank, self.method.space.num_attributes, len(attr)
        K, noise = bank.shape[1], self.draws.gumbel((2 * B, bank.shape[1]))
        before, labels = bank.clone(), torch.zeros(2, B, dtype=torch.long)
        for side, ids in enumerate((attr, A + obj)):
            g = hidden[side]
            for k in ids.unique().tolist():
                similar = F.normalize(g, dim=1) @ before[k].T
                plan, _ = plain_plan(-similar, similar, g @ g.T)
                mine = ids == k
                labels[side, mine] = plan[mine].argmax(1)
                chosen = (plan + noise[side * B : (side + 1) * B]).argmax(1)
                for j in range(K):
                    if (own := g[mine & (chosen == j)]).numel():
                        bank[k, j] = 0.99 * before[k, j] + 0.01 * F.normalize(own.sum(0), dim=0)
        return labels

    @torch.no_grad()
    def remember(self, hidden, attr, obj, labels):
        p = self.method.prototypes
        for side, ids in enumerate((attr, obj)):
            for g, c, j in zip(hidden[side], ids.tolist(), labels[side].tolist(), strict=True):
                p.ring[c, j, p.ring_place[c, j]] = g
                p.ring_place[c, j] = (p.ring_place[c, j] + 1) % 5


# -- plain evaluation and loop ---------------------------------------------------------------------------------------------


def plain_auc20(scores, true, seen, allowed):
    """The public evaluator's area under the seen/unseen curve, of scores [N, P] in float32."""
    scores = scores.float()

    def right(bias):
        moved = scores.clone()
        moved[:, ~seen] += bias
        moved[:, ~allowed] = -1e10
        return moved.argmax(1) == true

    of_seen, at_end = seen[true], right(1000.0)
    places = torch.nonzero(~of_seen & at_end)[:, 0]
    gaps = scores[places][:, seen].amax(1) - scores[places, true[places]] - 1e-4
    gaps = gaps.sort().values
    hits = [right(float(b)) for b in gaps[:: max(len(gaps) // 20, 1)]] + [at_end]
    points = np.array([[float(h[of_seen].float().mean()), float(h[~of_seen].float().mean())] for h in hits])
    return float(np.trapezoid(points[:, 0], points[:, 1]))


class PublicLoop:
    """Two epochs as a public program runs them.

    ``train_once``: ``model.train()`` stands before the epochs and the evaluation's ``model.eval()`` is never undone (Troika, MSCI).
    ``scheduler_steps``: of StepLR at the end of an epoch; None where there is no scheduler (CSP). ``keep_last``: the last epoch is tested
    (CSP), else the one of the largest validation AUC. ``augmented``: images of an epoch, or None for the plain ones.
    """

    def __init__(self, model, config, train_once=False, scheduler_steps=1, keep_last=False, augmented=None):
        self.model, self.config, self.train_once, self.keep_last = model, config, train_once, keep_last
        parameters = [p for p in model.method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.scheduler_steps, self.augmented = scheduler_steps, augmented
        self.scheduler = (
            torch.optim.lr_scheduler.StepLR(self.optimizer, config.lr_step, config.lr_gamma) if scheduler_steps else None
        )
        self.losses, self.aucs, self.kept_epoch = [], [], 0

    def run(self, train, val, space, batches):
        method, best, draws = self.model.method, 0.0, self.model.draws
        train_pairs, closed = torch.from_numpy(space.train_pairs.copy()), torch.from_numpy(space.closed_pairs.copy())
        method.train()
        for epoch, rows_of_batches in enumerate(batches):
            if not self.train_once:
                method.train()
            images = train["images"] if self.augmented is None else self.augmented(epoch)
            for rows in rows_of_batches:
                draws.step = len(self.losses)
                own = [train[k][rows] for k in ("attr", "obj", "pair")]
                loss = self.model.loss(images[rows], *own, train_pairs)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.losses.append(float(loss.detach()))
            for _ in range(self.scheduler_steps or 0):
                self.scheduler.step()
            method.eval()
            with torch.no_grad():
                scores = self.model.scores(val["images"], closed)
            self.aucs.append(plain_auc20(scores, val["closed"], val["seen"], val["allowed"]))
            if self.keep_last or self.aucs[-1] > best:
                best, self.kept_epoch = self.aucs[-1], epoch + 1
                self.kept = {k: v.detach().clone() for k, v in method.state_dict().items()}
        return self
