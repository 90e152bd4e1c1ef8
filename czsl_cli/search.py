"""``czsl search``: the images that show a composition."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_json, print_table, progress_bar, say, warn
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
from czsl_cli.point_options import bias_option, ready_point

if TYPE_CHECKING:
    from PIL import Image

    from czsl.compositions import CompositionSpace


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN] COMPOSITION...")
@named_run(others="words")
@click.option(
    "--in",
    "images",
    multiple=True,
    metavar="IMAGES",
    help="Images to rank: a file, folder, archive, pattern, or - for a list on stdin; may be given several times.",
)
@images_option
@image_options
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--top", "-k", type=click.IntRange(1), default=12, show_default=True, help="Images to show for each composition.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page that shows them.")
@bias_option
@decode_options("as the run remembers")
@reading_options
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Print the ranking as JSON.")
def search(
    words, run, images, table, column, root, all_files, checkpoint, top, html, bias, as_json, orientation, background, **options
) -> None:
    """Rank images by how likely they show a COMPOSITION (or a plain class), seen in training or not.

    \b
      czsl search "wet dog" --in photos/ --html wet_dog.html
      czsl search runs/mine "wet dog" "peeled,granny smith" --in photos/ --in more.zip --json

    RUN (or --run RUN) is a run folder, the newest in runs/ by default. An image's place is the probability of the composition among all
    compositions of the run's label space (and those asked for) at the run's operating point: on photographs that ranks better than the
    bare score. Words that training never saw are taken from CLIP.
    """
    where = where_of(options)
    fast_jpeg, reading = reading_of(options, where)
    from czsl.compositions import label_of
    from czsl.data.images import decode
    from czsl.errors import UsageError
    from czsl_cli.predict import names_in, tell_new_words
    from czsl_cli.runs import chosen_run, tell_unknown_words, usable_checkpoint

    if not words:
        why = "no words were given" if run is None else f"{run} is the run"
        raise UsageError("no composition to search for", why, 'czsl search RUN "wet dog" --in FOLDER')
    inputs = gather_images(images, table, column=column, root=root, all_files=all_files)
    source, names = inputs.source, inputs.source.names
    run = chosen_run(run)
    usable_checkpoint(run, checkpoint)
    wanted = list(dict.fromkeys(read_composition(text, run.space) for text in words))
    space, pairs = candidates(run.space, wanted)
    tell_new_words(space, run.space)
    tell_unknown_words(run.config.clip, names_in(space))
    from cluster.answers import Answers
    from cluster.work.request import PredictConfig

    asked = {"orientation": orientation, "background": background}
    tell_decoding(run.config.decode, asked)
    which = {"run": str(run.path), "checkpoint": checkpoint, "space": space, "pairs": pairs}
    point = ready_point(run, checkpoint, bias)
    config = PredictConfig(**which, wanted=[list(pair) for pair in wanted], top=1, bias=bias, fast_jpeg=fast_jpeg, **asked)
    found: list[list[dict[str, Any]]] = [[] for _ in wanted]
    bad = []
    answers = Answers(config, source, names, reading["keep"], where)
    earlier = answers.find(reading["profile"])
    with progress_bar() as bar:
        if earlier is not None:
            tell_earlier()
            stream = iter(earlier)
        else:
            from cluster.predict import predict_files

            stream = answers.kept(predict_files(config, source, names, **where, **reading, progress=bar.update, notice=warn))
        for done, record in enumerate(stream, 1):
            bar.update("searching", done, len(names))
            if record["error"]:
                bad.append(record)
                continue
            best = {key: value for key, value in record["predictions"][0].items() if key in ("attr", "obj", "class")}
            for ranked, answer in zip(found, record["wanted"], strict=True):
                figures = {key: answer[key] for key in ("prob", "score", "calibrated")}
                ranked.append({"image": record["image"], **figures, "best": best})
    seen = {tuple(run.space.pair_names(pair)) for pair in run.space.train_pairs}
    results = [
        {
            **label_of(*pair),
            "seen": pair in seen,
            "operating_point": point.brief(),
            **({"decoding": "fast-jpeg"} if fast_jpeg else {}),
            "images": sorted(ranked, key=lambda r: (-r["prob"], r["image"]))[:top],
        }
        for pair, ranked in zip(wanted, found, strict=True)
    ]
    if as_json:
        print_json(results)
    else:
        _print(results)
    if html:
        how = run.config.decode.changed(**asked)
        _write_page(html, lambda name: decode(source.open(name), options=how), run.path.name, results, len(names) - len(bad))
        say(f"page: {html}")
    for record in bad:
        warn(f"{record['image']}: {record['error']}")
    tell_left_out(inputs)
    tell_profile(reading["profile"])
    if bad:
        say(f"{len(bad)} of {len(names)} images could not be read")
    if bad or inputs.refused:
        sys.exit(6)


def read_composition(text: str, space: CompositionSpace) -> tuple[str, str]:
    """Attribute and object of ``wet dog`` or ``wet,dog``: in the spelling of the label space if it holds the words.

    Names may hold spaces: the cut that leaves most known words counts, else the first space. Of plain classes the whole text is one,
    and its attribute is empty.

    Raises
    ------
    UsageError
        One word, or none.
    """
    from czsl.classes import NO_ATTRIBUTE, ClassSpace
    from czsl.compositions import prompt_name
    from czsl.errors import UsageError

    if isinstance(space, ClassSpace) and text.strip():
        return NO_ATTRIBUTE, {prompt_name(n): n for n in space.classes}.get(prompt_name(text), text.strip())
    spelt = [{prompt_name(n): n for n in names} for names in (space.attributes, space.objects)]
    if "," in text:
        cuts = [tuple(part.strip() for part in text.split(",", 1))]
    else:
        words = text.split()
        cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    cuts = [cut for cut in cuts if all(cut)]
    if not cuts:
        raise UsageError(f"{text!r} is not a composition", "an attribute and an object", 'write "wet dog", or "wet,dog"')
    attribute, obj = max(cuts, key=lambda cut: sum(prompt_name(x) in names for x, names in zip(cut, spelt, strict=True)))
    return spelt[0].get(prompt_name(attribute), attribute), spelt[1].get(prompt_name(obj), obj)


def candidates(space: CompositionSpace, wanted: list[tuple[str, str]]) -> tuple[dict[str, Any], list[list[str]]]:
    """The label space with the wanted words in it, and its closed world with the wanted pairs in it."""
    words = {"attributes": [a for a, _ in wanted], "objects": [o for _, o in wanted], "classes": [o for _, o in wanted]}
    names = {kind: list(dict.fromkeys([*known, *words[kind]])) for kind, known in space.vocabulary.items()}
    closed = [space.pair_names(pair) for pair in space.closed_pairs]
    pairs = list(dict.fromkeys([*closed, *wanted]))
    return {**space.to_json(), **names}, [list(pair) for pair in pairs]


def _print(results: list[dict[str, Any]]) -> None:
    from czsl.compositions import label_words

    for result in results:
        rows = [[rank, r["image"], f"{r['prob']:.3f}", label_words(r["best"])] for rank, r in enumerate(result["images"], 1)]
        what = "class" if "class" in result else "composition"
        print_table(["rank", "image", "probability", f"top-1 {what}"], rows, title=_title(result))


def _title(result: dict[str, Any]) -> str:
    from czsl.compositions import label_words

    return label_words(result) + ("" if result["seen"] else " (never seen in training)")


def _write_page(path: Path, load: Callable[[str], Image.Image], run: str, results: list[dict[str, Any]], images: int) -> None:
    from czsl_cli.pages import Card, Gallery, picture, write_page

    sections = []
    for result in results:
        cards = []
        for r in result["images"]:
            hit = all(result[key] == value for key, value in r["best"].items())
            shown = picture(load(r["image"]))
            cards.append(Card(shown, r["image"], f"{100 * r['prob']:.1f} %", "good" if hit else ""))
        sections.append(Gallery(_title(result), cards))
    intro = [f"The most probable of {images:,} images, by run {run}. A frame: no other label is more probable."]
    write_page(path, "Images found", sections, intro)
