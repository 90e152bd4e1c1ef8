"""Descriptor files: their three forms, what is refused, and how names find their phrases."""

import json

import pytest

from czsl.data.files.descriptors import check_descriptors, match_descriptors, read_descriptors
from czsl.errors import DataError


def written(tmp_path, content):
    path = tmp_path / "descriptors.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_parts_and_the_plain_form_are_read(tmp_path):
    parts = {"attributes": {"wet": ["water  drops ", ""]}, "objects": {"dog": []}}
    assert read_descriptors(written(tmp_path, parts)) == {"attributes": {"wet": ["water drops"]}, "objects": {"dog": []}}
    assert read_descriptors(written(tmp_path, {"lemur": ["four limbs"]})) == {"classes": {"lemur": ["four limbs"]}}
    assert read_descriptors(written(tmp_path, {"classes": {"lemur": ["four limbs"]}})) == {"classes": {"lemur": ["four limbs"]}}
    assert read_descriptors(written(tmp_path, {})) == {}
    plain_name = {"objects": ["things"], "lemur": ["four limbs"]}  # a class that is called like a part
    assert read_descriptors(written(tmp_path, plain_name)) == {"classes": plain_name}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '"wet"',
        '{"a": ["x"], "a": ["y"]}',
        '{"attributes": {"a": ["x"], "a": []}}',
        {"attributes": {"wet": "drops"}},
        {"attributes": {"wet": ["drops", 3]}},
        {"attributes": {"wet": None}},
        {"attribute": {"wet": ["drops"]}},
        {"attributes": {"wet": ["drops"]}, "objects": []},
        {"lemur": {"limbs": ["four"]}},
        {"lemur": ["x" * 2000]},
        "[" * 100_000,
    ],
)
def test_anything_else_is_refused_with_a_reason(tmp_path, content):
    with pytest.raises(DataError) as error:
        read_descriptors(written(tmp_path, content))
    assert error.value.why
    assert error.value.fix


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            read_descriptors(path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="it looks like UTF-16"):
        read_descriptors(tmp_path / "x.json")


def test_a_checked_form_stays_as_it_is():
    full = {"attributes": {"wet": ["drops"]}, "classes": {"lemur": []}}
    assert check_descriptors(check_descriptors(full)) == full
    assert check_descriptors({}) == {}


def test_names_find_their_phrases_by_spelling_or_by_words():
    described = {"Faux.Leather": ["stitches"], "wet": ["drops"], "old": [], "faux leather": ["folds"], "worn": ["holes"]}
    found = match_descriptors(["wet", "Faux.Leather", "faux_leather", "old", "new"], described)
    assert found.phrases == [["drops"], ["stitches"], ["folds"], [], []]
    assert (found.missing, found.empty, found.unknown) == (["new"], ["old"], ["worn"])
    assert match_descriptors(["wet"], {}).missing == ["wet"]


def test_descriptors_of_other_labels_are_an_error():
    with pytest.raises(DataError) as error:
        match_descriptors(["sliced", "dry"], {"slicd": ["cuts"], "moist": ["drops"]})
    assert "'slicd' for 'sliced'" in error.value.why
