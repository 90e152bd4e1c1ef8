"""The rows of ``numbers.yaml``: what papers report, with their sources, checked when they are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from czsl.errors import UsageError
from czsl.reading import read_yaml
from methods.registry import METHODS

NUMBERS = ("seen", "unseen", "hm", "auc")
WORLDS = ("closed", "open")
CHECKED = {"paper": "read in the source", "specification": "from our notes", "memory": "from memory: verify before you cite"}
ROUNDING = 0.05  # of a number that is printed with one digit
FILE = Path(__file__).with_name("numbers.yaml")
FIX = "mend methods/published/numbers.yaml"


@dataclass(frozen=True)
class Benchmark:
    """A dataset of the field: its sizes, and where its files come from.

    pairs, images : of train, val and test
    checked : a key of ``CHECKED``
    """

    name: str
    title: str
    attributes: int
    objects: int
    pairs: tuple[int, int, int]
    images: tuple[int, int, int]
    checked: str
    images_from: str
    lists_from: str
    put: str


@dataclass(frozen=True)
class Paper:
    """A paper.

    ours : registered name of its method, if this program has it
    settings : of its training by backbone, where they differ from those of the method's recipe
    """

    key: str
    method: str
    authors: str
    title: str
    venue: str
    year: int
    ours: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    @property
    def citation(self) -> str:
        """Return authors, title, venue and year."""
        return f"{self.authors}: {self.title}, {self.venue} {self.year}"


@dataclass(frozen=True)
class Record:
    """The numbers of a paper for one dataset and world.

    numbers : by name (``seen``, ``unseen``, ``hm``, ``auc``), in percent; numbers that are not known are absent
    sd : standard deviations over seeds that the paper gives, in points
    via : the paper whose table the numbers were taken from, if it is another one
    checked : a key of ``CHECKED``
    """

    paper: Paper
    backbone: str
    dataset: str
    world: str
    numbers: Mapping[str, float]
    sd: Mapping[str, float]
    checked: str
    via: Paper | None = None
    table: str = ""
    note: str = ""

    @property
    def source(self) -> str:
        """Return where the numbers stand, in short: ``ICLR 2025, table 1``."""
        place = self.via or self.paper
        text = f"{place.venue} {place.year}" + (f" (in {place.method})" if self.via else "")
        table = f"table {self.table}" if self.table.isdecimal() else self.table
        return f"{text}, {table}" if table else text

    def to_json(self) -> dict[str, Any]:
        """Return the record as one flat mapping, in percent."""
        return {
            "method": self.paper.method, "ours": self.paper.ours, "backbone": self.backbone, "dataset": self.dataset,
            "world": self.world, **{k: self.numbers.get(k) for k in NUMBERS}, "sd": dict(self.sd) or None,
            "paper": self.paper.citation, "source": self.source, "via": self.via.citation if self.via else None,
            "checked": self.checked, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Published:
    """All records, the datasets that they are of, and the papers that they come from."""

    records: tuple[Record, ...]
    datasets: Mapping[str, Benchmark]
    papers: Mapping[str, Paper]

    def dataset(self, name: str) -> Benchmark:
        """Return a dataset; case, ``-``, ``_`` and spaces do not matter. UsageError with the nearest name if it is unknown."""
        return self.datasets[nearest(name, self.datasets, "dataset")]

    def paper(self, name: str) -> Paper:
        """Return a paper by the name of its method, by its key or by our method's name; UsageError with the nearest name."""
        aliases = {plain(alias): p for p in self.papers.values() for alias in (p.ours, p.key, p.method) if alias}
        if plain(name) in aliases:
            return aliases[plain(name)]
        return next(
            p for p in self.papers.values() if p.method == nearest(name, [p.method for p in self.papers.values()], "method")
        )

    def select(self, dataset: str | None = None, method: str | None = None, world: str | None = None) -> list[Record]:
        """Return the records of a dataset, a method and a world, each if it is given, in the file's order."""
        chosen = self.dataset(dataset).name if dataset else None
        paper = self.paper(method) if method else None
        return [
            r
            for r in self.records
            if (chosen is None or r.dataset == chosen) and (paper is None or r.paper is paper) and world in (None, r.world)
        ]


@cache
def published() -> Published:
    """Return what papers report; the file is read once."""
    return read_published(FILE)


def read_published(path: Path) -> Published:
    """Read a file of published numbers.

    Raises
    ------
    UsageError
        Unknown or missing keys, an unknown paper, dataset or world, impossible numbers: outside of 0 to 100, fractions among percent,
        an HM outside of what seen and unseen accuracy allow, an AUC above their product, one row twice.
    """
    content = read_yaml(path, error=UsageError, head="{path} cannot be read", fix=FIX)
    for key in ("datasets", "papers", "rows"):
        if not isinstance(content, dict) or not content.get(key):
            raise UsageError(f"{path.name} has no {key}", "the file has three parts: datasets, papers and rows", FIX)
    datasets = {k: _made(Benchmark, {"name": k, **v}, f"dataset {k}") for k, v in content["datasets"].items()}
    for one in datasets.values():
        if one.checked not in CHECKED or len(one.pairs) != 3 or len(one.images) != 3:
            raise UsageError(
                f"dataset {one.name}: checked, pairs or images cannot be used",
                "checked is a text, pairs and images are whole numbers",
                FIX,
            )
    papers = {k: _made(Paper, {"key": k, **v}, f"paper {k}") for k, v in content["papers"].items()}
    for paper in papers.values():
        if paper.ours is not None and paper.ours not in METHODS:
            raise UsageError(
                f"paper {paper.key}: {paper.ours!r} is not a method of this program", f"the methods are {', '.join(METHODS)}", FIX
            )
    records: list[Record] = []
    for row in content["rows"]:
        records += _records(row, datasets, papers)
    seen: set[tuple[str, ...]] = set()
    for r in records:
        row_of = (r.paper.key, r.backbone, r.dataset, r.world)
        if row_of in seen:
            raise UsageError(
                f"two rows of {r.paper.method} ({r.backbone}) for {r.dataset}, {r.world} world",
                "each paper, backbone, dataset and world has one row",
                FIX,
            )
        seen.add(row_of)
    return Published(tuple(records), datasets, papers)


