"""What prototypes stand for, against loops; and the number of clusters that data fall into."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from czsl.retrieval.clusters import balanced_kmeans, silhouette
from methods.building import build
from methods.clus_pro.gallery import count_scores, gallery

N = 90


@pytest.fixture
def trained(small_space, small_clip):
    torch.manual_seed(0)
    method = build("clusPro", small_space, small_clip, {"adapter_dim": 0, "num_prototypes": 3}).eval()
    method.prototypes.bank.copy_(F.normalize(torch.randn_like(method.prototypes.bank), dim=-1))
    rng = np.random.default_rng(0)
    pairs = small_space.train_pairs[rng.integers(len(small_space.train_pairs), size=N)]
    return method, torch.randn(N, small_clip.dim), pairs[:, 0].copy(), pairs[:, 1].copy()


def test_every_primitive_has_its_nearest_images_and_sizes(trained):
    method, features, attr, obj = trained
    entries, health = gallery(method, features, attr, obj, shown=4)
    with torch.no_grad():
        hidden = method.clustered_features(features)
    assert {(e.kind, e.name) for e in entries} == {
        *(("attribute", method.space.attributes[a]) for a in np.unique(attr)),
        *(("object", method.space.objects[o]) for o in np.unique(obj)),
    }
    for e in entries:
        side, labels, names = (0, attr, method.space.attributes) if e.kind == "attribute" else (1, obj, method.space.objects)
        index = names.index(e.name)
        bank = method.prototypes.bank[index + side * method.space.num_attributes]
        own = [i for i in range(N) if labels[i] == index]
        cosines = {i: [float(F.cosine_similarity(hidden[side, i], p, dim=0)) for p in bank] for i in own}
        assert e.images == len(own) == sum(e.sizes)
        for k in range(3):
            assert e.sizes[k] == sum(max(range(3), key=c.__getitem__) == k for c in cosines.values())
            wanted = sorted(own, key=lambda i: -cosines[i][k])[:4]
            assert e.nearest[k] == wanted
            assert e.cosines[k] == pytest.approx([cosines[i][k] for i in wanted], abs=1e-5)
    assert "effective_k" in health or health == {"primitives": 0.0}


def blobs(k, n=60, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:k]
    return centres[np.arange(n) % k] + 0.02 * rng.normal(size=(n, 16))


@pytest.mark.parametrize("true", [2, 3, 5])
def test_the_silhouette_is_clearest_at_the_number_of_clusters_there_are(true):
    x = blobs(true)
    scores = {k: silhouette(x, balanced_kmeans(x, k)[0]) for k in range(2, 8)}
    assert max(scores, key=scores.get) == true


def test_the_silhouette_is_that_of_a_loop():
    x, centres = np.random.default_rng(1).normal(size=(20, 6)), np.random.default_rng(2).normal(size=(4, 6))
    values = []
    for row in x:
        far = sorted(1 - row @ c / np.linalg.norm(row) / np.linalg.norm(c) for c in centres)
        values.append((far[1] - far[0]) / max(far[:2]))
    assert silhouette(x, centres) == pytest.approx(np.mean(values), abs=1e-6)
    with pytest.raises(ValueError, match="two clusters"):
        silhouette(x, centres[:1])


def test_counts_are_judged_over_primitives_with_enough_images(trained):
    method, features, _, _ = trained
    one = np.zeros(N, np.int64)
    scores = count_scores(method, features, one, one, range(2, 5))
    assert set(scores) == {2, 3, 4}
    assert count_scores(method, features[:10], one[:10], one[:10], range(2, 5)) == {}
