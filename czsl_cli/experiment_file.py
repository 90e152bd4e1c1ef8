"""Experiment files: methods, settings, seeds, data and evaluations of a table, read from YAML and checked before anything runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl.errors import UsageError, did_you_mean
from czsl.reading import read_yaml
from czsl.runs.config import RunConfig
from czsl.runs.settings import typed
from czsl_cli.config import fix_paths, parse_overrides, resolve

if TYPE_CHECKING:
    from methods.adaptation.plan import Plan

SETTINGS = (
    "method",
    "data",
    "clip",
    "clip_weights",
    "preset",
    "recipe",
    "config_file",
    "epochs",
    "batch",
    "lr",
    "partial_labels",
)
WORLDS = {"closed": False, "open": True}
NAME = re.compile(r"[\w][\w.+-]{0,99}")  # of a row: part of its runs' folder names
FIX = "docs/experiments.md describes the file"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    name : of the row
    trained : what it is trained on, as text; None: derived from its settings
    settings : of its runs
    adapt : adaptation to the test images, or None
    of : the row whose runs it shares, or None for runs of its own
    """

    name: str
    trained: str | None
    settings: dict[str, Any]
    adapt: Plan | None = None
    of: str | None = None

    @property
    def home(self) -> str:
        """Name of its runs' folders: its own, or that of the row whose runs it shares."""
        return self.of or self.name


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file, with what the command line changes.

    rows : lines of the table
    data : dataset folders (or ``toy``) by label
    seeds : of training
    evaluate : what is measured: settings of :class:`cluster.work.evaluation.EvalConfig`, by heading
    compare : pairs of rows whose difference is tested, the second against the first
    columns : keys of the reports and their headings; empty for the usual ones
    resamples : of the paired bootstrap
    """

    rows: dict[str, Row]
    data: dict[str, str]
    seeds: tuple[int, ...] = (0, 1)
    evaluate: dict[str, dict[str, Any]] = field(default_factory=lambda: {"closed world": {}})
    compare: tuple[tuple[str, str], ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    resamples: int = 1000

    def config(self, row: str, label: str, seed: int) -> RunConfig:
        """Return the complete settings of a run."""
        settings = {k: _filled(v, self.data[label]) for k, v in self.rows[row].settings.items()}
        file = settings.pop("config_file", None)
        config = resolve({**settings, "data": self.data[label], "seed": seed}, (), Path(file) if file else None)
        fix_paths(config)
        return config

    def chosen(self, rows: Sequence[str]) -> Experiment:
        """Return the experiment with some of its rows only."""
        for name in rows:
            _known(name, self.rows, "row", "the rows of the file")
        kept = {name: row for name, row in self.rows.items() if name in rows}
        return replace(self, rows=kept, compare=tuple(pair for pair in self.compare if set(pair) <= set(kept)))


def _filled(value: Any, data: str) -> Any:
    """Put the dataset's folder into a text that names it."""
    return value.replace("{data}", data) if isinstance(value, str) else value


def read_experiment(
    path: Path,
    *,
    data: str | None = None,
    clip: str | None = None,
    overrides: Sequence[str] = (),
    baseline: str | None = None,
    seeds: tuple[int, ...] | None = None,
    per_pair: int | None = None,
) -> Experiment:
    """Read an experiment file.

    Parameters
    ----------
    path : Path
        YAML, as docs/experiments.md describes it.
    data, clip, overrides, baseline, seeds, per_pair
        From the command line; they win over the file's.

    Raises
    ------
    UsageError
        Unknown keys (with the nearest name), two rows of one name, a row that is compared but absent, settings that do not belong into a
        row.
    """
    content = read_yaml(path, error=UsageError, head="{path} cannot be read", fix=FIX)
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not an experiment", f"it holds a {type(content).__name__}, not a mapping with rows", FIX)
    known = ("data", "clip", "clip_weights", "common", "rows", "seeds", "evaluate", "per_pair", "bootstrap", "resamples")
    for key in content:
        _known(key, (*known, "columns", "compare", "baseline"), "key", str(path))
    shared = settings_of(content.get("common"), "common")
    shared |= {k: content[k] for k in ("clip", "clip_weights") if content.get(k) is not None}
    # On the command line a CLIP brings its own weights.
    last = ({"clip": clip, "clip_weights": None} if clip else {}) | parse_overrides(overrides)
    rows = {}
    for name, row in _mapping(content.get("rows"), "rows", path).items():
        rows[name] = _row(name, row, shared, last)
    rows = {name: _sharing(row, rows) for name, row in rows.items()}
    if not rows:
        raise UsageError(f"{path} has no rows", "a table has one line at least", FIX)
    baseline = baseline or content.get("baseline")
    return Experiment(
        rows,
        _datasets(data or content.get("data") or "toy", path),
        _seeds(list(seeds) if seeds else content.get("seeds", [0, 1])),
        _evaluations(content, per_pair),
        _pairs(content.get("compare") or [], baseline, rows),
        {k: str(v) for k, v in _mapping(content.get("columns") or {}, "columns", path).items()},
        _whole(content.get("resamples", 1000), "resamples", 1),
    )


