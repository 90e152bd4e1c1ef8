"""``czsl explain``: why an image is named as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_json, print_table, progress_bar, say
from czsl_cli.inputs import tell_decoding
from czsl_cli.options import decode_options, named_run
from czsl_cli.point_options import bias_option, ready_point

if TYPE_CHECKING:
    from PIL import Image

    from cluster.explain import ExplainedPrediction, TrainingImages
    from czsl.runs.run import Run
    from methods.explanation import HeatMap, Part
    from methods.method import Method

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MAP_SIZE = 240  # pixels of a map on the page
WHOLE_SIZE = 380  # of the image itself


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN] IMAGE [KEY=VALUE]...")
@named_run(others="words")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--method", "-m", help="The newest run of this method; or without a run one that needs no training.")
@click.option("--data", "-d", help="Labels for a method without a run: a dataset folder, or `toy`.")
@click.option("--pairs", type=FILE, help="Labels for a method without a run: a file with `attribute,object` a line.")
@click.option("--classes", type=FILE, help="Labels for a method without a run: a file of plain classes, one a line.")
@click.option("--clip", help="CLIP for a method without a run (`czsl train --help`).  [default: tiny]")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights for it.")
@click.option(
    "--composition",
    "-c",
    "texts",
    multiple=True,
    help='Explain this one, e.g. "wet dog" (or a class), seen or not; may be given several times.',
)
@click.option("--top", "-k", type=click.IntRange(1), default=3, show_default=True, help="Number of best compositions to explain.")
@bias_option
@decode_options("as the run remembers; without a run `exif` and `white`")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with heat maps and pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print everything numeric as JSON, heat maps included.")
def explain(words, run, texts, top, bias, html, as_json, orientation, background, **which) -> None:
    """Show what the best compositions of IMAGE (or those given) owe their scores to.

    \b
      czsl explain dog.jpg --html why.html
      czsl explain RUN dog.jpg --composition "wet dog" --json
      czsl explain dog.jpg --method lazsl --data mydata --clip ViT-L-14 num_regions=60

    msci and troika: where the words look. lazsl: which region supports which phrase. comclip: what the attribute and the object see of
    the image. clusPro: the nearest prototypes and the training images that they stand for. gde: the directions of the words and the
    training images along them. All others: what their branches say.
    """
    if not words:
        raise click.UsageError("no image to explain: czsl explain [RUN] IMAGE")
    image, overrides = FILE.convert(words[0], None, click.get_current_context()), words[1:]
    from czsl.data.images import BadImage, decode, read_image_file
    from czsl.data.photographs import AS_SHOWN, DecodeOptions
    from czsl.errors import DataError
    from czsl.evaluation import OperatingPoint

    def decoded(options: DecodeOptions = AS_SHOWN):
        try:
            return decode(read_image_file(image), options=options)
        except BadImage as error:
            raise DataError(f"{image}: {error.kind}", error.reason, error.fix) from None

    decoded()  # a bad image raises before a model is loaded
    subject = _subject(overrides, run, **which)
    asked_decoding = {"orientation": orientation, "background": background}
    tell_decoding(subject.method.decode, asked_decoding)
    picture = decoded(subject.method.decode.changed(**asked_decoding))
    from cluster.explain import explain as explain_image
    from cluster.explain import training_images

    method, pairs, asked = _candidates(subject, texts)
    point = OperatingPoint() if isinstance(bias, str) else OperatingPoint().given(bias)
    if subject.run is not None:
        point = ready_point(subject.run, which["checkpoint"], bias)
    with progress_bar() as bar:
        training, note = training_images(method, subject.run, bar.update)
        predictions = explain_image(
            method, picture, image.name, pairs, asked=asked, top=top, training=training, space=subject.method.space, point=point
        )
    notes = [
        *([note] if note else []),
        *dict.fromkeys(text for prediction in predictions for text in prediction.explanation.notes),
    ]
    if as_json:
        print_json({**_content(image, subject, predictions, training, notes), "operating_point": point.brief()})
    else:
        _print(predictions)
    for text in notes:
        say(text)
    if html:
        write_explanation(html, image.name, picture, subject, predictions, training, notes)
        say(f"page: {html}")
    elif not as_json and any(_drawn(part) for prediction in predictions for part in prediction.explanation.parts):
        say("there are pictures to see: --html FILE")


# -- subject of an explanation ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """A method with the labels that it was trained on or given, its run if there is one, and its name for people."""

    method: Method
    run: Run | None
    title: str

    @property
    def labels(self) -> str:
        """Return what it names: ``compositions`` or ``classes``."""
        return "classes" if "classes" in self.method.space.vocabulary else "compositions"


def _subject(overrides, run_path, checkpoint, method, data, pairs, classes, clip, clip_weights) -> Subject:
    from czsl.errors import UsageError
    from czsl_cli.runs import chosen_run, usable_checkpoint
    from methods.registry import canonical_name, config_class

    name = canonical_name(method) if method else None
    loose = {
        "--data": data, "--pairs": pairs, "--classes": classes, "--clip": clip, "--clip-weights": clip_weights,
        "KEY=VALUE": overrides or None,
    }  # fmt: skip
    given = [key for key, value in loose.items() if value is not None]
    if run_path is None and name and not config_class(name).trains and (data or pairs or classes):
        return _untrained(name, overrides, data, pairs, classes, clip, clip_weights)
    if given:
        why = f"{name} has to be trained" if name and config_class(name).trains else "a run has its own"
        fix = "drop it, or name a method that needs no training with --method and its labels with --data, --pairs or --classes"
        raise UsageError(f"{given[0]} is for a method without a run", why, fix)
    run = chosen_run(_newest(name, config_class(name).trains).path if run_path is None and name else run_path)
    if name and run.config.method != name:
        raise UsageError(f"{run.path.name} is a run of {run.config.method}", f"--method is {name}", "give one of them")
    usable_checkpoint(run, checkpoint)
    from methods.loading import load

    return Subject(load(run, checkpoint), run, f"{run.config.method}, run {run.path.name}")


def _newest(name: str, trains: bool) -> Run:
    from czsl.errors import UsageError
    from czsl.runs.run import Run

    files = sorted(Path("runs").glob("*/config.yaml"), key=lambda p: p.stat().st_mtime, reverse=True)
    for file in files:
        run = Run(file.parent)
        if run.config.method == name:
            say(f"using the newest run of {name}: runs/{run.path.name}")
            return run
    fix = (
        f"czsl train --method {name}, or --run RUN"
        if trains
        else "give its labels: --data DATASET, --pairs FILE or --classes FILE"
    )
    raise UsageError(f"no run of {name} in runs/", "the explanation needs a trained method or labels", fix)


def _untrained(name, overrides, data, pairs, classes, clip, clip_weights) -> Subject:
    from czsl.data.table import open_data
    from czsl.errors import UsageError
    from czsl.spaces import space_from_json
    from czsl_cli.config import resolve
    from czsl_cli.predict import read_names, read_pairs
    from czsl_cli.runs import tell_unknown_words
    from methods.building import build, clip_for

    given = [key for key, value in {"--data": data, "--pairs": pairs, "--classes": classes}.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both give labels", "candidates come from one place", "give one of them")
    config = resolve({"method": name, "data": data, "clip": clip, "clip_weights": clip_weights}, overrides)
    if pairs:
        named = read_pairs(pairs)
        attributes, objects = (list(dict.fromkeys(x)) for x in zip(*named, strict=True))
        space = space_from_json({"attributes": attributes, "objects": objects, "test_pairs": named})
    elif classes:
        space = space_from_json({"classes": read_names(classes), "seen": []})
    else:
        space = open_data(data).space
    tell_unknown_words(config.clip, (*space.attributes, *space.objects))
    method = build(name, space, clip_for(name, config.model, config.clip, config.clip_weights), config.model).eval()
    return Subject(method, None, f"{name} on {config.clip}")


def _candidates(subject: Subject, texts: tuple[str, ...]):
    """The method, on its device and with new words if given, its candidates, and the compositions given by name."""
    from czsl.compositions import index_pairs
    from czsl.gpus import own_device
    from czsl.spaces import space_from_json
    from czsl_cli.predict import names_in, tell_new_words
    from czsl_cli.runs import tell_unknown_words
    from czsl_cli.search import candidates, read_composition

    method, space = subject.method, subject.method.space
    asked = list(dict.fromkeys(read_composition(text, space) for text in texts))
    pairs = space.closed_pairs
    if asked:
        content, named = candidates(space, asked)
        tell_new_words(content, space)
        tell_unknown_words(method.clip.name, names_in(content))
        new = space_from_json(content)
        if (new.attributes, new.objects) != (space.attributes, space.objects):
            method = method.for_space(new)
        pairs = index_pairs(named, new.attributes, new.objects)
    return method.to(own_device()).eval(), pairs, asked


# -- what is printed -------------------------------------------------------------------------------------------------
def _drawn(part: Part) -> bool:
    from methods.explanation import Figures, Shares

    return not isinstance(part, Figures | Shares)


def _named(content: Any, prediction: ExplainedPrediction, training: TrainingImages | None) -> Any:
    """JSON in which places of training images have become their names and labels."""
    if isinstance(content, list):
        return [_named(x, prediction, training) for x in content]
    if not isinstance(content, dict):
        return content
    if content.get("kind") == "neighbours" and training is not None:
        split, rows = training.split, prediction.rows[content["places"]]
        images = [
            {"image": split.ids[row], "labels": list(split.space.pair_names(split.pairs[row])), "cosine": cosine}
            for row, cosine in zip(rows.tolist(), content["cosines"], strict=True)
        ]
        return {"kind": "neighbours", "title": content["title"], "images": images}
    return {key: _named(value, prediction, training) for key, value in content.items()}


def _content(image: Path, subject: Subject, predictions: list[ExplainedPrediction], training, notes: list[str]) -> dict[str, Any]:
    from czsl.compositions import label_of

    run = str(subject.run.path) if subject.run else None
    compositions = [
        {
            **label_of(a.attr, a.obj), "score": a.score, "calibrated": a.calibrated, "prob": a.prob, "rank": a.rank, "seen": a.seen,
            "explanation": _named(a.explanation.to_json(), a, training),
        }
        for a in predictions
    ]  # fmt: skip
    return {"image": str(image), "method": subject.method.name, "run": run, "notes": notes, subject.labels: compositions}


def _ranking(predictions: list[ExplainedPrediction]) -> tuple[list[str], list[list[Any]]]:
    rows = [[a.rank, a.name, f"{a.calibrated:.3f}", f"{a.prob:.4f}", "yes" if a.seen else "no"] for a in predictions]
    return ["rank", "composition" if predictions[0].attr else "class", "score", "probability", "seen in training"], rows


def _shares_table(part) -> tuple[list[str], list[list[Any]]]:
    rows = [[name, *(f"{x:.4f}" for x in row)] for name, row in zip(part.parts, part.values.tolist(), strict=True)]
    return ["part", *part.columns], [*rows, ["sum", *(f"{x:.4f}" for x in part.totals)]]


def _print(predictions: list[ExplainedPrediction]) -> None:
    from methods.explanation import Figures, Shares

    print_table(*_ranking(predictions))
    for prediction in predictions:
        for part in prediction.explanation.parts:
            if isinstance(part, Figures):
                print_table(part.columns, part.rows, title=f"{prediction.name}: {part.title}")
            elif isinstance(part, Shares):
                print_table(*_shares_table(part), title=f"{prediction.name}: {part.title}")


# -- the page --------------------------------------------------------------------------------------------------------
def write_explanation(path: Path, name: str, image: Image.Image, subject: Subject, predictions, training, notes) -> None:
    """Write the page of one image's explanation; ``name`` is what the image is called."""
    from czsl_cli.overlays import canvas
    from czsl_cli.pages import Card, Gallery, Table, picture, write_page

    columns, rows = _ranking(predictions)
    sections: list[Any] = [
        Gallery("The image", [Card(picture(canvas(image), 480), name)], size=WHOLE_SIZE),
        Table(subject.labels.capitalize(), columns, rows, "Probabilities and ranks are among all candidates."),
    ]
    for prediction in predictions:
        sections += _sections(prediction, image, training)
    write_page(path, f"Why {name} is named so", sections, [f"By {subject.title}.", *notes])


