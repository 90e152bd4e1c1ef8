"""Folder names that mean a pair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from czsl.data.importing.foldernames import FolderNames
from czsl.errors import DataError

WORD = st.text("abc_ ", min_size=1, max_size=5)


def resolve(names, *folders):
    return [names.resolve([(f,)])[(f,)] for f in folders]


def test_without_lists_one_separator_decides():
    names = FolderNames()
    assert resolve(names, "wet dog", "wet_dog") == [("wet", "dog")] * 2
    assert resolve(names, "dark_red casual_shoes") == [("dark_red", "casual_shoes")]  # a single space outranks underscores
    assert names.resolve([("dark red", "casual_shoes")]) == {("dark red", "casual_shoes"): ("dark red", "casual_shoes")}


def test_unclear_names_are_all_listed():
    with pytest.raises(DataError) as error:
        FolderNames().resolve([("a_b_c",), ("wet_dog",), ("x y z",), ("dog",), ("_dog",)])
    for name in ("'a_b_c'", "'x y z'", "'dog'", "'_dog'"):
        assert name in error.value.why
    assert "wet_dog" not in error.value.why
    assert "--attributes" in error.value.fix


def test_lists_decide_and_give_the_spelling():
    names = FolderNames(("dark_red", "red"), ("casual_shoes", "shoes"))
    assert resolve(names, "dark_red_casual_shoes", "dark red casual shoes") == [("dark_red", "casual_shoes")] * 2
    assert names.resolve([("dark red", "shoes")]) == {("dark red", "shoes"): ("dark_red", "shoes")}
    assert resolve(names, "blue_shoes", "red_hats", "shoes") == [None, None, None]


def test_lists_may_leave_two_readings():
    names = FolderNames(("a", "a_b"), ("c", "b_c"))
    with pytest.raises(DataError, match="'a_b_c'"):
        names.resolve([("a_b_c",), ("a_c",)])


def test_one_list_is_enough_where_it_decides():
    assert resolve(FolderNames(objects=("casual_shoes",)), "dark_red_casual_shoes") == [("dark_red", "casual_shoes")]


@given(st.sets(WORD, min_size=1, max_size=4), st.sets(WORD, min_size=1, max_size=4), st.sampled_from(" _"), st.data())
def test_a_folder_never_gets_a_wrong_pair(attributes, objects, separator, data):
    pair = data.draw(st.sampled_from(sorted(attributes))), data.draw(st.sampled_from(sorted(objects)))
    names = FolderNames(tuple(sorted(attributes)), tuple(sorted(objects)))
    try:
        assert resolve(names, separator.join(pair)) == [pair]
    except DataError as error:
        assert "cannot tell" in error.what


def test_lists_are_read_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffwet\n\ndry \nwet\n", encoding="utf-8")
    names = FolderNames.read(tmp_path / "a.txt", None)
    assert names == FolderNames(("wet", "dry"), None)
    with pytest.raises(DataError, match="cannot read"):
        FolderNames.read(None, tmp_path / "none.txt")