def _row(name: str, row: Any, shared: Mapping[str, Any], last: Mapping[str, Any]) -> Row:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"the row name {name!r} cannot be used", "it becomes part of folder names", "use letters, digits, - _ . +"
        )
    row = {} if row is None else row
    if not isinstance(row, dict):
        raise UsageError(f"row {name} is a {type(row).__name__}", "a row is a mapping", f"write  {name}: {{train: --method csp}}")
    keys = ("trained", "train", "adapt", "of")
    for key in row:
        if key not in keys and key in _setting_names():
            raise UsageError(
                f"row {name} has the key {key!r}", "settings belong below train:", f"write  {name}: {{train: {{{key}: ...}}}}"
            )
        _known(str(key), keys, "key", f"row {name}")
    of = row.get("of")
    if of is not None and row.get("train") is not None:
        raise UsageError(f"row {name} has train and of", f"its runs would be those of row {of}", "keep one of them")
    if of is not None and row.get("adapt") is None:
        raise UsageError(f"row {name} has of without adapt", f"it would be row {of} once more", "add  adapt: tomcat")
    try:
        settings = {**shared, **settings_of(row.get("train"), f"row {name}"), **last}
    except UsageError as error:
        raise _of_row(name, error) from None
    trained = row.get("trained")
    settings = {k: v for k, v in settings.items() if v is not None}
    adapt = None if row.get("adapt") is None else adaptation(row["adapt"], name)
    return Row(name, None if trained is None else str(trained), settings, adapt, None if of is None else str(of))


def _setting_names() -> set[str]:
    """Return the settings of runs and of all methods."""
    from dataclasses import fields

    from methods.registry import METHODS, config_class

    return set(RunConfig.field_names()) | {f.name for method in METHODS for f in fields(config_class(method))} - {"adapt", "of"}


def _sharing(row: Row, rows: Mapping[str, Row]) -> Row:
    """Return a row with the settings of the row whose runs it shares."""
    if row.of is None:
        return row
    _known(row.of, rows, "row", f"of in row {row.name}")
    base = rows[row.of]
    if base.of is not None or base is row:
        raise UsageError(
            f"row {row.name} is of row {row.of}, which has no runs of its own",
            "a row takes the runs of a row that is trained",
            "name the row that is trained",
        )
    return replace(row, settings=base.settings, trained=row.trained or base.trained)


def adaptation(given: Any, name: str) -> Plan:
    """Return the plan of a row: ``tomcat recipe=ut-zappos``, or ``{name: tomcat, recipe: ut-zappos}``; ``stream_seed`` is its order."""
    from methods.adaptation.plan import Plan

    if isinstance(given, str):
        first, *words = _words(given, name) or [""]
        settings = parse_overrides(words)
    elif isinstance(given, dict) and isinstance(given.get("name"), str):
        settings = dict(given)
        first = settings.pop("name")
    else:
        raise UsageError(
            f"row {name}: adapt is {given!r}"[:200],
            "it has to be a text or a mapping",
            "write  adapt: tomcat recipe=ut-zappos stream_seed=0",
        )
    seed = settings.pop("stream_seed", 0)
    if seed != "given" and (type(seed) is not int or not 0 <= seed < 2**32):
        raise UsageError(f"row {name}: stream_seed is {seed!r}", "it is a whole number from 0 on, or `given`", FIX)
    try:
        return Plan.of(first, settings, None if seed == "given" else seed)
    except UsageError as error:
        raise _of_row(name, error) from None


def _words(text: str, name: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"row {name}: {text!r} cannot be read", str(error), "close the quotes") from None


def _of_row(name: str, error: UsageError) -> UsageError:
    return error if f"row {name}" in error.what else UsageError(f"row {name}: {error.what}", error.why, error.fix)


def settings_of(given: Any, where: str) -> dict[str, Any]:
    """Return settings written as a mapping, or as the arguments of ``czsl train``."""
    if given is None:
        return {}
    if isinstance(given, dict):
        found = dict(given)
    elif isinstance(given, str):
        found = _arguments(given, where)
    else:
        raise UsageError(
            f"{where}: settings are a {type(given).__name__}",
            "settings are a text or a mapping",
            "write --method csp epochs=5, or {method: csp, epochs: 5}",
        )
    for key, instead in (("seed", "seeds:"), ("data", "data:")):
        if key in found:
            raise UsageError(
                f"{where} sets {key}", "all rows have the same seeds and data, or their differences mean nothing",
                f"give it once for the whole table: {instead}",
            )  # fmt: skip
    return found


