"""Candidate sets: their law, their seeds, their file, and what is said of files that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from czsl.compositions import CompositionSpace
from czsl.data.files.ambiguity import distractor_rates, draw, generator, make_partial_labels
from czsl.data.files.partial_labels import (
    KEY,
    PartialLabels,
    padded,
    partial_labels_from_file,
    read_partial_labels,
    write_partial_labels,
)
from czsl.data.table import Record, open_data, write_dataset
from czsl.errors import DataError, UsageError


@pytest.fixture(scope="module")
def data(dataset):
    return open_data(dataset)


@pytest.fixture
def kept(data, tmp_path):
    """A function that writes candidate sets and returns the path."""

    def keep(labels: PartialLabels):
        path = tmp_path / labels.file_name
        write_partial_labels(path, labels, data.split("train").ids)
        return path

    return keep


def true_places(data) -> np.ndarray:
    return data.space.locate(data.split("train").pairs, data.space.train_pairs)


# -- law ---------------------------------------------------------------------------------------------------------------
def sizes_of(rates, force_one=False, count=4000, label=2) -> np.ndarray:
    return np.array([len(draw(generator(7, f"image {i}"), label, rates, force_one, 0.0)) for i in range(count)])


def binomial(n: int, q: float) -> np.ndarray:
    out = np.zeros(n + 1)
    out[0] = 1
    for _ in range(n):
        out[1:], out[0] = out[1:] * (1 - q) + out[:-1] * q, out[0] * (1 - q)
    return out


@pytest.mark.parametrize("q", [0.1, 0.4])
def test_uniform_sets_have_one_and_a_binomial_number_of_distractors(q):
    sizes = sizes_of(distractor_rates("uniform", q, 9)(2))
    law = binomial(8, q)
    seen, expected = np.bincount(sizes, minlength=10)[1:], 4000 * law
    often = expected > 5
    assert chisquare([*seen[often], seen[~often].sum() + 1e-9], [*expected[often], expected[~often].sum() + 1e-9]).pvalue > 1e-3


def test_force_one_moves_the_single_sets_to_two():
    rates = distractor_rates("uniform", 0.1, 9)(2)
    free, forced = sizes_of(rates), sizes_of(rates, force_one=True)
    assert (forced == np.maximum(free, 2)).all()
    assert 0.3 < (free == 1).mean() < 0.55  # (1 - q)^8 = 0.43


def test_pair_confuses_with_the_next_label_alone_in_a_circle():
    rates = distractor_rates("pair", 0.3, 5)
    assert rates(1).tolist() == [0, 0, 0.3, 0, 0]
    assert rates(4).tolist() == [0.3, 0, 0, 0, 0]


def test_semantic_rates_are_the_softmax_of_the_wrong_labels():
    similarity = np.array([[1, 0.9, 0.8, 0.1], [0.9, 1, 0.5, 0.2], [0.8, 0.5, 1, 0.3], [0.1, 0.2, 0.3, 1]])
    rates = distractor_rates("semantic", 0.1, 4, similarity)(0)
    powers = np.exp(np.array([0.9, 0.8, 0.1]) / 0.05)
    np.testing.assert_allclose(rates, [0, *(0.3 * powers / powers.sum())], rtol=1e-12)
    assert distractor_rates("semantic", 1.0, 4, similarity)(0).max() == 1


def test_noise_takes_the_true_label_out_and_never_empties_a_set():
    rates = distractor_rates("uniform", 0.1, 9)(2)
    sets = [draw(generator(0, str(i)), 2, rates, False, 0.3) for i in range(2000)]
    assert min(map(len, sets)) == 1
    assert np.mean([2 not in s for s in sets]) == pytest.approx(0.3, abs=0.04)
    clean = [draw(generator(0, str(i)), 2, rates, False, 0.0) for i in range(2000)]
    same = [set(n) - {2} == set(c) - {2} for n, c in zip(sets, clean, strict=True) if len(c) > 1]
    assert all(same)  # the switch leaves the other draws as they are


# -- sets of a dataset ---------------------------------------------------------------------------------------------------
def test_sets_hold_the_true_label_in_ascending_order_and_touch_training_alone(data):
    labels = make_partial_labels(data, "uniform", 0.2, 3)
    assert len(labels.index) == len(data.split("train"))
    assert (labels.index == true_places(data)[:, None]).any(1).all()
    for row, size in zip(labels.index, labels.sizes, strict=True):
        assert (np.diff(row[:size]) > 0).all()
        assert (row[size:] == -1).all()
    assert labels.index.max() < len(data.space.train_pairs)


def test_a_draw_is_a_function_of_seed_and_name(data, tmp_path):
    whole = make_partial_labels(data, "uniform", 0.2, 3)
    again, other = make_partial_labels(data, "uniform", 0.2, 3), make_partial_labels(data, "uniform", 0.2, 4)
    assert np.array_equal(whole.index, again.index)
    assert not np.array_equal(whole.sizes, other.sizes)
    split = data.split("train")
    rows = list(split.iter_images())[::-3]
    names = [data.space.pair_names(split.pairs[row]) for row, _ in rows]
    records = [Record(split.ids[r], image, *pair, "train") for (r, image), pair in zip(rows, names, strict=True)]
    part = write_part(data.space, records, tmp_path / "part")
    there = make_partial_labels(part, "uniform", 0.2, 3)
    place = {identity: row for row, identity in enumerate(split.ids)}
    for identity, index, size in zip(part.split("train").ids, there.index, there.sizes, strict=True):
        assert index[:size].tolist() == whole.index[place[identity]][: whole.sizes[place[identity]]].tolist()


def write_part(space: CompositionSpace, records, path):
    write_dataset(path, space, records, "part")
    return open_data(path)


def test_wrong_arguments_are_named(data):
    with pytest.raises(UsageError, match="unknown kind 'odd'"):
        make_partial_labels(data, "odd", 0.1, 0)
    with pytest.raises(UsageError, match="the noise rate is 2"):
        make_partial_labels(data, "uniform", 0.1, 0, noise_rate=2)
    with pytest.raises(UsageError, match="need similarities"):
        make_partial_labels(data, "semantic", 0.1, 0)


# -- the file ------------------------------------------------------------------------------------------------------------
def test_a_file_gives_back_what_was_written(data, kept):
    labels = make_partial_labels(data, "uniform", 0.1, 5, force_one=True)
    path = kept(labels)
    assert path.name == "candidates-uniform-0.1-5.parquet"
    read = read_partial_labels(path, data)
    assert np.array_equal(read.index, labels.index)
    assert read.origin == labels.origin
    assert len(read.sha256) == 64
    table = pq.read_table(path)
    assert table.column_names == ["id", "candidates"]  # and no true label
    assert json.loads(table.schema.metadata[KEY])["data"] == data.sha256


def test_a_file_of_other_data_is_refused(data, kept, tmp_path):
    path = kept(make_partial_labels(data, "uniform", 0.1, 0))
    split = data.split("train")
    records = [Record(split.ids[r], image, *data.space.pair_names(split.pairs[r]), "train") for r, image in split.iter_images()]
    with pytest.raises(DataError, match=r"made for other data \(SHA-256\)"):
        read_partial_labels(path, write_part(data.space, records[1:], tmp_path / "part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: np.where(np.arange(len(index))[:, None] == 4, -1, index), "1 training images have no candidate labels"),
        (lambda index: np.where(index == index.max(), 10_000, index), "outside the label space"),
        (lambda index: np.where(np.arange(index.shape[1]) == 0, index, np.where(index >= 0, index[:, :1], -1)), "twice"),
    ],
)
def test_sets_that_cannot_be_are_refused(data, kept, change, message):
    labels = make_partial_labels(data, "uniform", 0.1, 0, force_one=True)
    with pytest.raises(DataError, match=message) as caught:
        read_partial_labels(kept(PartialLabels(change(labels.index), labels.origin)), data)
    assert caught.value.fix


def test_what_is_no_such_file_is_told(data, dataset, tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_partial_labels(tmp_path / "none.parquet", data)
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 hello PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_partial_labels(tmp_path / "odd.parquet", data)
    with pytest.raises(DataError, match="is not a partial-label file"):
        read_partial_labels(dataset / "train-00000.parquet", data)


# -- a user's own sets -----------------------------------------------------------------------------------------------------
@pytest.fixture
def named(data):
    """Candidate sets as a user writes them: the true pair, and another one as a list."""
    split, pairs = data.split("train"), data.space.train_pairs
    texts = [data.space.pair_name(pair) for pair in split.pairs]
    other = list(data.space.pair_names(pairs[0]))
    return {i: [text, other] for i, text in zip(split.ids, texts, strict=True)}


def test_json_and_csv_say_the_same(data, named, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(named))
    lines = [
        [i, *(label if isinstance(label, list) else data.space.pair_names(pair))]
        for (i, labels), pair in zip(named.items(), data.split("train").pairs, strict=True)
        for label in labels
    ]
    (tmp_path / "c.csv").write_text("\n".join(",".join(line) for line in [["image", "attr", "obj"], *lines]))
    one, two = (partial_labels_from_file(tmp_path / name, data) for name in ("c.json", "c.csv"))
    assert np.array_equal(one.index, two.index)
    assert one.file_name == "candidates-file.parquet"
    expected = padded([sorted({c, 0}) for c in true_places(data).tolist()])
    assert np.array_equal(one.index, expected)


def test_files_that_do_not_fit_are_told(data, named, tmp_path):
    first = next(iter(named))

    def says(content, message, name="c.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError, match=message) as caught:
            partial_labels_from_file(tmp_path / name, data)
        return caught.value

    known = data.space.pair_name(data.space.train_pairs[0])
    assert f"did you mean {known!r}" in says({**named, first: [known + "s"]}, "is not a seen pair").why
    unseen = data.space.closed_pairs[~data.space.seen_mask(data.space.closed_pairs)][0]
    says({**named, first: [data.space.pair_name(unseen)]}, "is not a seen pair")
    says({**named, first: []}, "1 training images have no candidate labels")
    assert "did you mean" in says({**named, first + "x": [known]}, "1 images that training does not have").why
    says({**named, first: "wet dog"}, "holds no candidate sets")
    says("[", "is not JSON")
    says("image,label\nx,y\n", "lacks a column", "c.csv")
    with pytest.raises(DataError, match="cannot read"):
        partial_labels_from_file(tmp_path / "none.json", data)
