"""``czsl add``: images and new words for a finished run, in place, with a history and a way back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from czsl_cli.console import print_json, print_table, progress_bar, say, short, warn
from czsl_cli.options import named_run

MAX_SKIPPED = 10  # of those left out; --json has all


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path), metavar="RUN [PHOTOS]")
@named_run(others="photos", default="")
@click.option(
    "--attributes", type=click.Path(path_type=Path), help="File of new attributes, one a line, for unclear folder names."
)
@click.option("--objects", type=click.Path(path_type=Path), help="File of new objects, one a line, for unclear folder names.")
@click.option("--skip-known", is_flag=True, help="Leave out images that the run has already, instead of refusing them.")
@click.option(
    "--max-bad", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="FRACTION",
    help="Leave out unusable images up to this share, instead of refusing them.",
)  # fmt: skip
@click.option("--undo", is_flag=True, help="Take the last addition back.")
@click.option("--history", is_flag=True, help="List what was added.")
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be added; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def add(run, photos, attributes, objects, skip_known, max_bad, undo, history, dry_run, as_json) -> None:
    """Add the images of the folder PHOTOS to RUN, a finished run of gde, in place.

    PHOTOS holds folders named "wet dog", wet_dog or wet/dog, as for `czsl data import`. Names may be new: the run then also covers these
    words. Each image is read and compared with those that the run has before anything changes. It takes seconds; what was chosen on
    validation images stays.

    \b
      czsl add runs/tagger new_photos/
      czsl add runs/tagger --history
      czsl add runs/tagger --undo
    """
    from czsl.runs.run import Run

    if run is None and len(photos) == 2:
        Run(photos[0])  # raises: it is not a run
    if run is None:
        raise click.UsageError("name the run that is changed: czsl add RUN PHOTOS")
    if len(photos) + undo + history != 1:
        raise click.UsageError("give one folder PHOTOS, or one of --undo and --history")
    if (undo or history) and (attributes or objects or skip_known or dry_run or max_bad):
        raise click.UsageError("--undo and --history take no other option than --json")
    chosen = Run(run)
    from cluster.add import add as add_images
    from cluster.add import history as additions
    from cluster.add import undo as take_back
    from czsl.data.importing.foldernames import read_names
    from czsl_cli.runs import tell_unknown_words

    if history:
        _history(additions(chosen), as_json)
        return
    if undo:
        taken = take_back(chosen)
        if as_json:
            print_json(taken)
        say(f"undone: {len(taken['images'])} images of {taken['folder']}, added on {taken['time']}")
        return
    new = [read_names(file) if file else () for file in (attributes, objects)]
    with progress_bar() as bar:
        done = add_images(
            chosen, photos[0], attributes=new[0], objects=new[1], skip_known=skip_known, max_bad=max_bad, dry_run=dry_run,
            progress=bar.update,
        )  # fmt: skip
    for text in done.notes:
        warn(text)
    tell_unknown_words(chosen.config.clip, [*chosen.space.attributes, *chosen.space.objects, *new[0], *new[1]])
    for name, why in done.skipped[:MAX_SKIPPED]:
        say(f"left out: {name}: {why}")
    if len(done.skipped) > MAX_SKIPPED:
        say(f"... and {len(done.skipped) - MAX_SKIPPED} more; --json lists all")
    if as_json:
        print_json(vars(done))
    else:
        _print(done)
    counts = f"{len(done.images)} images of {len(_counts(done))} compositions"
    say(f"would add {counts}" if dry_run else f"added {counts}; back with: czsl add {short(chosen.path)} --undo")


def _counts(done: Any) -> Counter[tuple[str, str]]:
    return Counter((image["attr"], image["obj"]) for image in done.images)


def _print(done: Any) -> None:
    new = {tuple(pair) for pair in done.pairs}
    rows = []
    for (attr, obj), count in sorted(_counts(done).items()):
        words = [word for word, names in ((attr, done.attributes), (obj, done.objects)) if word in names]
        note = f"new word: {', '.join(words)}" if words else "new composition" if (attr, obj) in new else ""
        rows.append([f"{attr} {obj}", count, note])
    print_table(["composition", "images", ""], rows)


def _history(additions: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(additions)
        return
    rows = [
        [one["time"], len(one["images"]), ", ".join([*one["attributes"], *one["objects"]]), len(one["pairs"]), one["folder"]]
        for one in additions
    ]
    if rows:
        print_table(["time", "images", "new words", "new compositions", "folder"], rows)
    else:
        say("nothing was added to this run")
