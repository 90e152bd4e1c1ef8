"""From a sentence to its entities and relations: given triplets, spaCy where a model of it is installed, or rules on TextBlob's tags.

The caption itself goes to CLIP as it is; what is parsed here only decides which sub-images there are and what they weigh.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SPACY_MODELS = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
MAX_CHARACTERS = 2000  # of a sentence; CLIP reads 77 tokens


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BE = _words("is are was were be been being am 're")
DETERMINERS = _words("a an the this that these those some any each every his her its their my your our another no")
PREPOSITIONS = _words(
    "in on at by near inside under behind above below beside between against along across around through towards "
    "toward into onto over of off with without from up down beneath underneath atop within outside upon past to for "
    "before after next"
)
PARTICLES = _words("down up off out away back over")  # between a verb and its preposition they change no relation
PHRASES = (
    "next to",
    "in front of",
    "on top of",
    "close to",
    "far from",
    "away from",
    "out of",
    "to the left of",
    "to the right of",
)
# Words that the tagger's lexicon knows as something else than what they are in a caption.
NOUNS = _words(
    "bear man men woman women boy girl kid baby bus people child children glass glasses water kite surf board light "
    "fire fish plant train watch phone orange"
)
ADVERBS = _words("very quite really just also still then together quickly slowly happily not there here")
PRONOUNS = _words("he she it they him them someone somebody something i you we")
RELATIVE = frozenset(("that", "which", "who"))
# Forms that no rule of spelling leads to.
IRREGULAR = {
    "lying": "lie", "dying": "die", "tying": "tie", "ate": "eat", "eaten": "eat", "held": "hold", "sat": "sit", "stood": "stand",
    "wore": "wear", "worn": "wear", "rode": "ride", "ridden": "ride", "ran": "run", "flew": "fly", "flown": "fly", "caught": "catch",
    "threw": "throw", "thrown": "throw", "cut": "cut", "hit": "hit", "fed": "feed", "read": "read", "drank": "drink", "drunk": "drink",
    "swam": "swim", "swum": "swim", "took": "take", "taken": "take", "gave": "give", "given": "give", "made": "make", "laid": "lay",
    "has": "have", "had": "have", "does": "do", "did": "do", "goes": "go", "went": "go", "gone": "go", "swung": "swing", "hung": "hang",
    "drove": "drive", "driven": "drive", "wrote": "write", "written": "write", "bit": "bite", "bitten": "bite", "brought": "bring",
    "bought": "buy", "lay": "lie", "leant": "lean", "leapt": "leap", "saw": "see", "seen": "see", "slept": "sleep", "swept": "sweep",
}  # fmt: skip
PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
}
# Tokens of ComVG's triplets that are several words.
FUSED = {
    "layingin": "laying in", "nextto": "next to", "leaningagainst": "leaning against", "floatingon": "floating on",
    "teddybears": "teddy bears",
}  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """An entity: what the text tower reads (``brown dog``) and its noun (``dog``)."""

    text: str
    head: str


@dataclass(frozen=True)
class Composition:
    """A sentence, its entities, and relations (subject, verb, object) by indices of entities.

    source : ``given``, ``spacy``, ``rules``, or ``none`` if no entity was found: the sentence is compared with the whole image
    """

    sentence: str
    entities: tuple[Entity, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    source: str = "none"

    @property
    def words(self) -> tuple[str, ...]:
        """Words of the sub-images: entities first, then the relations' verbs."""
        return (*(e.text for e in self.entities), *(verb for _, verb, _ in self.relations))


def parse(sentence: str, triplet: Sequence[str] | None = None, clean: bool = False) -> Composition:
    """The first of the parsers that finds an entity.

    Parameters
    ----------
    sentence : str
    triplet : (subject, verb, object), optional
        What is known of it; nothing is parsed then.
    clean : bool, default False
        Tidy the triplet's words (`clean_token`, and the verb's base form); off: as the paper's program has them.
    """
    sentence = " ".join(sentence.split())[:MAX_CHARACTERS]
    if triplet is not None:
        return from_triplet(sentence, triplet, clean)
    if (model := spacy_model()) is not None:
        found = from_spacy(sentence, model(sentence))
        if found.entities:
            return found
    return by_rules(sentence)


def from_triplet(sentence: str, triplet: Sequence[str], clean: bool = False) -> Composition:
    """Parse a given (subject, verb, object); empty parts have no sub-image."""
    subject, verb, obj = (clean_token(word) if clean else word.strip() for word in triplet)
    verb = base_verb(verb) if clean else verb
    entities = tuple(Entity(word, word.split()[-1]) for word in (subject, obj) if word)
    relations = ((0, verb, 1),) if verb and len(entities) == 2 else ()
    return Composition(sentence, entities, relations, "given" if entities else "none")


def clean_token(word: str) -> str:
    """A triplet's word in plain words: fused ones apart (``layingin``), white space and case tidied."""
    word = " ".join(word.lower().replace("_", " ").split())
    return FUSED.get(word, word)


