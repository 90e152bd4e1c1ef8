"""``czsl predict``: the compositions in images."""

from __future__ import annotations

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.adapt_options import adapt_option, plan_of, split_settings, stream_seed_option, tell_plan
from czsl_cli.console import print_json_line, print_table, progress_bar, say, warn
from czsl_cli.inputs import (
    gather_images,
    image_options,
    images_option,
    reading_of,
    reading_options,
    tell_decoding,
    tell_earlier,
    tell_left_out,
    tell_profile,
)
from czsl_cli.options import decode_options, named_run, placement_options, where_of
from czsl_cli.point_options import answer_settings, bias_option, doubt_options
from czsl_cli.predict_outputs import PeopleOutputs, people_options

if TYPE_CHECKING:
    from methods.adaptation.plan import Plan

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SHOWN_ROWS = 40  # of a table on stdout; files hold all


@click.command()
@click.argument("images", nargs=-1, metavar="[RUN] [IMAGES]...")
@named_run(others="images")
@images_option
@image_options
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--zero-shot", is_flag=True, help="No run: plain CLIP with --clip and the given names.")
@click.option("--clip", default="tiny", show_default=True, help="CLIP for --zero-shot.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights for --zero-shot.")
@click.option("--open-world", is_flag=True, help="All attribute-object pairs, not only those of the dataset.")
@click.option(
    "--index/--no-index", "use_index", default=True, help="Open world: ask the run's index (czsl index build) if it has one."
)
@click.option(
    "--probes", type=click.IntRange(1), help="Number of cells of an ivf index to visit in the open world (approximate)."
)
@click.option(
    "--pairs", type=FILE, help="Candidates: a file with `attribute object` or `attribute,object` a line, new words allowed."
)
@click.option("--attributes", type=FILE, help="Candidate attributes, one a line (with --objects: all pairs of both).")
@click.option("--objects", type=FILE, help="Candidate objects, one a line.")
@click.option("--classes", type=FILE, help="Candidates: plain classes, one a line, new ones allowed.")
@click.option(
    "--top", "-k", type=click.IntRange(1), default=5, show_default=True, help="Compositions, attributes and objects to name."
)
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to FILE.jsonl, .csv or .parquet.")
@people_options
@click.option("--excel", is_flag=True, help="With --out FILE.csv: for spreadsheets (byte order mark, no cell runs as a formula).")
@decode_options("as the run remembers; without a run `exif` and `white`")
@bias_option
@doubt_options
@adapt_option
@stream_seed_option("the given order", several=False)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --adapt: continue the stream of this file, and keep it there.",
)
@reading_options
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record a line instead of a table.")
def predict(images, table, column, root, all_files, run, out, excel, as_json, **options) -> None:
    """Name the compositions, or the plain classes, in IMAGES: files, folders, zip or tar archives, patterns, or `-` for a list on stdin.

    \b
      czsl predict photos/
      czsl predict *.jpg more.zip
      find . -name '*.jpg' | czsl predict -
      czsl predict --images table.csv --column photo
      czsl predict RUN photos/ --open-world --out predictions.parquet
      czsl predict photos/ --attributes attributes.txt --objects objects.txt
      czsl predict photos/ --zero-shot --clip ViT-B-16 --classes classes.txt
      czsl predict photos/ --html page.html --sort-into sorted --review doubtful.csv

    Results keep the names that were given; below one folder or archive, names are relative to it. Unreadable images are skipped and listed,
    and the exit code is 6. Files that look like no image are left out and named. With --out, an interrupted run can be resumed by
    repeating the command.

    With --adapt the images are one stream that moves the scores of those after it (`czsl methods tomcat`). Several workers encode its
    images together. Such a run starts from the beginning after an interruption.

    Labels that training never saw get the bias of the run's operating point (czsl calibrate), which also makes probabilities of scores.
    """
    where = where_of(options)
    fast_jpeg, reading = reading_of(options, where)
    from czsl.data.files import predictions

    predictions.check_format(out, excel)
    images, settings = split_settings(images, options["adapt"])
    plan = _plan(options, settings)
    inputs = gather_images(tuple(images), table, column=column, root=root, all_files=all_files)
    source, names = inputs.source, inputs.source.names
    outputs = PeopleOutputs(options, source, out)
    config = _predict_config(run, {**options, "fast_jpeg": fast_jpeg}, plan)
    if plan:
        tell_plan(plan)
    shuffled = plan is not None and plan.seed is not None
    places = plan.order(len(names)).tolist() if plan else []
    asked = [names[i] for i in places] if shuffled else names
    from cluster.answers import Answers

    answers = Answers(config, source, asked, reading["keep"], where)
    earlier = answers.find(reading["profile"])
    outputs.start(config)
    bad: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    visited: list[float] = []
    sure: list[bool] = []
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar())
        if earlier is not None:
            tell_earlier()
            stream = iter(earlier)
        else:
            from cluster.predict import BATCH, partial_of, predict_files

            partial = stack.enter_context(partial_of(out, config, source, names)) if out and not plan else None
            if partial and partial.done:
                say(f"resuming: {min(partial.done * BATCH, len(names))} of {len(names)} images already done")
            found = predict_files(config, source, asked, **where, **reading, partial=partial, progress=bar.update, notice=warn)
            stream = answers.kept(found)
        if shuffled:
            by_place = dict(zip(places, stream, strict=True))
            stream = iter([by_place[i] for i in range(len(names))])
        records = predictions.write(out, stream, excel) if out else stream
        for done, record in enumerate(records, 1):
            bar.update("predicting", done, len(names))
            outputs.add(record)
            if record["error"]:
                bad.append(record)
            elif "retrieval" in record:
                visited.append(record["retrieval"]["visited"])
            if "sure" in record:
                sure.append(record["sure"])
            if as_json:
                print_line(record)
            elif len(shown) < SHOWN_ROWS:
                shown.append(record)
        outputs.write()  # if it fails, the same command finds all predictions again
    if not as_json and not out:
        _print(shown, len(names), options["top"])
    elif out:
        say(f"{len(names) - len(bad)} of {len(names)} images: {out}")
    if sure:
        say(f"{sum(sure)} of {len(sure)} images get a name")
    if visited:
        kind = "approximate" if config.probes else "exact"
        say(f"index ({kind}): scored {100 * sum(visited) / len(visited):.1f} % of the compositions per image")
    complete = outputs.tell()
    for record in bad:
        warn(f"{record['image']}: {record['error']}")
    tell_left_out(inputs)
    if fast_jpeg:
        say("large JPEGs were decoded at a fraction of their size (--fast-jpeg): scores differ slightly from those without it")
    tell_profile(reading["profile"])
    if bad:
        say(f"{len(bad)} of {len(names)} images could not be read")
    if bad or inputs.refused or not complete:
        sys.exit(6)


