"""The built-in CLIP's words: the list agrees with the weights, and labels outside it are found."""

import pytest

from czsl.clip.loading import load_clip
from czsl.clip.vocabulary import MAX_LISTED, known_words, note_on_words, unknown_words
from czsl.data.toy import dataset as toy


@pytest.fixture(scope="module")
def text():
    return load_clip("tiny").text


def has_vectors(text, word):
    """Whether no token of a word is zero."""
    return all(text.token_embedding.weight[i].any() for i in text.tokenizer.encode(word))


def test_every_listed_word_has_vectors(text):
    assert all(has_vectors(text, word) for word in known_words())


def test_every_trained_token_that_ends_a_word_is_listed(text):
    trained = {text.tokenizer.decoder[i] for i in text.token_embedding.weight.any(1).nonzero().flatten().tolist()}
    whole = {token.removesuffix("</w>") for token in trained if token.endswith("</w>") and token[:-4].isalnum()}
    # "ssy" ends "mossy" and "o" is a leftover of the captions: neither is a word.
    assert whole - {"ssy", "o"} <= known_words()


@pytest.mark.parametrize("word", ["dry", "dog", "old", "cat", "sliced", "coffee", "ancient", "mo"])
def test_a_word_without_vectors_is_found(text, word):
    assert not has_vectors(text, word) or word == "mo"
    assert unknown_words("tiny", [f"a photo of {word} apple"]) == [word]


def test_the_toy_data_has_no_unknown_word():
    assert unknown_words("tiny", (*toy.ATTRIBUTES, *toy.OBJECTS)) == []


def test_names_are_read_as_prompts_read_them():
    assert unknown_words("tiny", ["Faux.Leather", "WET", "hair_calf", "wet"]) == ["calf", "faux", "hair", "leather"]


def test_other_models_know_all_words():
    assert unknown_words("ViT-B-32", ["dry"]) == []
    assert note_on_words([]) == ""


def test_a_long_list_is_cut():
    words = sorted(f"word{chr(97 + i)}" for i in range(20))
    note = note_on_words(words)
    assert note.count("word") < 16
    assert f"and {20 - MAX_LISTED} more" in note
