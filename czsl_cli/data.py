"""``czsl data``: import labelled images, check a dataset folder, describe it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from czsl_cli.console import print_json, print_table, print_text, progress_bar, say
from czsl_cli.options import decode_options
from czsl_cli.partial import partial

if TYPE_CHECKING:
    from czsl.data.importing.problems import Problem

MAX_SHOWN = 10  # of each kind of problem; --json and import.json have all
MAX_NAMES = 4

LAYOUTS = (
    "auto", "published", "tree", "manifest", "imagefolder", "parquet", "coco", "vaw", "webdataset", "label-studio", "fiftyone"
)  # fmt: skip

as_json = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
max_pixels = click.option(
    "--max-pixels", type=click.IntRange(1), default=100_000_000, show_default=True, help="Refuse larger images undecoded."
)


@click.group()
def data() -> None:
    """Import, check and describe labelled images."""


data.add_command(partial)


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Layout of SOURCE.")
@click.option("--name", help="Name of the dataset.  [default: that of SOURCE]")
@click.option("--attributes", type=click.Path(path_type=Path), help="Text file of attribute names, for names such as a_b_c.")
@click.option("--objects", type=click.Path(path_type=Path), help="Text file of object names, for names such as a_b_c.")
@click.option("--classes", is_flag=True, help="Labels are plain classes: a folder for each, or a column class.")
@click.option("--unseen", type=click.Path(path_type=Path), help="Classes: text file of those that training does not get.")
@click.option(
    "--columns",
    metavar="ROLE=NAME,...",
    help="Roles of columns: image, attr, obj, class, pair (attribute and object) or split.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the images.  [default: that of the table or annotations]"
)
@click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of SOURCE.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 10),
    default=0.0,
    show_default=True,
    help="Boxes: margin of a crop on each side, as a fraction of the box.",
)
@click.option("--several", type=click.Choice(["rarest", "each"]), help="Images with several attributes: use the rarest, or each.")
@click.option("--pairs", type=click.Choice(["space", "plus"]), help="Form of pair lists: 'wet dog' or 'wet+dog'.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the split, for a SOURCE without splits.")
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    metavar="FRACTION",
    help="Stop if more of the images cannot be used.",
)
@max_pixels
@decode_options("published benchmarks as stored, all else `exif` and `white`; the dataset remembers")
@click.option("--all-files", is_flag=True, help="Folders: try files that do not look like images, too.")
@click.option("--drop-duplicates", is_flag=True, help="Leave out val and test images whose bytes occur in training.")
@click.option("--force", is_flag=True, help="Replace the dataset folder DEST.")
@click.option("--add-to", metavar="DATASET", help="Let DEST also hold the images of this dataset folder, which stays as it is.")
@as_json
def import_(source, dest, attributes, objects, classes, unseen, columns, pairs, as_json, **options):
    """Import images from SOURCE into the dataset folder DEST.

    SOURCE is one of:

    \b
    published     pair lists, images/ and a .t7 or .json: MIT-States, UT-Zappos, C-GQA, VAW-CZSL, Clothing16K
    tree          folders named "wet dog", wet_dog or wet/dog, optionally below train/ val/ test/
    manifest      a table (CSV, TSV, JSON lines, JSON, Parquet) with columns such as image, attr, obj, split
    imagefolder   images with metadata.csv, .jsonl or .parquet (Hugging Face)
    parquet       Parquet files that hold the images (Hugging Face)
    coco, vaw     annotations with boxes, which become crops
    webdataset    tar shards
    label-studio, fiftyone   their exports

    Without splits they are drawn by pair: about 15 % of the pairs are held out for val, 20 % for test.

    With --classes labels are plain classes: a folder for each, or a column class. Classes without training images are unseen;
    --unseen names them if the source does not show it.

    What was taken for what is printed. Images that cannot be used are skipped and listed; identical images are listed and kept.

    A review file of `czsl predict --review` is a table. With --add-to its images and those of a dataset make a new dataset.
    """
    from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset

    names = _label_names(attributes, objects, classes, unseen)
    try:
        with progress("importing") as advance:
            chosen = ImportOptions(names=names, columns=_columns(columns), separator=pairs, **options)
            report = import_dataset(source, dest, chosen, advance)
    except TooManyBadError as error:
        _say_reading(error.report.read_as)
        if as_json:
            print_json(error.report.to_json())
        else:
            print_problems(error.report.problems)
        raise
    _say_reading(report.read_as)
    if as_json:
        print_json(report.to_json())
        return
    print_text(f"{report.name}: {report.layout} layout, written to {report.folder or ''}")
    columns, labels = ["train", "val", "test"], report.classes or report.pairs
    counted = {"images": [report.images[c] for c in columns]}
    print_splits(columns, {**counted, "classes" if report.classes else "pairs": [labels[c] for c in columns]})
    named = f"{report.attributes} attributes, {report.objects} objects"
    if report.classes:
        named = f"{report.classes['all']} classes, {report.classes['seen']} of them seen in training"
    print_text(f"{named}; {report.bad} of {report.named:,} images unusable")
    if report.added_to:
        print_text(f"{report.named - report.bad:,} images added to those of {report.added_to}")
    if report.review:
        counts = report.review
        print_text(f"labels of the review: {counts['changed']} changed, {counts['left']} as predicted, {counts['empty']} empty")
    print_text(f"decoded with {decoded(report.decode)}")
    print_text(f"sha256 {report.sha256}")
    print_problems(report.problems, Path(report.folder or "") / "import.json")
    if report.classes and report.classes["seen"] == report.classes["all"]:
        say("every class is seen, so nothing is zero-shot here; name unseen classes with --unseen FILE")


def _columns(text: str | None) -> dict[str, str]:
    """``image=path,attr=colour`` as roles and names; a name may hold anything but a comma followed by a role."""
    from czsl.errors import UsageError

    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+=)", text) if text else ():
        role, sign, name = part.partition("=")
        if not sign or not name.strip() or role.strip() in found:
            why = "a role is named twice" if role.strip() in found else "expected ROLE=NAME,ROLE=NAME"
            raise UsageError(f"--columns {text}", why, "for example: --columns image=path,attr=colour,obj=type")
        found[role.strip()] = name.strip()
    return found


def _say_reading(read_as: dict) -> None:
    """Print on stderr which column or folder was taken for what; nothing if no choice was needed."""
    facts = {key: value for key, value in read_as.items() if key != "layout"}
    if not facts:
        return
    say(f"read as: {read_as['layout']}")
    for key, value in facts.items():
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        say(f"  {key}: {text}")


def _label_names(attributes, objects, classes, unseen):
    from czsl.data.importing.classnames import ClassNames
    from czsl.data.importing.foldernames import FolderNames
    from czsl.errors import UsageError

    if not classes and unseen is None:
        return FolderNames.read(attributes, objects)
    if attributes or objects:
        raise UsageError("--attributes and --objects with plain classes", "a class has neither", "drop them, or --classes")
    return ClassNames.read(unseen)


@data.command()
@click.argument("folder")
@max_pixels
@as_json
def verify(folder, max_pixels, as_json):
    """Check the dataset FOLDER: hash and decode every image, compare labels and counts.

    Exit code 3 if anything is damaged.
    """
    from czsl.data.verify import verify as check
    from czsl.errors import DataError

    with progress("checking") as advance:
        report = check(folder, max_pixels, progress=advance)
    if as_json:
        print_json(report.to_json())
    else:
        print_problems(report.problems)
        number = sum(report.images.values())
        print_text(f"{report.name}: {number:,} images checked, {report.bad} unusable or damaged")
    if report.bad:
        kinds = sorted({problem.kind for problem in report.problems if problem.bad})
        raise DataError(f"{folder} does not pass: {report.bad} problems", ", ".join(kinds), "import or copy the data again")


@data.command()
@click.argument("folder")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with counts, problems and sample images."
)
@click.option("--samples", type=click.IntRange(0), default=2, show_default=True, help="--html: images per composition.")
@as_json
def stats(folder, html, samples, as_json):
    """Describe the dataset FOLDER, or the built-in data: toy."""
    from czsl.data.stats import stats as describe
    from czsl.data.table import open_data

    opened = open_data(folder)
    with progress("reading") as advance:
        found = describe(opened, advance)
    if html:
        from czsl_cli.data_page import write_data_page

        with progress("drawing") as advance:
            write_data_page(html, opened, found, samples, advance)
        say(f"page: {html}")
    if as_json:
        print_json(found)
        return
    parts = list(found["splits"].values())
    noun, nouns = ("class", "classes") if "classes" in found else ("pair", "pairs")
    rows: dict[str, list] = {}
    for what in ("images", nouns):
        rows[what] = [part[what]["all"] for part in parts]
        for group in ("seen", "unseen"):
            rows[f"  {group}" if what == nouns else f"  of {group} {nouns}"] = [part[what][group] for part in parts]
    rows[f"images a {noun}"] = [spread(part[f"images_a_{noun}"]) for part in parts]
    rows[f"{nouns} without images"] = [part[f"{nouns}_without_images"] for part in parts]
    sizes, twins = found["image"], found["duplicates"]
    print_text(f"{found['name']}: {found['images']:,} images in {found['folder']}")
    print_splits(list(found["splits"]), rows)
    if "classes" in found:
        print_text(f"{found['classes']:,} classes")
    else:
        labels = f"{found['attributes']} attributes x {found['objects']} objects"
        print_text(f"{labels}: {found['open_world']:,} pairs in the open world, {found['closed_world']:,} in the closed world")
    print_text(f"width {spread(sizes['width'])}, height {spread(sizes['height'])}, bytes {spread(sizes['bytes'])}")
    print_text("(three numbers: minimum, median, maximum)")
    print_text(f"decoded with {decoded(found['decode'])}")
    print_text(
        f"{twins['groups']} groups of identical images; {twins['across_splits']} across splits, {twins['train_and_test']} "
        f"in train and test, {twins['conflicting_labels']} with conflicting labels"
    )
    print_text(f"sha256 {found['sha256']}")


@data.command()
@click.argument("folder")
@click.argument("dest", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["files", "imagefolder", "table", "coco"]),
    default="files",
    show_default=True,
    help="files: folders named after labels; imagefolder: Hugging Face; table: manifest.csv and images; coco: JSON and images.",
)
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="Split to take images from.  [default: test for files, else all]"
)
@click.option("--limit", type=click.IntRange(1), help="Number of images per split, spread over the labels.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the choice.")
def export(folder, dest, form, split, limit, seed):
    """Write images of the dataset FOLDER (or toy) below DEST, as files or in the form of another program.

    Importing a whole dataset that was exported as imagefolder, table or coco gives the same dataset again, with the same hash.
    """
    from czsl.compositions import SPLITS
    from czsl.data.exchange import export_dataset
    from czsl.data.export import export as write_files
    from czsl.data.table import open_data

    data = open_data(folder)
    with progress("writing") as advance:
        if form == "files":
            count = write_files(data, split or "test", dest, limit, seed, advance)
        else:
            count = export_dataset(data, form, dest, (split,) if split else SPLITS, limit, seed, advance)
    print_text(f"{count:,} images below {dest}")
    if form != "files" and (split or limit):
        say("this is a part of the dataset: importing it gives another one")


# -- printing ------------------------------------------------------------------------------------------------------
@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, as the callback (done, total) that the data functions take."""
    with progress_bar() as bar:
        yield lambda done, total: bar.update(what, done, total)