def _arguments(text: str, where: str) -> dict[str, Any]:
    """Return the settings in a command line of ``czsl train``."""
    from czsl_cli.train import train

    try:
        words = shlex.split(text)
        context = train.make_context("train", words)
    except ValueError as error:
        raise UsageError(f"{where}: {text!r} cannot be read", str(error), "close the quotes") from None
    except click.ClickException as error:
        raise UsageError(f"{where}: {error.format_message()}", f"train: {text}", "czsl train --help lists the options") from None
    given = click.core.ParameterSource.COMMANDLINE
    used = {k: v for k, v in context.params.items() if context.get_parameter_source(k) is given}
    overrides = used.pop("overrides", ())
    for key in used:
        if key not in (*SETTINGS, "seed"):
            option = f"--{'from' if key == 'source' else key.replace('_', '-')}"
            raise UsageError(
                f"{where}: {option} is not a setting of a run", "only what config.yaml holds belongs into a row",
                "give nodes, workers and folders to czsl experiment itself",
            )  # fmt: skip
    return {**used, **parse_overrides(overrides)}


def _datasets(given: Any, path: Path) -> dict[str, str]:
    if isinstance(given, str):
        return {Path(given).name: given}
    if isinstance(given, list) and given and all(isinstance(x, str) for x in given):
        given = {Path(x).name: x for x in given} if len({Path(x).name for x in given}) == len(given) else {x: x for x in given}
    if isinstance(given, dict) and given and all(isinstance(x, str) for x in given.values()):
        for label in given:
            if not NAME.fullmatch(label):
                raise UsageError(
                    f"the data label {label!r} cannot be used",
                    "it becomes part of folder names",
                    "name it: data: {LABEL: FOLDER}",
                )
        return dict(given)
    raise UsageError(
        f"{path}: data is {given!r}",
        "it is neither a name nor a list or mapping of names",
        "name a dataset folder, a list of them, or  data: {label: folder}",
    )


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or any(type(x) is not int or x < 0 for x in given):
        raise UsageError(f"seeds is {given!r}", "seeds are whole numbers from 0 on", "write  seeds: [0, 1, 2]")
    if len(set(given)) < len(given):
        raise UsageError(f"seeds is {given!r}", "one seed is there twice", "each seed is one run")
    return tuple(given)


def _evaluations(content: Mapping[str, Any], per_pair: int | None) -> dict[str, dict[str, Any]]:
    """Return the questions of a file by heading: ``closed``, ``open``, or mappings with settings of an evaluation."""
    from dataclasses import fields

    from cluster.work.evaluation import EvalConfig

    general = {k: _whole(content[k], k, 0) for k in ("per_pair", "bootstrap") if content.get(k)}
    given = content.get("evaluate") or ["closed"]
    found = {}
    for one in given if isinstance(given, list) else [given]:
        asked = {"world": one} if isinstance(one, str) else dict(one) if isinstance(one, dict) else None
        if asked is None:
            raise UsageError(
                f"evaluate holds {one!r}",
                "each entry is a name or a mapping",
                "write  evaluate: [closed, open]  or  - {world: open, per_pair: 3}",
            )
        world = str(asked.pop("world", "closed"))
        _known(world, WORLDS, "world", "evaluate")
        heading = asked.pop("name", None)
        if "adapt" in asked:
            raise UsageError(
                "evaluate has the key 'adapt'", "an adaptation belongs to a row", "write  csp-tomcat: {of: csp, adapt: tomcat}"
            )
        names = [f.name for f in fields(EvalConfig) if f.name not in ("open_world", "feasibility", "adapt")]
        for key in asked:
            _known(key, ["world", "name", *names], "key", "evaluate")
        asked |= {"per_pair": per_pair} if per_pair else {}
        eval_config: dict[str, Any] = {**general, **asked, "open_world": WORLDS[world]}
        parts = [f"{world} world", *(f"{k.replace('_', ' ')} {v}" for k, v in asked.items())]
        heading = str(heading or ", ".join(parts))
        if heading in found:
            raise UsageError(
                f"evaluate has {heading!r} twice", "headings tell columns apart", "name one of them:  {world: open, name: ...}"
            )
        EvalConfig(**typed(eval_config, EvalConfig))
        found[heading] = eval_config
    return found


def _pairs(given: Any, baseline: Any, rows: Mapping[str, Row]) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list) or any(not isinstance(x, list) or len(x) != 2 for x in given):
        raise UsageError("compare is not a list of pairs of rows", f"{given!r}"[:200], "write  compare: [[zero-shot, csp]]")
    found = [(str(one), str(other)) for one, other in given]
    for name in [*(x for pair in found for x in pair), *([baseline] if baseline else [])]:
        _known(str(name), rows, "row", "compare and baseline name rows of the table")
    if baseline:
        found += [(str(baseline), name) for name in rows if name != baseline and (str(baseline), name) not in found]
    for one, other in found:
        if one == other:
            raise UsageError(f"compare has {one} twice in one pair", "a row does not differ from itself", "name another row")
    return tuple(found)


def _mapping(given: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UsageError(
            f"{path}: {what} is {'missing' if given is None else f'a {type(given).__name__}'}", "a mapping is expected", FIX
        )
    return given


def _whole(value: Any, name: str, minimum: int) -> int:
    if type(value) is not int or value < minimum:
        raise UsageError(f"{name} is {value!r}", f"it is a whole number from {minimum} on", FIX)
    return value


def _known(name: str, known: Any, what: str, where: str) -> None:
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names)
        raise UsageError(f"unknown {what} {name!r} ({where})", hint, f"known: {', '.join(names)}")