# -- word forms ----------------------------------------------------------------------------------------------------
def base_verb(word: str) -> str:
    """The base form of a verb, by spelling: ``chases``, ``chasing`` -> ``chase``; further words (``laying in``) are dropped.

    Prepositions stay as they are.
    """
    word, *rest = word.lower().split() or [""]
    if word in PREPOSITIONS:
        return " ".join([word, *rest])
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("ing") and len(word) > 4 and re.search("[aeiouy]", word[:-3]):
        return _without_ending(word[:-3])
    if word.endswith("ied") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("ed") and not word.endswith("eed") and len(word) > 3 and re.search("[aeiouy]", word[:-2]):
        return _without_ending(word[:-2])
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes", "oes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2:
        return word[:-1]
    return word


def _without_ending(stem: str) -> str:
    """``chas`` -> ``chase``, ``runn`` -> ``run``, ``play`` -> ``play``: by TextBlob's lexicon, verbs first."""
    lexicon = _textblob().lexicon
    doubled = len(stem) > 2 and stem[-1] == stem[-2]
    # A single consonant after a single vowel would have been doubled, had there been no e.
    forms = [stem + "e", stem] if re.search("[^aeiou][aeiou][^aeiouwxy]$", stem) else [stem, stem + "e"]
    forms += [stem[:-1]] if doubled else []
    known = [form for form in forms if lexicon.get(form)]
    verbs = [form for form in known if lexicon.get(form).startswith("VB")]
    return next(iter([*verbs, *known, stem[:-1] if doubled else stem]))


def base_noun(word: str) -> str:
    """The singular of a noun, by spelling."""
    word = word.lower()
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def head_of(phrase: str) -> str:
    """The noun that a phrase is about, in the singular: the last word of its first noun phrase (``a man with a dog`` -> ``man``)."""
    found = by_rules(phrase)
    return base_noun(found.entities[0].head if found.entities else (phrase.split() or [""])[-1])


# -- rules ---------------------------------------------------------------------------------------------------------
def by_rules(sentence: str) -> Composition:
    """Noun phrases with a verb or preposition between them, by rules on TextBlob's part-of-speech tags.

    TextBlob carries its lexicon with it. It tags some verbs as nouns (``chases``, ``drinking``) and some nouns as verbs (``bear``), so
    what a word's neighbours say goes first.
    """
    entities: list[Entity] = []
    relations: list[tuple[int, str, int]] = []
    subject: int | None = None  # of the next verb: an entity that neither verb nor preposition leads to
    between: list[tuple[str, str]] = []
    for kind, text in _chunks(_kinds(sentence)):
        here = len(entities)
        if kind != "entity":
            between.append((kind, text))
            subject = here - 1 if text in RELATIVE and here else subject
            continue
        entities.append(Entity(text, text.split()[-1]))
        verbs, links = ([t for k, t in between if k == wanted] for wanted in ("verb", "preposition"))
        if verbs and subject is not None:
            ends = (here, subject) if links[:1] == ["by"] and _passive(verbs[-1]) else (subject, here)
            relations.append((ends[0], base_verb(verbs[-1]), ends[1]))
        elif links and here:
            relations.append((here - 1, links[-1], here))
        else:
            subject = here
        between = []
    return Composition(sentence, tuple(entities), tuple(relations), "rules" if entities else "none")


def _passive(verb: str) -> bool:
    return verb.endswith(("ed", "en", "wn")) or (verb in IRREGULAR and not verb.endswith(("s", "ing")))


@functools.lru_cache(maxsize=1)
def _textblob() -> Any:
    from textblob import en  # takes seconds: it imports NLTK, of which nothing is used

    return en


def _kinds(sentence: str) -> list[tuple[str, str]]:
    """Words with what each is for: determiner, adjective, noun, verb, be, preposition, particle, break or other."""
    # The tagger knows words in lower case; what begins a sentence is not a name.
    text = re.sub(r"[^\w\s',;.-]", " ", re.sub(r"['’]s\b", "", sentence.lower()))
    tagged = [(word, tag) for word, tag in _textblob().tag(text) if word.strip()]
    kinds: list[tuple[str, str]] = []
    i = 0
    while i < len(tagged):
        word, tag = tagged[i]
        words = [w for w, _ in tagged[i : i + 4]]
        several = next((p for p in PHRASES if words[: len(p.split())] == p.split()), None)
        if several:
            kinds.append((several, "preposition"))
            i += len(several.split())
            continue
        kinds.append((word, _kind(word, tag)))
        i += 1
    return _by_neighbours(kinds)


def _kind(word: str, tag: str) -> str:
    if word in BE:
        return "be"
    if word in RELATIVE:
        return "break"
    if word in DETERMINERS or tag in ("DT", "PRP$", "CD", "PDT"):
        return "determiner"
    if word in PREPOSITIONS or (tag in ("IN", "TO") and word not in ("while", "because")):
        return "preposition"
    if word in ("and", "or", "but", "while", ",", ";", ".", "because") or tag == "CC":
        return "break"
    if word in NOUNS or base_noun(word) in NOUNS or word in PRONOUNS or tag == "PRP":
        return "noun"
    if word in ADVERBS or tag.startswith(("RB", "WRB", "RP", "EX", "MD")):
        return "other"
    if tag.startswith("JJ"):
        return "adjective"
    if tag.startswith("VB"):
        return "verb"
    return "noun" if tag.startswith("NN") or word.isalpha() else "other"