def _made(kind: type, given: Any, where: str) -> Any:
    """Build a dataclass of a mapping; UsageError for keys that it lacks or does not have."""
    from dataclasses import MISSING, fields

    if not isinstance(given, dict):
        raise UsageError(f"{where} is a {type(given).__name__}", "a mapping is expected", FIX)
    names = {f.name: f for f in fields(kind)}
    for key in given:
        if key not in names:
            nearest(str(key), names, f"key of {where}")
    missing = [k for k, f in names.items() if f.default is MISSING and f.default_factory is MISSING and k not in given]
    if missing:
        raise UsageError(f"{where} has no {' and no '.join(missing)}", "these keys are required", FIX)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _records(row: Any, datasets: Mapping[str, Benchmark], papers: Mapping[str, Paper]) -> list[Record]:
    about = ("paper", "backbone", "world", "via", "table", "checked", "note", "sd")
    if not isinstance(row, dict):
        raise UsageError(f"a row is a {type(row).__name__}", "a mapping is expected", FIX)
    for key in row:
        nearest(str(key), [*about, *datasets], "key of a row")
    missing = [key for key in ("paper", "backbone", "world", "checked") if key not in row]
    if missing:
        raise UsageError(f"a row has no {' and no '.join(missing)}", f"{row}"[:200], FIX)
    paper = papers[nearest(str(row["paper"]), papers, "paper")]
    via = papers[nearest(str(row["via"]), papers, "paper")] if row.get("via") else None
    where = f"row {paper.key}, {row['world']} world"
    if row["world"] not in WORLDS or row["checked"] not in CHECKED:
        raise UsageError(
            f"{where}: its world or `checked` is unknown", f"worlds: {', '.join(WORLDS)}; checked: {', '.join(CHECKED)}", FIX
        )
    deviations = row.get("sd") or {}
    found = []
    for name in datasets:
        if name in row:
            numbers = _numbers(row[name], f"{where}, {name}")
            check_numbers(numbers, f"{where}, {name}")
            sd = _numbers(deviations[name], f"{where}, sd of {name}") if name in deviations else {}
            rest = {"table": str(row.get("table") or ""), "note": str(row.get("note") or "")}
            found.append(Record(paper, str(row["backbone"]), name, row["world"], numbers, sd, row["checked"], via, **rest))
    return found


def _numbers(values: Any, where: str) -> dict[str, float]:
    if not isinstance(values, list) or len(values) != len(NUMBERS):
        raise UsageError(
            f"{where}: {values!r} is not a list of {', '.join(NUMBERS)}",
            "a row has one value for each of them, null if it is unknown",
            FIX,
        )
    found = {k: v for k, v in zip(NUMBERS, values, strict=True) if v is not None}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise UsageError(f"{where}: {key} is {value!r}", "numbers are percent, from 0 to 100", FIX)
    if not found:
        raise UsageError(f"{where} has no number", "all of its values are null", FIX)
    return {k: float(v) for k, v in found.items()}


def check_numbers(numbers: Mapping[str, float], where: str, fix: str = FIX) -> None:
    """UsageError if numbers in percent contradict each other.

    The best HM is at most the harmonic mean of the best seen and the best unseen accuracy; the AUC at most their product. Fractions given
    for percent have all of them at 1 or below.
    """
    if len(numbers) > 1 and max(numbers.values()) <= 1:
        raise UsageError(f"{where}: {dict(numbers)} look like fractions", "numbers are percent", fix)
    if not {"seen", "unseen"} <= numbers.keys():
        return
    seen, unseen = numbers["seen"] + ROUNDING, numbers["unseen"] + ROUNDING
    limits = {"hm": 2 * seen * unseen / (seen + unseen), "auc": seen * unseen / 100}
    for key, limit in limits.items():
        if numbers.get(key, 0.0) - ROUNDING > limit:
            raise UsageError(
                f"{where}: {key} {numbers[key]:g} is impossible",
                f"seen {numbers['seen']:g} and unseen {numbers['unseen']:g} allow {limit:.1f} at most", fix,
            )  # fmt: skip


def plain(name: str) -> str:
    """Return a name as it is compared: lower case, without ``-``, ``_`` and spaces."""
    return "".join(c for c in name.lower() if c not in "-_ ")


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Return the known name that is meant, whatever its case and separators; UsageError that names the nearest one."""
    names = {plain(k): k for k in known}
    if plain(name) in names:
        return names[plain(name)]
    near = difflib.get_close_matches(plain(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]]!r}?" if near else "no such name is in the file of published numbers"
    raise UsageError(f"unknown {what} {name!r}", hint, f"known: {', '.join(names.values())}")
