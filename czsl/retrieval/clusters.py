"""Clusters of unit vectors of nearly equal size.

Letters: N vectors, K clusters, D width. FAISS is imported on use; it must not be called in a forked child (its OpenMP hangs there).
"""

from __future__ import annotations

import numpy as np

from czsl.errors import UsageError

ROUNDS = 10
TEMPERATURE = 0.02
PRICE_ITERATIONS = 50


def unit_rows(x_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; zero rows stay zero."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def spherical_kmeans(x_ND: np.ndarray, k: int, seed: int = 0, iterations: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """K-means by cosine (FAISS).

    Parameters
    ----------
    x_ND : float array
        Vectors of any length; their direction counts.
    k : int
        Number of clusters, at most N.
    seed : int
        Seed of the initial centres.
    iterations : int

    Returns
    -------
    centres : float32 [K, D], unit rows
    labels : int64 [N]

    Raises
    ------
    UsageError
        More clusters than vectors.
    """
    x_ND = unit_rows(x_ND)
    if not 1 <= k <= len(x_ND):
        raise UsageError(f"{k} clusters of {len(x_ND)} vectors", "each cluster needs a vector", "ask for fewer clusters")
    import faiss

    # All vectors count: FAISS by default samples 256 a centre and warns below 39.
    kmeans = faiss.Kmeans(
        x_ND.shape[1],
        k,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(x_ND),
    )
    kmeans.train(np.ascontiguousarray(x_ND))
    centres_KD = unit_rows(np.asarray(kmeans.centroids).reshape(k, -1))
    return centres_KD, (x_ND @ centres_KD.T).argmax(1)


def balanced_kmeans(x_ND: np.ndarray, k: int, seed: int = 0, rounds: int = ROUNDS) -> tuple[np.ndarray, np.ndarray]:
    """K-means by cosine whose clusters differ in size by one vector at most.

    Starts from :func:`spherical_kmeans`, then alternates balanced assignment and centres until no label changes.

    Parameters, returns and errors are those of :func:`spherical_kmeans`; ``rounds`` bounds the alternation.
    """
    centres_KD, labels_N = spherical_kmeans(x_ND, k, seed)
    x_ND = unit_rows(x_ND)
    for _ in range(rounds):
        new_N = balanced_assignment(x_ND @ centres_KD.T)
        if (new_N == labels_N).all():
            break
        labels_N = new_N
        sums_KD = np.zeros_like(centres_KD)
        np.add.at(sums_KD, labels_N, x_ND)
        centres_KD = unit_rows(sums_KD)
    return centres_KD, labels_N


def balanced_assignment(similarity_NK: np.ndarray) -> np.ndarray:
    """One cluster for each vector, at most ceil(N / K) vectors and at least floor(N / K) a cluster; int64 [N].

    Prices of the clusters come from entropic transport; vectors then choose in the order of how much their best cluster at these
    prices is worth to them above the second best. Near to the largest total similarity, not always there.
    """
    N, K = similarity_NK.shape
    if K == 1:
        return np.zeros(N, dtype=np.int64)
    gain_NK = similarity_NK.astype(np.float64) - _prices(similarity_NK)
    ranked_NK = np.sort(gain_NK, axis=1)
    order_N = np.argsort(ranked_NK[:, -2] - ranked_NK[:, -1], kind="stable")
    room_K, extra = np.full(K, N // K), N % K  # number of clusters that take one vector more
    labels_N = np.empty(N, dtype=np.int64)
    choices_NK = np.argsort(-gain_NK, axis=1, kind="stable")
    for n in order_N:
        for j in choices_NK[n]:
            if room_K[j] > 0 or (room_K[j] == 0 and extra > 0):
                extra -= room_K[j] == 0
                room_K[j] -= 1
                labels_N[n] = j
                break
    return labels_N


def _prices(similarity_NK: np.ndarray) -> np.ndarray:
    """Price of each cluster [K] at which equally many vectors want each (potentials of entropic transport)."""
    logits = similarity_NK.astype(np.float64) / TEMPERATURE
    N, K = logits.shape
    price_K = np.zeros(K)
    for _ in range(PRICE_ITERATIONS):
        share_NK = np.exp(logits - price_K - (logits - price_K).max(axis=1, keepdims=True))
        share_NK /= share_NK.sum(axis=1, keepdims=True)
        change_K = np.log(np.maximum(share_NK.sum(axis=0), 1e-300) * K / N)
        price_K += change_K
        if np.abs(change_K).max() < 1e-4:
            break
    return price_K * TEMPERATURE


def silhouette(x_ND: np.ndarray, centres_KD: np.ndarray) -> float:
    """Silhouette of clusters, from -1 to 1: mean of (b - a) / max(a, b), a the cosine distance of a vector to its nearest
    centre and b to the second nearest (the simplified silhouette, Hruschka et al. 2004).

    Parameters
    ----------
    x_ND : float array
    centres_KD : float array
        At least two centres.

    Raises
    ------
    ValueError
        Fewer than two centres.
    """
    if len(centres_KD) < 2:
        raise ValueError("a silhouette needs at least two clusters")
    distance_NK = np.sort(1 - unit_rows(x_ND) @ unit_rows(centres_KD).T, axis=1)
    near_N, second_N = np.maximum(distance_NK[:, 0], 0), np.maximum(distance_NK[:, 1], 1e-12)
    return float(np.mean((second_N - near_N) / second_N))