def _by_neighbours(kinds: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Kinds corrected by what stands around."""
    out = list(kinds)
    for i, (word, kind) in enumerate(kinds):
        before = out[i - 1][1] if i else "start"
        after = kinds[i + 1][1] if i + 1 < len(kinds) else "end"
        opens = after in ("determiner", "preposition", "adjective", "noun", "end", "break", "other")
        if kind == "preposition" and word in PARTICLES and before == "verb" and after == "preposition":
            out[i] = (word, "other")
        elif before == "determiner" and kind in ("verb", "other") and word.isalpha() and not _participle_before_noun(word, after):
            out[i] = (word, "noun")  # a bear, a can
        elif before == "be" and kind in ("noun", "adjective") and opens and _verb_like(word, kind, after):
            out[i] = (word, "verb")  # is drinking, is eat
        elif before == "noun" and kind == "noun" and _third_person(word) and after in ("determiner", "preposition"):
            out[i] = (word, "verb")  # a man kisses a bear
        elif before == "noun" and kind == "noun" and word.endswith("ing") and after in ("determiner", "preposition", "noun"):
            out[i] = (word, "verb")  # a man drinking the water
        elif before == "noun" and kind == "adjective" and after == "determiner":
            out[i] = (word, "verb")
        elif kind == "verb" and before in ("determiner", "adjective") and after == "noun":
            out[i] = (word, "adjective")  # a sleeping cat
    return out


def _participle_before_noun(word: str, after: str) -> bool:
    return word.endswith(("ing", "ed", "en")) and after in ("noun", "adjective")


def _verb_like(word: str, kind: str, after: str) -> bool:
    if word.endswith("ing"):
        return True
    # "is eat a food" but not "is red" or "is a dog"; after a form of be a bare noun is a verb only before its object.
    return kind == "noun" and after in ("determiner", "preposition", "noun") and word not in NOUNS


def _third_person(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us")) and word not in NOUNS


def _chunks(kinds: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Noun phrases, and what stands between them: (``entity``, adjectives and nouns) and (kind, word)."""
    pieces: list[tuple[str, str]] = []
    run: list[tuple[str, str]] = []

    def close() -> None:
        nouns = [i for i, (_, kind) in enumerate(run) if kind == "noun"]
        if nouns and run[nouns[-1]][0] not in PRONOUNS:
            pieces.append(("entity", " ".join(word for word, _ in run[: nouns[-1] + 1])))
        elif nouns:
            pieces.append(("break", run[nouns[-1]][0]))
        run.clear()

    for word, kind in [*kinds, ("", "end")]:
        if kind in ("adjective", "noun"):
            run.append((word, kind))
            continue
        close()
        if kind in ("verb", "preposition", "break"):
            pieces.append((kind, word))
    return pieces


# -- spaCy ---------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def spacy_model() -> Any:
    """An English spaCy model that is installed, the best one; None if none is installed. Nothing is downloaded."""
    if importlib.util.find_spec("spacy") is None:
        return None
    name = next((m for m in SPACY_MODELS if importlib.util.find_spec(m) is not None), None)
    if name is None:
        return None
    import spacy

    return spacy.load(name, disable=["ner"])


def from_spacy(sentence: str, parsed: Any) -> Composition:
    """Noun chunks without determiners, and the verbs and prepositions that join them, of a spaCy parse."""
    entities: list[Entity] = []
    index_of: dict[int, int] = {}
    for chunk in parsed.noun_chunks:
        words = [token.text for token in chunk if token.pos_ not in ("DET", "PRON", "PUNCT")]
        if words:
            index_of[chunk.root.i] = len(entities)
            entities.append(Entity(" ".join(words), chunk.root.text))
    relations = []
    for token in parsed:
        own = [child for child in token.children if child.i in index_of]
        subjects = [index_of[c.i] for c in own if c.dep_ in ("nsubj", "nsubjpass")]
        if token.pos_ in ("VERB", "AUX") and subjects:
            objects = [index_of[c.i] for c in own if c.dep_ in ("dobj", "obj")]
            below = [
                (p, c) for p in token.children if p.dep_ == "prep" for c in p.children if c.dep_ == "pobj" and c.i in index_of
            ]
            if objects:
                relations += [(subjects[0], token.lemma_, o) for o in objects]
            elif below:
                prep, noun = below[0]
                relations.append((subjects[0], token.lemma_ if token.lemma_ != "be" else prep.text, index_of[noun.i]))
        elif token.dep_ == "prep" and token.head.i in index_of:
            relations += [(index_of[token.head.i], token.text, index_of[c.i]) for c in own if c.dep_ == "pobj"]
    return Composition(sentence, tuple(entities), tuple(relations), "spacy" if entities else "none")
