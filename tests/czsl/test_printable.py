"""Text from outside: nothing that steers a terminal or reorders a line reaches a person; JSON keeps its content."""

import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from czsl.printable import printable, printable_json

DANGEROUS = [
    ("a\x1b[31mb.png", r"a\x1b[31mb.png"),
    ("x\x1b]0;title\x07.png", r"x\x1b]0;title\x07.png"),
    ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
    ("a\u2066b\u2069", r"a\u2066b\u2069"),
    ("\u200frtl\u061c", r"\u200frtl\u061c"),
    ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
    ("c1\x9b31m", r"c1\x9b31m"),
    ("\ufeffbom\u200b\u00ad\x7f", r"\ufeffbom\u200b\xad\x7f"),
    ("line\u2028and\u2029paragraph", r"line\u2028and\u2029paragraph"),
    ("\U000e0041tag", r"\U000e0041tag"),
    (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png"),
    ("\ue000\U0010ffff", r"\ue000\U0010ffff"),
]


@pytest.mark.parametrize(("text", "shown"), DANGEROUS)
def test_what_steers_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    assert json.loads(printable_json({"image": text})) == {"image": text}
    assert printable_json(text).isascii()


@pytest.mark.parametrize("text", ["wet dog", "日本語　名", "می‌خواهم", "👩‍👩‍👧", "é e\u0301", "a b", "שלום", "C:\\photos"])
def test_words_of_all_scripts_stay(text):
    assert printable(text) == text
    assert printable_json(text) == json.dumps(text, ensure_ascii=False)


def test_lines_of_the_program_itself_stay_where_it_says_so():
    assert printable("a: 1\nb: \x1b\n", keep="\n") == "a: 1\nb: \\x1b\n"


@given(st.text(st.characters()))
def test_nothing_invisible_is_left_and_json_keeps_the_text(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    shown.encode()
    assert printable(shown) == shown
    assert json.loads(printable_json([text])) == [text]
    printable_json([text]).encode()