def print_line(record: dict[str, Any]) -> None:
    """A JSON line on stdout."""

    print_json_line(record)


def _plan(options: dict[str, Any], settings: list[str]) -> Plan | None:
    """The requested adaptation; its order is the given one unless there is a seed."""
    from czsl.errors import UsageError

    seed = options["stream_seed"] if options["stream_seed"] is not None or not options["adapt"] else "given"
    plan = plan_of(options["adapt"], settings, seed)
    if plan is None:
        if options["state"]:
            raise UsageError("--state without --adapt", "it keeps the state of an adaptation", "add --adapt tomcat")
        return None
    if plan.settings.released and (options["pairs"] or options["classes"] or options["attributes"]):
        raise UsageError(
            "released=true with candidates of your own", "it adapts over all pairs of the dataset", "drop one of them"
        )
    return plan


def _predict_config(run_path: Path | None, options: dict[str, Any], plan: Plan | None):
    """Return the settings: method, candidates and options."""
    from czsl.errors import UsageError
    from czsl_cli.runs import chosen_run, tell_unknown_words, usable_checkpoint

    named = _candidates(options)
    if options["probes"] and (named is not None or not options["open_world"]):
        raise UsageError("--probes goes with --open-world", "it is for the index of a run's open world", "drop it")
    asked = {"orientation": options["orientation"], "background": options["background"]}
    common = {"top": options["top"], "open_world": options["open_world"], "fast_jpeg": options["fast_jpeg"], **asked}
    common |= {"adapt": plan, "state": str(options["state"]) if options["state"] else None}
    if options["zero_shot"]:
        if named is None:
            raise UsageError(
                "--zero-shot needs candidates",
                "without a run they have to be given",
                "give --pairs, --classes, or --attributes and --objects",
            )
        space, pairs = named
        common |= answer_settings(None, options)
        from cluster.work.request import PredictConfig

        tell_unknown_words(options["clip"] or "tiny", names_in(space))
        return PredictConfig(clip=options["clip"], clip_weights=options["clip_weights"], space=space, pairs=pairs, **common)
    run = chosen_run(run_path)
    if plan:
        from methods.registry import check_adaptable

        check_adaptable(run.config.method)
    usable_checkpoint(run, options["checkpoint"])
    tell_decoding(run.config.decode, asked)
    where = {"run": str(run.path), "checkpoint": options["checkpoint"]}
    _check_labels(run, named, options)
    common |= answer_settings(run, options, named is not None, plan)
    from cluster.work.request import PredictConfig

    if named is None:
        index = _index(run, options) if options["open_world"] and not plan else None
        return PredictConfig(**where, **common, index=index, probes=options["probes"])
    tell_new_words(named[0], run.space)
    tell_unknown_words(run.config.clip, names_in(named[0]))
    return PredictConfig(**where, space=named[0], pairs=named[1], **common)


