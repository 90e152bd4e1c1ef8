"""``czsl data``: import labelled images, check a dataset folder, describe it."""

from __future__ import annotations

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

MOST_SHOWN = 10  # of each kind of problem; --json and import.json have all
MOST_NAMES = 4

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
@click.option(
    "--layout",
    type=click.Choice(["auto", "published", "tree", "manifest"]),
    default="auto",
    show_default=True,
    help="How SOURCE is arranged.",
)
@click.option("--name", help="Name of the dataset.  [default: that of SOURCE]")
@click.option("--attributes", type=click.Path(path_type=Path), help="Tree: file of attribute names, one a line.")
@click.option("--objects", type=click.Path(path_type=Path), help="Tree: file of object names, one a line.")
@click.option("--classes", is_flag=True, help="Labels are plain classes: a folder for each, or a manifest's column class.")
@click.option("--unseen", type=click.Path(path_type=Path), help="Classes: file of those that training does not get, one a line.")
@click.option("--seed", type=int, default=0, show_default=True, help="Tree without train/ val/ test/: of the split.")
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
@as_json
def import_(
    source,
    dest,
    layout,
    name,
    attributes,
    objects,
    classes,
    unseen,
    seed,
    max_bad,
    max_pixels,
    drop_duplicates,
    force,
    as_json,
    orientation,
    background,
    all_files,
):
    """Import images from SOURCE into the dataset folder DEST.

    SOURCE is a folder in the layout of MIT-States, UT-Zappos and C-GQA (pair lists, images/ and a .t7 or .json), a folder of
    folders named "wet dog", wet_dog or wet/dog, optionally below train/ val/ test/, or a manifest (.csv, .parquet) with the
    columns image, attr, obj, split.

    Without train/ val/ test/ a tree is split by pair: about 15 % of the pairs are held out for val, 20 % for test.

    With --classes labels are plain classes: a folder for each, or a manifest with the columns image, class, split. Classes without
    training images are unseen; --unseen names them where the source does not show it.

    Images that cannot be used are skipped and listed; identical images are listed and kept.
    """
    from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset

    names = _label_names(attributes, objects, classes, unseen)
    options = ImportOptions(
        layout, name, names, seed, max_bad, max_pixels, drop_duplicates, force, orientation, background, all_files
    )
    try:
        with progress("importing") as advance:
            report = import_dataset(source, dest, options, advance)
    except TooManyBadError as error:
        if as_json:
            print_json(error.report.to_json())
        else:
            print_problems(error.report.problems)
        raise
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
    print_text(f"decoded with {decoded(report.decode)}")
    print_text(f"sha256 {report.sha256}")
    print_problems(report.problems, Path(report.folder or "") / "import.json")
    if report.classes and report.classes["seen"] == report.classes["all"]:
        say("every class is seen, so nothing is zero-shot here; name unseen classes with --unseen FILE")


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
@as_json
def stats(folder, as_json):
    """Describe the dataset FOLDER, or the built-in data: toy."""
    from czsl.data.stats import stats as describe
    from czsl.data.table import open_data

    with progress("reading") as advance:
        found = describe(open_data(folder), advance)
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
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True, help="Which images.")
@click.option("--limit", type=click.IntRange(1), help="At most this many, spread over the labels.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice.")
def export(folder, dest, split, limit, seed):
    """Write images of the dataset FOLDER (or toy) as files below DEST, in folders named after their composition or class."""
    from czsl.data.export import export as write_files
    from czsl.data.table import open_data

    with progress("writing") as advance:
        count = write_files(open_data(folder), split, dest, limit, seed, advance)
    print_text(f"{count:,} images below {dest}")


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
    """The problems by kind, the unusable ones first; at most `MOST_SHOWN` of each."""

    def order(problem: Problem) -> tuple[bool, str]:
        return not problem.bad, problem.kind

    for (_, kind), group in groupby(sorted(problems, key=order), key=order):
        found = list(group)
        print_text()
        print_text(f"{kind}: {len(found):,}")
        for problem in found[:MOST_SHOWN]:
            names = ", ".join(problem.where[:MOST_NAMES]) + (", ..." if len(problem.where) > MOST_NAMES else "")
            line = f"{names} ({problem.done})" + (f": {problem.detail}" if problem.detail else "")
            print_text(f"  {line}")
        if len(found) > MOST_SHOWN:
            where = f"all in {complete}" if complete else "--json lists all"
            print_text(f"  and {len(found) - MOST_SHOWN:,} more; {where}")
    if problems:
        print_text()


def decoded(options: dict[str, str]) -> str:
    """How images are decoded, for people."""
    return f"orientation {options['orientation']}, background {options['background']}"


def spread(values: dict | None) -> str:
    """Minimum, median and maximum in short."""
    if values is None:
        return "-"
    median = f"{values['median']:,.1f}".removesuffix(".0")
    return f"{values['min']:,} / {median} / {values['max']:,}"
