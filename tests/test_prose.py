"""Plain English: words and forms that read as a translation are refused in docstrings, help texts, error texts, comments and documents.

Each rule is a regular expression with what to write instead. A true exception goes into ``ALLOWED`` with its place and a part of its text.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Packages and documents whose prose was revised. Add a path here when its prose is done; never take one away.
DONE: tuple[str, ...] = (
    "cluster",
    "czsl/__init__.py",
    "czsl/classes.py",
    "czsl/clip",
    "czsl/compositions.py",
    "czsl/data",
    "czsl/errors.py",
    "czsl/evaluation",
    "czsl/precision.py",
    "czsl/printable.py",
    "czsl/reading.py",
    "czsl/retrieval",
    "czsl/runs",
    "czsl/spaces.py",
    "czsl/threads.py",
    "czsl_cli",
    "czsl_start.py",
    "docs",
    "examples",
    "methods",
    "CONTRIBUTING.md",
    "README.md",
)

UNITS = "image|step|second|epoch|pair|worker|node|primitive|line|query|trial|batch|machine|prompt|record|row|GPU|word|region|class|name"
COUNTED = (
    r"images|pairs|texts|tokens|bytes|KiB|MiB|MB|GB|GiB|seconds|ms|features|vectors|numbers|queries|copies|regions|boxes|prompts|prototypes|"
    r"cores|threads|workers|GPUs|answers|names|scores|steps|rows|words|crops|views|places|records|values|labels|candidates|lines|"
    r"characters|results|draws|files|minutes|parameters|products|passes|entries|weights|limit [\d,]+"
)

# Name -> (pattern, what to write).
EVERYWHERE = {
    "behind": (r"\bbehind\b", "after"),
    "an image": (rf"\b(?:{COUNTED}) an? (?:{UNITS})\b", "per image"),
    "anew": (r"\banew\b", "again, from scratch"),
    "so many": (r"\bso (?:many|much)\b", "up to N, this many"),
    "alone": (r"\balone\b", "only, by itself"),
    "goes on": (r"\b(?:go|goes|going|went|gone) on\b", "continue"),
    "is none": (r"\b(?:is|are|was|were) none\b", "no such X exists, is not a X"),
    "is no": (
        r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more\b|fewer|larger|smaller|better|worse|less)(?:\w+|\{)",
        "is not a X, there is no X",
    ),
    "somebody": (r"\b(?:somebody|nobody|anybody|everybody|a person)\b", "a user, people, no one"),
    "beside": (r"\bbeside\b", "next to (for places), in addition to"),
    "alike": (r"\balike\b", "the same, equally"),
    "likeliest": (r"\blikeliest\b", "top-1, most probable"),
    "in words": (r"\bin words\b", "as text"),
    "cannot be": (r"\bcannot be(?=[.,;:)]|$)", "is invalid, does not exist"),
    "stumble": (r"\b(?:stumbles?|disappoints?|newcomers?)\b", "a plain word"),
    "where": (
        r"\b(?:None|False|True|0|empty|absent|unused|only|also|Error`?) where\b|\bwhere (?:no|none|there (?:is|are)|they (?:are|do|have)|"
        r"it (?:is|has|does)|one (?:is|was|has)|not)\b",
        "if",
    ),
    "says": (
        r"(?<!paper )\b(?:says|tells|knows|asks)\b|\b(?:is|are|was|were|been) (?:told|asked|said)\b",
        "holds, names, is given, contains",
    ),
}
IN_COMMENTS = {name: rule for name, rule in EVERYWHERE.items() if name not in ("says", "where")}
PLAIN = ("behind", "anew", "so many", "goes on", "is none", "is no", "somebody", "alike", "likeliest", "cannot be")
DOCSTRINGS = {
    "headless": (
        r"\A(?:What|Which|Whether|Where|How|Who|Of|That|When|Those|As)\b",
        "start with a verb or a noun with its article",
    ),
    "headless parameter": (r"(?m)(?<= : )[^\n]*\n\s+(?:Of|Told|That|To be)\b", "describe a parameter with a noun"),
}
HELP = {
    "of": (r"\A(?:What|Which|Whether|Where|How|Of|That|So|At most|As)\b", "start with a verb or with 'Number of'"),
}

# Path -> parts of texts that a rule would refuse wrongly.
ALLOWED: dict[str, tuple[str, ...]] = {
    "methods/comclip/parse.py": ("under behind above", "someone somebody something"),  # lists of words
}

ERRORS = {"CzslError", "UsageError", "DataError", "SetupError", "ExpectationError", "BadImage", "ValueError"}
SPEAKERS = {"say", "warn", "say_error", "notice", "note", "refuse", "_refuse", "refused"}


def literal(node: ast.AST) -> str:
    """The fixed parts of a text, with ``{}`` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def texts_of_python(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of docstrings, help texts, error texts and printed lines, of comments, and of all other texts of a program."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "comment", re.sub(r"`[^`]*`", "", token.string)
    tree = ast.parse(source)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), "docstring", text
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            for keyword in node.keywords:
                if keyword.arg == "help":
                    yield node.lineno, "help", literal(keyword.value)
            if name in ERRORS | SPEAKERS:
                yield from ((argument.lineno, "message", literal(argument)) for argument in node.args)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value and node not in docstrings:
            yield node.lineno, "text", node.value


def texts_of_markdown(source: str) -> Iterator[tuple[int, str, str]]:
    """Line and text of each line of prose: no code blocks, no inline code, no link targets."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, "document", re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def texts(path: Path) -> Iterator[tuple[int, str, str]]:
    source = path.read_text(encoding="utf-8")
    yield from texts_of_markdown(source) if path.suffix == ".md" else texts_of_python(source)


def refused(path: Path) -> list[str]:
    """Each place of a file that a rule refuses, as a line for people."""
    found, allowed = [], ALLOWED.get(path.relative_to(ROOT).as_posix(), ())
    for line, kind, text in texts(path):
        plain = re.sub(r"``[^`]*``|`[^`]*`", "", text) if kind == "docstring" else text
        rules = {**EVERYWHERE, **(DOCSTRINGS if kind == "docstring" else HELP if kind == "help" else {})}
        if kind == "comment":
            rules = IN_COMMENTS
        if kind == "text":  # it may be a part of a sentence, or no prose at all
            rules = {name: EVERYWHERE[name] for name in PLAIN}
        for name, (pattern, better) in rules.items():
            for match in re.finditer(pattern, plain):
                around = " ".join(plain[max(0, match.start() - 40) : match.end() + 30].split())
                if not any(part in " ".join(plain.split()) and match[0] in part for part in allowed):
                    found.append(f"{path.relative_to(ROOT)}:{line}: {kind}, {name!r} in '{around}'; write: {better}")
    return found


def files(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md"))


@pytest.mark.parametrize("part", DONE)
def test_prose(part):
    found = [line for path in files(part) for line in refused(path)]
    assert not found, "\n".join(found)
