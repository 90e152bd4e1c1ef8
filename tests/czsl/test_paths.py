"""Functions that take a path take a text and anything with ``__fspath__``."""

import importlib
import inspect
import pkgutil
import re
from unittest.mock import MagicMock

import pytest

import czsl
import methods
from czsl.errors import CzslError

# Steps of importing, which only `import_dataset` calls.
_STEPS = """
    annotations classnames coco detect fiftyone foldernames imagefolder labelstudio layouts
    parquet_images published tables textfiles tree vaw webdataset
"""
INNER = (
    *(f"czsl.data.importing.{step}" for step in _STEPS.split()),
    "methods.parts.transport_kernel",
)  # the last one needs Triton


class OnlyFspath:
    """A path that is nothing but that."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


def public_functions():
    from czsl.clip.compat import import_open_clip

    import_open_clip()
    for package in (czsl, methods):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name in INNER:
                continue
            module = importlib.import_module(found.name)
            for name, thing in vars(module).items():
                if name.startswith("_") or getattr(thing, "__module__", None) != found.name:
                    continue
                if inspect.isfunction(thing):
                    yield f"{found.name}.{name}", thing
                elif inspect.isclass(thing):
                    for inner, value in vars(thing).items():
                        if not inner.startswith("_") and isinstance(value, classmethod | staticmethod):
                            yield f"{found.name}.{name}.{inner}", getattr(thing, inner)


def path_parameters(function):
    for parameter in inspect.signature(function).parameters.values():
        if re.fullmatch(r"(PathLike|(\w+\.)?Path|str \| .*Path.*|Path \| str)( \| None)?", str(parameter.annotation)):
            yield parameter


FUNCTIONS = {name: f for name, f in public_functions() if any(True for _ in path_parameters(f))}


def test_there_are_such_functions():
    assert len(FUNCTIONS) > 40
    assert "czsl.evaluation.reduction.SavedEvaluation.load" in FUNCTIONS


@pytest.mark.parametrize("kind", [str, OnlyFspath])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_path_may_be_a_text_or_anything_that_stands_for_one(name, kind, tmp_path, monkeypatch):
    """Called on a place where there is nothing: whatever comes of it, it is not that the path was of a wrong type."""
    monkeypatch.chdir(tmp_path)
    function, paths = FUNCTIONS[name], {p.name for p in path_parameters(FUNCTIONS[name])}
    given = {
        p.name: kind(tmp_path / "nothing") if p.name in paths else "1" if p.name == "text" else MagicMock()
        for p in inspect.signature(function).parameters.values()
        if (p.default is p.empty or p.name in paths) and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    try:
        result = function(**given)
        if inspect.isgenerator(result):
            list(result)
        elif hasattr(result, "__enter__"):
            with result:
                pass
    except (CzslError, OSError):
        pass
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        assert "OnlyFspath" not in told, told
        assert not re.search(r"'str' object has no attribute|unsupported operand type\(s\) for /", told), told
