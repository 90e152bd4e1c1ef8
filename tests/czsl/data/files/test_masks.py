"""Run-length codes of masks: both forms of COCO, and hostile ones."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from czsl.data.files.masks import MAX_TEXT, decode_mask, decompress, read_mask
from czsl.data.files.regions import read_regions
from czsl.errors import DataError


def lengths_of(mask):
    """The plain code: lengths down the columns, starting with what is outside."""
    out, inside = [0], False
    for value in mask.T.ravel().tolist():
        if value != inside:
            out.append(0)
            inside = value
        out[-1] += 1
    return out


def compressed(lengths):
    """COCO's compressed form, written out: differences to the length two places before, five bits per character."""
    text = ""
    for i, length in enumerate(lengths):
        rest = length - (lengths[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]))
def test_both_forms_give_the_mask(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    lengths = lengths_of(mask)
    for counts in (lengths, compressed(lengths), compressed(lengths).encode()):
        code = read_mask({"size": [height, width], "counts": counts}, "x")
        assert code["counts"] == lengths
        assert np.array_equal(decode_mask(code, (width, height)), mask)


def test_lengths_of_many_groups():
    lengths = [5_000_000, 1, 40_000_000, 33_554_432, 0, 15, 16, 31, 32]
    assert decompress(compressed(lengths), sum(lengths)).tolist() == lengths


# Written by pycocotools for the masks of the test.
CODES = [
    ([40, 50], "e<i0?00000000000000000_`0YOX@0000000000000000000T7"),
    ([3, 2], "06"),
    ([3, 2], "6"),
]


def test_codes_that_pycocotools_wrote():
    box = np.zeros((40, 50), bool)
    box[5:30, 10:20] = True
    box[12:14, 33:44] = True
    for (size, counts), mask in zip(CODES, (box, np.ones((3, 2), bool), np.zeros((3, 2), bool)), strict=True):
        assert np.array_equal(decode_mask(read_mask({"size": size, "counts": counts}, "x"), size[::-1]), mask)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ("0\x00", "character 2"),
        ("6~", "outside of '0' to 'o'"),
        ("ä6", "not ASCII"),
        ("P", "ends within a length"),
        ("oooooooo0", "limit is 7"),
        ("o", "ends within a length"),
        ("O7", "is negative"),
        ("5", "add up to 5"),
        ("", "add up to 0"),
        ("0" * 1000, "1,000 characters"),
        ("ooooooO", "negative"),
    ],
)
def test_hostile_texts_are_refused(counts, why):
    with pytest.raises(DataError, match="cannot be decoded") as error:
        read_mask({"size": [3, 2], "counts": counts}, "file, record 1")
    assert why in error.value.why
    assert "record 1" in error.value.what


def test_a_long_text_is_refused_before_it_is_decoded():
    with pytest.raises(DataError, match="cannot be decoded"):
        read_mask({"size": [10_000, 10_000], "counts": "1" * (MAX_TEXT + 1)}, "x")


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=60))
def test_no_text_does_anything_else_than_decode_or_fail(text):
    try:
        lengths = decompress(text, 12)
    except ValueError:
        return
    assert lengths.sum() == 12
    assert (lengths >= 0).all()


def test_a_region_file_may_hold_compressed_masks(tmp_path):
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    code = {"size": [4, 5], "counts": compressed(lengths_of(mask))}
    content = [{"image": "dog.jpg", "regions": [{"phrase": "a dog", "mask": code}]}]
    (tmp_path / "regions.json").write_text(json.dumps(content))
    table = read_regions(tmp_path / "regions.json")
    assert np.array_equal(table.of("dog.jpg").regions[0].pixels((5, 4)), mask)
    assert table.of("dog.jpg").boxes((5, 4), 10)[0].tolist() == [[2, 1, 4, 3]]
    (tmp_path / "again.json").write_text(json.dumps(table.to_json()))
    assert read_regions(tmp_path / "again.json").to_json() == table.to_json()
