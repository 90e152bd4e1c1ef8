"""Names of methods, their classes, and the presets beside them."""

import re
from dataclasses import fields

import pytest

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from methods.method import Method
from methods.presets import KINDS, load_presets, presets_file
from methods.registry import METHODS, canonical_name, method_class


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("clusPro", "clusPro"),
        ("cluspro", "clusPro"),
        ("clus-pro", "clusPro"),
        ("CLUS_PRO", "clusPro"),
        ("zero_shot", "zero-shot"),
        ("ZeroShot", "zero-shot"),
        ("CSP", "csp"),
    ],
)
def test_case_and_hyphens_do_not_matter(typed, name):
    assert canonical_name(typed) == name


@pytest.mark.parametrize(("typed", "near"), [("clupsro", "clusPro"), ("zeroshoot", "zero-shot"), ("cps", "csp")])
def test_an_unknown_method_gives_the_nearest_and_all(typed, near):
    with pytest.raises(UsageError) as error:
        canonical_name(typed)
    assert repr(near) in error.value.why
    assert all(name in error.value.fix for name in METHODS)


def test_no_two_names_are_typed_alike():
    assert len({re.sub("[-_]", "", name.lower()) for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_target_is_a_method_that_describes_itself(name):
    cls = method_class(name)
    assert issubclass(cls, Method)
    assert cls.name == name
    assert cls.title
    assert cls.__doc__
    assert len(cls.__mro__) - len(Method.__mro__) <= 2  # no inheritance deeper than two
    described = "".join(base.__doc__ or "" for base in cls.Config.__mro__)
    for field in fields(cls.Config):
        assert re.search(rf"^\s+{field.name}: ", described, re.MULTILINE), (
            f"{cls.Config.__name__}.{field.name} has no description"
        )


@pytest.mark.parametrize("name", METHODS)
def test_presets_set_fields_that_exist_to_values_that_are_accepted(name):
    cls, presets = method_class(name), load_presets(name)
    assert set(presets) == set(KINDS)
    own = {f.name for f in fields(cls.Config)}
    for named in presets.values():
        for settings in named.values():
            assert set(settings) <= own | set(RunConfig.field_names())
            cls.Config(**{k: v for k, v in settings.items() if k in own})
            RunConfig(**{k: v for k, v in settings.items() if k not in own})


def test_presets_lie_beside_the_module():
    assert presets_file("clusPro").parts[-3:] == ("methods", "clus_pro", "presets.yaml")
    assert presets_file("csp").parts[-3:] == ("methods", "csp", "presets.yaml")
    assert load_presets("csp")["recipes"]["ut-zappos"]["attr_dropout"] == 0.2
    assert load_presets("zero-shot") == {"presets": {}, "recipes": {}}