def print_splits(columns: Sequence[str], rows: dict[str, list]) -> None:
    """A table with a column for each split."""
    cells = [[name, *(f"{v:,}" if isinstance(v, int) else v for v in values)] for name, values in rows.items()]
    print_table(["", *columns], cells)


def print_problems(problems: Sequence[Problem], complete: Path | None = None) -> None:
    """The problems by kind, the unusable ones first; at most `MAX_SHOWN` of each."""

    def order(problem: Problem) -> tuple[bool, str]:
        return not problem.bad, problem.kind

    for (_, kind), group in groupby(sorted(problems, key=order), key=order):
        found = list(group)
        print_text()
        print_text(f"{kind}: {len(found):,}")
        for problem in found[:MAX_SHOWN]:
            names = ", ".join(problem.where[:MAX_NAMES]) + (", ..." if len(problem.where) > MAX_NAMES else "")
            line = f"{names} ({problem.done})" + (f": {problem.detail}" if problem.detail else "")
            print_text(f"  {line}")
        if len(found) > MAX_SHOWN:
            where = f"all in {complete}" if complete else "--json lists all"
            print_text(f"  and {len(found) - MAX_SHOWN:,} more; {where}")
    if problems:
        print_text()


def decoded(options: dict[str, str]) -> str:
    """Return a description of how images are decoded."""
    return f"orientation {options['orientation']}, background {options['background']}"


def spread(values: dict | None) -> str:
    """Minimum, median and maximum in short."""
    if values is None:
        return "-"
    median = f"{values['median']:,.1f}".removesuffix(".0")
    return f"{values['min']:,} / {median} / {values['max']:,}"
