import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from czsl.errors import DataError
from czsl.retrieval import search, topk
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions


def brute_force(vectors_PD, pairs_P2, queries_BD, terms=None, k=10, allowed=None, probability=None, combine="product", bias=None):
    """Every score in float64, every pair sorted: scores and places."""
    scores = queries_BD.astype(np.float32).astype(np.float64) @ vectors_PD.astype(np.float64).T
    if probability is not None:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores *= probability / scores.sum(axis=1, keepdims=True)
    if terms is not None:
        alpha, beta = (term.astype(np.float32).astype(np.float64) for term in terms)
        alpha, beta = alpha[:, pairs_P2[:, 0]], beta[:, pairs_P2[:, 1]]
        scores += alpha + beta if combine == "sum" else alpha * beta
    if bias is not None:
        scores[:, bias[1]] += bias[0]
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
        k = min(k, int(allowed.sum()))
    order = np.lexsort((np.broadcast_to(np.arange(len(pairs_P2)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def world(attributes=23, objects=31, dim=24, images=17, clusters=None, share=1.0, seed=0):
    """Compositional embeddings near ``clusters`` modes, queries, and peaked primitive terms."""
    make = np.random.default_rng(seed)
    pairs = np.stack(np.divmod(np.arange(attributes * objects), objects), axis=1)
    pairs = make.permutation(pairs)[: max(1, int(share * len(pairs)))]
    parts = make.normal(size=(attributes, dim))[pairs[:, 0]] + make.normal(size=(objects, dim))[pairs[:, 1]]
    if clusters:
        modes = 5 * make.normal(size=(clusters, dim))
        parts = modes[pairs[:, 1] % clusters] + 0.1 * parts
    vectors = (parts / np.linalg.norm(parts, axis=1, keepdims=True)).astype(np.float32)
    queries = (20 * vectors[make.integers(len(pairs), size=images)] + make.normal(size=(images, dim))).astype(np.float32)
    alpha, beta = (np.exp(3 * make.normal(size=(images, n))).astype(np.float32) for n in (attributes, objects))
    return vectors, pairs, queries, (alpha / alpha.sum(1, keepdims=True), 4 * beta / beta.sum(1, keepdims=True))


def assert_equal(result, oracle, exact=True):
    np.testing.assert_array_equal(result.places, oracle[1])
    np.testing.assert_allclose(result.scores, oracle[0], rtol=1e-12, atol=1e-12)
    assert result.exact is exact
    assert ((result.visited >= 0) & (result.visited <= 1)).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("clusters", [None, 6])
@pytest.mark.parametrize("with_terms", [False, True])
@pytest.mark.parametrize("weight", [1.0, 1000.0])
def test_equal_to_brute_force(kind, clusters, with_terms, weight):
    vectors, pairs, queries, (alpha, beta) = world(clusters=clusters, share=0.8)
    terms = (weight * alpha, beta) if with_terms else None
    index = CompositionIndex.build(vectors, pairs, kind)
    for k in (1, 10, 40):
        result = top_compositions(index, queries, *(terms or ()), k=k)
        assert_equal(result, brute_force(vectors, pairs, queries, terms, k))
        assert kind == "ivf" or (result.visited == 1).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("clusters", [None, 6])
@pytest.mark.parametrize("weight", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("with_terms", [False, True])
def test_probabilities_of_compositions_equal_brute_force(kind, clusters, weight, with_terms, monkeypatch):
    monkeypatch.setattr(search, "DENSE_ROWS", 100)
    vectors, pairs, queries, terms = world(clusters=clusters, share=0.8)
    terms, allowed = (terms if with_terms else None), np.random.default_rng(0).random(len(pairs)) < 0.7
    index = CompositionIndex.build(vectors, pairs, kind)
    for k, some in ((1, None), (10, None), (10, allowed)):
        result = top_compositions(index, queries, *(terms or ()), k=k, allowed=some, probability=weight)
        assert_equal(result, brute_force(vectors, pairs, queries, terms, k, some, weight))
    for wrong in ({"probability": 0.0}, {"probability": -1.0}, {"probability": 1.0, "probes": 2}):
        with pytest.raises(ValueError):
            top_compositions(index, queries, **wrong)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("clusters", [None, 6])
@pytest.mark.parametrize("sizes", [(23, 31), (5, 40)])  # with five attributes all of them are tried first
@pytest.mark.parametrize("weight", [0.0, 1.0, 1000.0])
def test_sums_of_primitive_terms_equal_brute_force(kind, clusters, sizes, weight):
    vectors, pairs, queries, (alpha, beta) = world(*sizes, clusters=clusters, share=0.8)
    vectors = (vectors * np.random.default_rng(4).uniform(0.2, 3, size=(len(vectors), 1))).astype(np.float32)  # of any length
    terms, allowed = (weight * alpha, beta), np.random.default_rng(0).random(len(pairs)) < 0.7
    index = CompositionIndex.build(vectors, pairs, kind)
    for k, some in ((1, None), (10, None), (10, allowed), (60, None)):
        result = top_compositions(index, queries, *terms, k=k, allowed=some, combine="sum")
        assert_equal(result, brute_force(vectors, pairs, queries, terms, k, some, combine="sum"))
    result = top_compositions(index, queries, *terms, k=10, probability=2.0, combine="sum")
    assert_equal(result, brute_force(vectors, pairs, queries, terms, 10, None, 2.0, combine="sum"))
    with pytest.raises(ValueError, match="combine='mean'"):
        top_compositions(index, queries, *terms, combine="mean")


def test_the_whole_scan_is_dense_where_the_index_settles_nothing():
    """Primitive terms far above the inner products, and more good primitives than are tried first."""
    vectors, pairs, queries, _ = world(attributes=60, objects=80)
    make = np.random.default_rng(3)
    terms = [make.uniform(900, 1000, size=(len(queries), n)) for n in (60, 80)]
    for kind in ("flat", "ivf"):
        assert_equal(
            top_compositions(CompositionIndex.build(vectors, pairs, kind), queries, *terms),
            brute_force(vectors, pairs, queries, terms),
        )


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("with_terms", [False, True])
def test_ties_go_to_the_lowest_place(kind, with_terms):
    """Small whole numbers: scores are exact, and most of them tie."""
    make = np.random.default_rng(5)
    vectors = make.integers(-1, 2, size=(600, 4)).astype(np.float32)
    pairs = make.permutation(np.stack(np.divmod(np.arange(600), 30), axis=1))
    queries = make.integers(-2, 3, size=(50, 4)).astype(np.float32)
    terms = [make.integers(0, 3, size=(50, n)).astype(np.float32) for n in (20, 30)] if with_terms else None
    result = top_compositions(CompositionIndex.build(vectors, pairs, kind), queries, *(terms or ()), k=25)
    scores, places = brute_force(vectors, pairs, queries, terms, 25)
    np.testing.assert_array_equal(result.places, places)
    np.testing.assert_array_equal(result.scores, scores)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("with_terms", [False, True])
def test_differences_below_float32(kind, with_terms, monkeypatch):
    """Scores that only float64 can order: float32 products misplace them, the slack must not lose one."""
    make = np.random.default_rng(2)
    pairs = np.stack(np.divmod(np.arange(3000), 60), axis=1)
    vectors = (make.normal(size=64) + 1e-7 * make.normal(size=(3000, 64))).astype(np.float32)
    queries = make.normal(size=(20, 64)).astype(np.float32)
    terms = [1 + 1e-7 * make.integers(0, 3, size=(20, n)) for n in (50, 60)] if with_terms else None
    oracle = brute_force(vectors, pairs, queries, terms)
    rounded = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    assert with_terms or (rounded != oracle[1]).any()
    index = CompositionIndex.build(vectors, pairs, kind)
    assert_equal(top_compositions(index, queries, *(terms or ())), oracle)
    monkeypatch.setattr(search, "BLOCK", 200)
    assert_equal(top_compositions(index, queries, *(terms or ())), oracle)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_all_embeddings_equal(kind):
    vectors, pairs = np.ones((500, 8), np.float32), np.stack(np.divmod(np.arange(500), 25), axis=1)
    result = top_compositions(CompositionIndex.build(vectors, pairs, kind), np.ones((3, 8), np.float32), k=7)
    assert (result.places == np.arange(7)).all()
    assert (result.scores == 8).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.5])
def test_pairs_that_are_not_allowed(kind, share):
    vectors, pairs, queries, terms = world()
    allowed = np.random.default_rng(1).random(len(pairs)) < share
    result = top_compositions(CompositionIndex.build(vectors, pairs, kind), queries, *terms, allowed=allowed)
    assert_equal(result, brute_force(vectors, pairs, queries, terms, allowed=allowed))
    assert result.places.shape == (len(queries), min(10, allowed.sum()))
    assert result.visited.max() <= max(allowed.mean() * 1.5, 1e-9)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_more_asked_for_than_there_are(kind):
    vectors, pairs, queries, terms = world(attributes=3, objects=4)
    result = top_compositions(CompositionIndex.build(vectors, pairs, kind), queries, *terms, k=99)
    assert_equal(result, brute_force(vectors, pairs, queries, terms, 99))
    assert result.places.shape == (len(queries), 12)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_one_pair_and_no_image(kind):
    index = CompositionIndex.build(np.ones((1, 3), np.float32), np.array([[2, 5]]), kind)
    result = top_compositions(index, np.ones((2, 3), np.float32), np.ones((2, 3)), np.full((2, 6), 0.5))
    assert result.places.tolist() == [[0], [0]]
    assert result.scores.tolist() == [[3.5], [3.5]]
    nobody = top_compositions(index, np.ones((0, 3), np.float32))
    assert nobody.places.shape == nobody.scores.shape == (0, 1)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("probes", [None, 3])
def test_batches_do_not_matter(kind, probes, monkeypatch):
    vectors, pairs, queries, terms = world(images=40, clusters=5)
    index = CompositionIndex.build(vectors, pairs, kind)
    probes = probes if kind == "ivf" else None
    together = top_compositions(index, queries, *terms, probes=probes)
    for i in range(len(queries)):
        alone = top_compositions(index, queries[i : i + 1], *(term[i : i + 1] for term in terms), probes=probes)
        np.testing.assert_array_equal(alone.places[0], together.places[i])
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])
    for name, size in (("IMAGES", 7), ("BLOCK", 50), ("DENSE_ROWS", 33), ("DENSE_IMAGES", 2)):
        monkeypatch.setattr(topk if name == "IMAGES" else search, name, size)
    cut = top_compositions(index, queries, *terms, probes=probes)
    np.testing.assert_array_equal(cut.places, together.places)
    np.testing.assert_array_equal(cut.scores, together.scores)


def test_probes_are_approximate_and_say_so():
    vectors, pairs, queries, terms = world(attributes=40, objects=50, clusters=20)
    index = CompositionIndex.build(vectors, pairs, "ivf", cells=40)
    _, places = brute_force(vectors, pairs, queries, terms)
    recall, visited = [], []
    for probes in (1, 4, index.cells):
        result = top_compositions(index, queries, *terms, probes=probes)
        assert result.exact is (probes == index.cells)
        recall.append(np.mean([len(set(got) & set(want)) for got, want in zip(result.places, places, strict=True)]))
        visited.append(result.visited.mean())
    assert recall == sorted(recall)
    assert recall[-1] == 10
    assert visited[0] < visited[1] < visited[2] == 1


def test_probes_go_on_until_there_are_enough():
    vectors, pairs, queries, _ = world(clusters=20)
    allowed = np.arange(len(pairs)) % 40 == 0
    index = CompositionIndex.build(vectors, pairs, "ivf", cells=60)
    result = top_compositions(index, queries, k=15, allowed=allowed, probes=1)
    assert result.places.shape == (len(queries), 15)
    assert allowed[result.places].all()
    assert not result.exact


class StandIn:
    """A CPU index in the place of the one on the GPUs."""

    def __init__(self, index):
        import faiss

        self.flat, self.calls = faiss.IndexFlatIP(index.dim), 0
        self.flat.add(index.vectors)

    def search(self, queries, k):
        self.calls += 1
        return self.flat.search(queries, k)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("weight", [1.0, 1000.0])
def test_the_gpu_path(kind, weight):
    vectors, pairs, queries, (alpha, beta) = world(attributes=40, objects=50)
    allowed = np.random.default_rng(1).random(len(pairs)) < 0.5
    index = CompositionIndex.build(vectors, pairs, kind)
    index.__dict__["on_gpu"] = StandIn(index)
    result = top_compositions(index, queries, weight * alpha, beta, allowed=allowed)
    assert_equal(result, brute_force(vectors, pairs, queries, (weight * alpha, beta), allowed=allowed))
    assert index.on_gpu.calls == 1
    assert (result.visited == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_world_equals_brute_force(data):
    seed = data.draw(st.integers(0, 2**20))
    make = np.random.default_rng(seed)
    A, O, D, B = (data.draw(st.integers(1, most)) for most in (14, 14, 9, 5))
    pairs = make.permutation(np.stack(np.divmod(np.arange(A * O), O), axis=1))[: make.integers(1, A * O + 1)]
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    vectors = (scale * make.normal(size=(len(pairs), D))).astype(np.float32)
    if data.draw(st.booleans()):  # whole numbers tie, exactly
        vectors = np.round(vectors / scale)
    queries = np.round(4 * make.normal(size=(B, D))).astype(np.float32)
    terms = None
    if data.draw(st.booleans()):
        terms = [np.round(2.0 ** data.draw(st.integers(-2, 6)) * make.random((B, n))).astype(np.float32) for n in (A, O)]
    allowed = make.random(len(pairs)) < data.draw(st.sampled_from([0.3, 1.0]))
    kind, k = data.draw(st.sampled_from(["flat", "ivf"])), data.draw(st.integers(1, 12))
    result = top_compositions(
        CompositionIndex.build(vectors, pairs, kind, seed=seed), queries, *(terms or ()), k=k, allowed=allowed
    )
    scores, places = brute_force(vectors, pairs, queries, terms, k, allowed)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_array_equal(result.places, places)


def flat_index():
    vectors, pairs, queries, terms = world(attributes=4, objects=5, dim=6, images=2)
    return CompositionIndex.build(vectors, pairs), queries, terms


@pytest.mark.parametrize(
    "change",
    [
        {"queries_BD": np.ones((2, 5), np.float32)},
        {"queries_BD": np.ones(6, np.float32)},
        {"queries_BD": np.ones((2, 6), int)},
        {"object_BO": None},
        {"attribute_BA": np.ones((3, 4))},
        {"attribute_BA": np.ones((2, 3))},
        {"k": 0},
        {"probes": 0},
        {"probes": 2},
        {"allowed": np.ones(19, bool)},
        {"allowed": np.arange(20)},
    ],
)
def test_arguments_that_do_not_fit(change):
    index, queries, (alpha, beta) = flat_index()
    arguments = {"queries_BD": queries, "attribute_BA": alpha, "object_BO": beta} | change
    with pytest.raises(ValueError):
        top_compositions(index, **arguments)


@pytest.mark.parametrize(
    ("name", "value"), [("queries_BD", np.nan), ("attribute_BA", np.inf), ("object_BO", -0.1), ("queries_BD", 1e35)]
)
def test_values_that_have_no_order(name, value):
    index, queries, (alpha, beta) = flat_index()
    arguments = {"queries_BD": queries.copy(), "attribute_BA": alpha.copy(), "object_BO": beta.copy()}
    arguments[name][1, 2] = value
    with pytest.raises(DataError, match="image 1"):
        top_compositions(index, **arguments)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("value", [-3.0, 0.5, 4.0, 1e4])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97, 1.0])