def _sections(prediction: ExplainedPrediction, image: Image.Image, training: TrainingImages | None) -> list[Any]:
    """Sections of one composition: maps first, a gallery a group."""
    from czsl_cli.overlays import box_colour, draw_boxes
    from czsl_cli.pages import Card, Gallery, Table, picture
    from methods.explanation import Boxes, Figures, HeatMap, Neighbours, Shares

    name, found = prediction.name, list[Any]()
    maps: dict[str, list[HeatMap]] = {}
    for part in prediction.explanation.parts:
        if isinstance(part, HeatMap):
            maps.setdefault(part.group, []).append(part)
        elif isinstance(part, Boxes):
            listed = [f"{i} ({box_colour(i - 1)}): {text}" for i, text in enumerate(part.captions, 1)]
            card = Card(picture(draw_boxes(image, part.boxes), 480), "; ".join(listed))
            found.append(Gallery(f"{name}: {part.title}", [card], part.text, WHOLE_SIZE))
        elif isinstance(part, Shares):
            found.append(Table(f"{name}: {part.title}", *_shares_table(part), part.text))
        elif isinstance(part, Figures):
            found.append(Table(f"{name}: {part.title}", part.columns, part.rows, part.text))
        elif isinstance(part, Neighbours) and training is not None:
            found.append(_training_gallery(f"{name}: {part.title}", part, prediction, training))
    return [*(_heat_gallery(f"{name}: {group}", parts, image) for group, parts in maps.items()), *found]