def _check_labels(run, named: tuple[dict[str, Any], list[list[str]]] | None, options: dict[str, Any]) -> None:
    """UsageError, before a cluster is started, where the run's method cannot name such labels."""
    from czsl.spaces import space_from_json
    from methods.registry import check_labels

    space = run.space if named is None else space_from_json(named[0])
    check_labels(run.config.method, space)
    space.pairs(options["open_world"])


def _index(run, options: dict[str, Any]) -> str | None:
    """The folder of the run's index, if it is to be used."""
    from cluster.work.indexing import SHARD, folder_of, fresh_index
    from czsl.errors import UsageError
    from czsl.retrieval.storage import describe

    found = fresh_index(run, options["checkpoint"]) if options["use_index"] else None
    if found:
        if options["probes"] and describe(found)["kind"] == "flat":
            raise UsageError(
                "--probes goes with an ivf index", "this one is flat: it has no cells", f"czsl index build {run.path} --kind ivf"
            )
        return str(found)
    if options["probes"]:
        raise UsageError(
            "--probes needs an index", f"{run.path.name} has none of this checkpoint", f"czsl index build {run.path} --kind ivf"
        )
    total = run.space.num_attributes * run.space.num_objects
    if options["use_index"] and (folder_of(run) / "index.json").is_file():
        warn(f"the index of {run.path.name} is of another checkpoint and not used; build it again: czsl index build {run.path}")
    elif options["use_index"] and total > SHARD:
        say(f"each worker encodes {total:,} compositions first; to keep them: czsl index build {run.path}")
    return None


def _candidates(options: dict[str, Any]) -> tuple[dict[str, Any], list[list[str]]] | None:
    """The label space and pairs that the user's files name."""
    from czsl.errors import UsageError

    kinds = {"--pairs": options["pairs"], "--classes": options["classes"], "--attributes": options["attributes"]}
    given = [name for name, file in kinds.items() if file]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} were given", "each names the candidates", "keep one of them")
    if options["classes"]:
        classes = read_names(options["classes"])
        return {"classes": classes, "seen": []}, [["", name] for name in classes]
    if options["pairs"]:
        if options["attributes"] or options["objects"] or options["open_world"]:
            raise UsageError(
                "--pairs names the candidates already",
                "the file lists every candidate",
                "drop --attributes, --objects and --open-world",
            )
        pairs = read_pairs(options["pairs"])
        attributes, objects = ([*dict.fromkeys(p[i] for p in pairs)] for i in (0, 1))
    elif options["attributes"] or options["objects"]:
        if not (options["attributes"] and options["objects"]):
            raise UsageError(
                "--attributes and --objects belong together", "all pairs of both are the candidates", "give both files"
            )
        attributes, objects = read_names(options["attributes"]), read_names(options["objects"])
        pairs = [[a, o] for a in attributes for o in objects]
    else:
        return None
    return {"attributes": attributes, "objects": objects}, pairs