@pytest.mark.parametrize(("with_terms", "probability"), [(False, None), (True, None), (True, 0.7)])
def test_a_bias_on_marked_pairs_keeps_the_answer_exact(kind, value, share, with_terms, probability, monkeypatch):
    monkeypatch.setattr(search, "DENSE_ROWS", 100)
    vectors, pairs, queries, terms = world(clusters=6, share=0.8)
    make = np.random.default_rng(3)
    bias, terms = (value, make.random(len(pairs)) < share), terms if with_terms else None
    index = CompositionIndex.build(vectors, pairs, kind)
    for k, allowed in ((1, None), (10, None), (10, make.random(len(pairs)) < 0.9), (10, make.random(len(pairs)) < 0.01)):
        result = top_compositions(index, queries, *(terms or ()), k=k, allowed=allowed, probability=probability, bias=bias)
        oracle = brute_force(vectors, pairs, queries, terms, k, allowed, probability, bias=bias)
        assert_equal(result, oracle)
        np.testing.assert_allclose(result.plain, oracle[0] - value * bias[1][oracle[1]], rtol=1e-9, atol=1e-9)


def test_a_bias_that_cannot_be_added_is_refused():
    vectors, pairs, queries, _ = world()
    index = CompositionIndex.build(vectors, pairs)
    for bias in ((float("nan"), np.ones(len(pairs), bool)), (1.0, np.ones(3, bool)), (1.0, np.ones(len(pairs)))):
        with pytest.raises(ValueError, match="a bias of"):
            top_compositions(index, queries, bias=bias)
