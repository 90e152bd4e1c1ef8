import itertools

import numpy as np
import pytest

from czsl.errors import UsageError
from czsl.retrieval.clusters import balanced_assignment, balanced_kmeans, spherical_kmeans


def planted(sizes, dim=24, noise=0.05, seed=0):
    make = np.random.default_rng(seed)
    modes = make.normal(size=(len(sizes), dim))
    modes /= np.linalg.norm(modes, axis=1, keepdims=True)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    lengths = make.uniform(0.5, 20, size=(len(labels), 1))  # only the direction counts
    return lengths * (modes[labels] + noise * make.normal(size=(len(labels), dim))), labels, modes


@pytest.mark.parametrize("cluster", [spherical_kmeans, balanced_kmeans])
def test_planted_modes_are_found(cluster):
    x, labels, modes = planted([60] * 4)
    centres, found = cluster(x, 4, seed=1)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)
    assert ((centres @ modes.T).max(0) > 0.99).all()
    assert len({(a, b) for a, b in zip(labels, found, strict=True)}) == 4


@pytest.mark.parametrize(("n", "k"), [(103, 5), (5, 5), (7, 5), (12, 1), (90, 2)])
def test_balanced_clusters_differ_by_one_at_most(n, k):
    x, _, _ = planted([n - n // 4, n // 4])
    _, labels = balanced_kmeans(x, k)
    sizes = np.bincount(labels, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert len(labels) == n


def test_same_seed_same_clusters():
    x, _, _ = planted([40, 20, 9], noise=0.3)
    first, second = balanced_kmeans(x, 3, seed=4), balanced_kmeans(x, 3, seed=4)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_balanced_assignment_is_near_the_best():
    """Against all assignments of 7 vectors to 3 clusters of 2 or 3."""
    make = np.random.default_rng(0)
    total, best_total = 0.0, 0.0
    for _ in range(10):
        similarity = make.uniform(-1, 1, size=(7, 3))
        labels = balanced_assignment(similarity)
        everything = (c for c in itertools.product(range(3), repeat=7) if sorted(np.bincount(c, minlength=3)) == [2, 2, 3])
        best = max(sum(similarity[i, j] for i, j in enumerate(c)) for c in everything)
        got = similarity[np.arange(7), labels].sum()
        assert sorted(np.bincount(labels, minlength=3)) == [2, 2, 3]
        assert got <= best + 1e-9
        total, best_total = total + got, best_total + best
    assert total > 0.95 * best_total


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_numbers_of_clusters(k):
    with pytest.raises(UsageError):
        spherical_kmeans(np.eye(3), k)