def read_names(path: Path) -> list[str]:
    """Names, one a line; empty lines and repetitions are left out."""
    from czsl.errors import DataError
    from czsl.reading import read_lines

    names = [*dict.fromkeys(line for line in read_lines(path, fix="write one name a line, in UTF-8") if line)]
    if not names:
        raise DataError(f"{path} names nothing", "all its lines are empty", "write one name per line")
    return names


def read_pairs(path: Path) -> list[list[str]]:
    """Pairs, one a line: ``attribute,object`` (names may hold spaces) or ``attribute object``."""
    from czsl.errors import DataError
    from czsl.reading import read_lines

    pairs = []
    for number, line in enumerate(read_lines(path, fix="write attribute,object a line, in UTF-8"), 1):
        if not line:
            continue
        try:
            parts = next(csv.reader([line])) if "," in line else line.split()
        except csv.Error as error:
            raise DataError(f"{path}, line {number}: it cannot be read", str(error), "write attribute,object") from None
        parts = [p.strip() for p in parts]
        if len(parts) != 2 or not all(parts):
            raise DataError(
                f"{path}, line {number}: {line.strip()!r} is not a pair", "an attribute and an object", "write attribute,object"
            )
        pairs.append(parts)
    if not pairs:
        raise DataError(f"{path} names no pair", "all its lines are empty", "write attribute,object on each line")
    return [list(p) for p in dict.fromkeys(map(tuple, pairs))]


def names_in(space: dict[str, Any]) -> list[str]:
    """All names of a label space in the form of ``space.json``."""
    return [name for kind in ("attributes", "objects", "classes") for name in space.get(kind, ())]


def tell_new_words(space: dict[str, Any], known) -> None:
    """A note on words of a label space that the run was not trained with."""
    from czsl.compositions import prompt_name

    for kind, trained in (("attributes", known.attributes), ("objects", known.objects), ("classes", known.objects)):
        there = {prompt_name(n) for n in trained}
        new = [n for n in space.get(kind, ()) if prompt_name(n) not in there]
        if new:
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            say(f"{kind} that training never saw, taken from CLIP's own words: {', '.join(new[:5])}{more}")


def _print(records: list[dict[str, Any]], total: int, top: int) -> None:
    from czsl.compositions import label_words

    classes = bool(records) and "classes" in records[0]
    columns = ["class", "score", "probability"] if classes else ["composition", "score", "probability", "attribute", "object"]
    rows = []
    for record in records:
        if record["error"]:
            rows.append([record["image"], *("" for _ in columns), f"({record['error']})"])
            continue
        best, *others = record["predictions"]
        name = label_words(best)
        if not record.get("sure", True):
            name, others = "(none of these)" if record.get("rejected") else "(not sure)", record["predictions"]
        row = [record["image"], name, f"{best['calibrated']:.2f}", f"{best['prob']:.2f}"]
        if not classes:
            row += [f"{record[kind][0]['name']} {record[kind][0]['prob']:.2f}" for kind in ("attributes", "objects")]
        rows.append([*row, ", ".join(map(label_words, others))])
    heading = ["image", *columns, f"next {top - 1}" if top > 1 else "note"]
    used = len(heading) if any(row[-1] for row in rows) else -1
    print_table(heading[:used], [row[:used] for row in rows])
    if total > len(records):
        say(f"{total - len(records)} more images: use --out FILE or --json for all")