def _heat_gallery(title: str, maps: list[HeatMap], image: Image.Image):
    from czsl_cli.overlays import COLOURS_IN_WORDS, draw_heat
    from czsl_cli.pages import Card, Gallery, picture

    cards = [Card(picture(draw_heat(image, m.values, m.extent), 480), m.title, _range(m)) for m in maps]
    cropped = any(tuple(m.extent) != (0, 0, *image.size) for m in maps)
    grey = " Grey: outside of what CLIP sees." if cropped else ""
    return Gallery(title, cards, f"Colours: {COLOURS_IN_WORDS}.{grey}", MAP_SIZE)


def _training_gallery(title: str, part, prediction: ExplainedPrediction, training: TrainingImages):
    from czsl.data.images import BadImage, decode
    from czsl_cli.pages import Card, Gallery, picture

    split, cards = training.split, []
    for row, cosine in zip(prediction.rows[part.places].tolist(), part.cosines, strict=True):
        try:
            shown = picture(decode(split.image_bytes(row), options=split.decode))
        except BadImage:
            shown = ""
        cards.append(Card(shown, split.space.pair_name(split.pairs[row]), f"{cosine:.2f}"))
    return Gallery(title, cards, part.text)


def _range(part: HeatMap) -> str:
    low, high = float(part.values.min()), float(part.values.max())
    if part.even is None:
        return f"{low:.3g} to {high:.3g}, {part.note}"
    rest = f"; {100 * part.elsewhere:.1f} % on the class token" if part.elsewhere is not None else ""
    return f"{low / part.even:.2f} to {high / part.even:.2f} times an even spread{rest}"
