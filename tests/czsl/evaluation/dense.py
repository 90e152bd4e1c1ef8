"""Plain evaluators that hold all scores, as oracles: every bias is tried, every rule is written down as it is said."""

from __future__ import annotations

import numpy as np


def top_k(scores, k):
    """Columns of the k largest scores of each row, the first of equal ones first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def predict(scores, seen, allowed, bias, k, dtype):
    biased = scores.astype(dtype)
    biased[:, ~seen] += dtype(bias)
    biased[:, ~allowed] = -1e10
    return top_k(biased, min(k, int(allowed.sum())))


def accuracies(scores, seen, allowed, true, bias, k, dtype):
    right = (predict(scores, seen, allowed, bias, k, dtype) == true[:, None]).any(axis=1)
    return right[seen[true]], right[~seen[true]]


def exact(scores, seen, allowed, true, k=1):
    """The curve by brute force: predictions of the whole matrix between any two biases where anything can change."""
    scores = scores.astype(np.float64)
    gaps = scores[:, allowed & seen][:, :, None] - scores[:, allowed & ~seen][:, None, :]
    gaps = np.unique(gaps)
    biases = np.concatenate([[-1e6], (gaps[1:] + gaps[:-1]) / 2, [1e6]])
    points = [accuracies(scores, seen, allowed, true, bias, k, np.float64) for bias in biases]
    s, u = (np.array([p[i].mean() for p in points]) for i in (0, 1))
    hm = np.array([2 * a * b / (a + b) if a + b else 0.0 for a, b in zip(s, u, strict=True)])
    return {"auc": np.trapezoid(s, u) + u[0] * s[0], "hm": hm.max(), "seen": s.max(), "unseen": u.max()}, (biases, hm)


def reference(scores, seen, allowed, true, pairs, labels, k=1):
    """The evaluator that the field shares, step by step as specified: float32, 20 bins, margin 1e-4, right end +1000."""
    scores = scores.astype(np.float32)
    plain = pairs[predict(scores, seen, allowed, 0.0, k, np.float32)]
    attr_acc, obj_acc = (plain == labels[:, None, :]).any(axis=1).mean(axis=0)
    seen_right, unseen_right = accuracies(scores, seen, allowed, true, 1000.0, k, np.float32)
    images = np.flatnonzero(~seen[true])[unseen_right]
    highest_seen = -np.sort(-scores[images][:, seen], axis=1)[:, k - 1]
    difference = np.sort(highest_seen - scores[images, true[images]] - np.float32(1e-4))
    biases = difference[:: max(len(difference) // 20, 1)]
    curve = [accuracies(scores, seen, allowed, true, bias, k, np.float32) for bias in biases]
    curve.append((seen_right, unseen_right))
    s, u = (np.array([p[i].mean(dtype=np.float32) for p in curve], np.float64) for i in (0, 1))
    hm = np.array([2 * a * b / (a + b) if a + b else 0.0 for a, b in zip(s, u, strict=True)])
    best = int(hm.argmax())
    return {
        "auc_ref20": np.trapezoid(s, u),
        "hm_ref20": hm[best],
        "seen_ref20": s.max(),
        "unseen_ref20": u.max(),
        "bias_ref20": float(np.append(biases, np.float32(1000))[best]),
        "hm_seen_ref20": s[best],
        "hm_unseen_ref20": u[best],
        "attr_acc": attr_acc,
        "obj_acc": obj_acc,
    }


def apply_threshold(scores, seen, feasibility, threshold, rule):
    """Scores [N, P] under a threshold, and which columns stay allowed."""
    feasible = np.where(seen, np.float32(0), feasibility) >= np.float32(threshold)
    if rule == "reference":
        return scores * (feasible.astype(np.float32) + seen), np.ones(len(seen), bool)
    return scores, feasible | seen


def feasibility(similarity_attr, similarity_obj, space):
    """The double loop over pairs."""
    seen = {tuple(pair) for pair in space.train_pairs.tolist()}
    result = []
    for a in range(space.num_attributes):
        for o in range(space.num_objects):
            if (a, o) in seen:
                result.append(0.0)
                continue
            obj = max([similarity_obj[o, q] for q in range(space.num_objects) if q != o and (a, q) in seen], default=-1)
            attr = max([similarity_attr[a, b] for b in range(space.num_attributes) if b != a and (b, o) in seen], default=-1)
            result.append((max(obj, -1) + max(attr, -1)) / 2)
    return np.array(result)
