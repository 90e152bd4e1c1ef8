"""Every error that a user can see says what happened, why, and what to do; wrong calls of the library are ValueErrors."""

import ast
from pathlib import Path

import pytest

from czsl import errors

ROOT = Path(__file__).parents[1]
FAMILY = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.CzslError)}
PARTS = ("what", "why", "fix")
MODULES = [path for floor in ("czsl", "methods", "cluster", "czsl_cli") for path in sorted((ROOT / floor).rglob("*.py"))]


def raised(path):
    """Constructor calls of the family in a file, each with its line and its parts by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in FAMILY:
            continue
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
            continue  # handed on whole
        yield node.lineno, dict(zip(PARTS, node.args, strict=False)) | {k.arg: k.value for k in node.keywords}


def may_be_empty(node, assigned):
    """Whether a part is an empty text, or one in some case: ``x if .. else ""``, or a name that was assigned so."""
    if isinstance(node, ast.Name):
        return any(may_be_empty(value, {}) for value in assigned.get(node.id, ()))
    if isinstance(node, ast.IfExp):
        return may_be_empty(node.body, assigned) or may_be_empty(node.orelse, assigned)
    return isinstance(node, ast.Constant) and not node.value


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_error_has_three_parts(path):
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for line, parts in raised(path):
        empty = [name for name in PARTS if name not in parts or may_be_empty(parts[name], assigned)]
        assert not empty, f"{path.name}, line {line}: the error has no {' and no '.join(empty)}"


def test_the_check_sees_errors():
    assert sum(1 for path in MODULES for _ in raised(path)) > 300


@pytest.mark.parametrize("folder", ["czsl/evaluation", "czsl/retrieval"])
def test_shapes_of_arrays_are_no_usage_errors(folder):
    """A shape is the caller's business: a user of the command line cannot mend it."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UsageError":
                assert ".shape" not in ast.unparse(node), f"{path.name}, line {node.lineno}"


def test_the_nearest_name_or_none_is_said():
    assert errors.did_you_mean("clusPo", ["csp", "clusPro"]) == "did you mean 'clusPro'?"
    assert errors.did_you_mean("xyz", ["csp"]) == errors.did_you_mean("a", []) == "no known name is close to it"
