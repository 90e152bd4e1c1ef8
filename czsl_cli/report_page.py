"""The page of ``czsl report``: what it is made of, and its sections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from czsl_cli.console import duration, percent, short
from czsl_cli.pages import Card, Gallery, Plot, Table, picture, plot_svg, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cluster.work.evaluation import EvalConfig
    from cluster.work.progress import Progress
    from czsl.data.table import Dataset
    from czsl.evaluation import SavedEvaluation
    from czsl.evaluation.operating import OperatingPoint
    from czsl.runs.run import Run

GALLERIES = {
    "surest right": ("Surest of the right names", "good"),
    "surest wrong": ("Surest of the wrong names", "bad"),
    "least sure": ("Least sure", ""),
}
MAX_CONFUSIONS = 12
ENVIRONMENT = ("workers", "threads", "device", "trainable", "python", "machine", "git", "data_sha256", "clip_sha256")


@dataclass
class Shown:
    """An image of the gallery: its row in the split, its kind, true and given label as indices, and the label's probability."""

    row: int
    kind: str
    true: tuple[int, int]
    named: tuple[int, int]
    confidence: float
    right: bool


@dataclass
class Material:
    """Content of a report; what is unavailable is None and named in the page's notes."""

    run: Run
    eval_config: EvalConfig
    result: dict[str, Any] | None = None
    saved: SavedEvaluation | None = None
    point: OperatingPoint | None = None
    data: Dataset | None = None
    given: np.ndarray | None = None  # int64 [N, 2], the label that each image is given
    pairs: np.ndarray | None = None
    shown: list[Shown] = field(default_factory=list)
    benchmark: str | None = None  # whose published numbers stand next to the run's


def gather(run: Run, eval_config: EvalConfig, gallery: int, progress: Progress, note: Callable[[str], None]) -> Material:
    """Evaluate a run if that was not done yet, and choose the images of the gallery."""
    from cluster.experiment import measured, reason_of
    from czsl.errors import CzslError
    from czsl.runs.states import state_of
    from czsl_cli.runs import usable_checkpoint
    from methods.registry import config_class

    found = Material(run, eval_config)
    state = state_of(run, config_class(run.config.method).trains)
    if state.name != "done":
        note(f"the run is {state.name}" + (f": {state.why}" if state.why else ""))
    try:
        usable_checkpoint(run, eval_config.checkpoint)
        found.result = measured(run, eval_config, progress, note)
        _add_images(found, gallery, note)
    except CzslError as error:  # its settings and curves are worth a page without it
        note(f"its {eval_config.split} images could not be evaluated: {reason_of(error)}")
    return found


def _add_images(found: Material, gallery: int, note: Callable[[str], None]) -> None:
    from cluster.evaluate import load_or_evaluate
    from cluster.work.evaluation import open_evaluation_data
    from czsl.data.subset import Subset
    from czsl.evaluation import Candidates, OperatingPoint
    from czsl.evaluation.calibration import answers
    from czsl.evaluation.confusion import named_labels
    from methods.loading import load
    from methods.points import stored_point

    run, eval_config = found.run, found.eval_config
    saved = found.saved = load_or_evaluate(run, eval_config)
    found.point = stored_point(run, eval_config.checkpoint, eval_config.open_world)[0] or OperatingPoint()
    data: Any = open_evaluation_data(run, eval_config, load(run, eval_config.checkpoint))
    if eval_config.per_pair:
        from cluster.work.evaluation import SUBSET_SEED

        data = Subset(data, eval_config.per_pair, SUBSET_SEED)
    found.data = data
    e = saved.extremes
    found.pairs = Candidates.build(data.space, split=eval_config.split, open_world=eval_config.open_world).pairs
    found.given = named_labels(e, found.pairs, found.point.bias)
    if saved.sums is None or not saved.sums.has([found.point.composition.temperature]):
        note("no gallery: probabilities are kept for the closed world and top-1 only")
        return
    given = answers(e, saved.sums, found.point)
    order = np.argsort(-given.confidence, kind="stable")
    kinds = {
        "surest right": order[given.right[order]],
        "surest wrong": order[~given.right[order]],
        "least sure": order[::-1],
    }
    for kind, rows in kinds.items():
        for row in rows[:gallery].tolist():
            true, named = (tuple(x[row].tolist()) for x in (e.labels, found.given))
            found.shown.append(Shown(row, kind, true, named, float(given.confidence[row]), bool(given.right[row])))


# -- pages that explain ----------------------------------------------------------------------------------------------------
def explain_images(
    found: Material, page: Path, checkpoint: str, progress: Progress, note: Callable[[str], None]
) -> dict[int, str]:
    """Write a page of ``czsl explain`` for each image of the gallery; their addresses by row, relative to the report."""
    from urllib.parse import quote

    from cluster.explain import explain, training_images
    from czsl.data.images import BadImage, decode
    from czsl.errors import CzslError
    from czsl.gpus import own_device
    from czsl_cli.explain import Subject, write_explanation
    from methods.loading import load

    assert found.data is not None
    run, split = found.run, found.data.split(found.eval_config.split)
    folder = page.with_name(f"{page.stem}.files")
    method = load(run, checkpoint).to(own_device()).eval()
    subject = Subject(method, run, f"{run.config.method}, run {run.path.name}")
    training, why = training_images(method, run, progress)
    links: dict[int, str] = {}
    rows = list(dict.fromkeys(s.row for s in found.shown))
    for done, row in enumerate(rows):
        progress("explaining", done, len(rows))
        try:
            image = decode(split.image_bytes(row), options=method.decode)
            answers = explain(
                method, image, split.ids[row], method.space.closed_pairs, training=training, space=method.space, point=found.point
            )
            notes = [*([why] if why else []), *dict.fromkeys(text for a in answers for text in a.explanation.notes)]
            write_explanation(folder / f"explain-{row}.html", split.ids[row], image, subject, answers, training, notes)
        except (BadImage, CzslError) as error:
            note(f"{split.ids[row]} cannot be explained: {str(error).splitlines()[0]}")
            continue
        links[row] = f"{quote(folder.name)}/explain-{row}.html"
    return links


# -- sections --------------------------------------------------------------------------------------------------------------
def write_report(page: Path, found: Material, links: dict[int, str], notes: list[str]) -> dict[str, Figure]:
    """Write the page; returns its plots by the names of their files."""
    plots: dict[str, Figure] = {}
    sections: list[Any] = [_about(found), *_numbers(found, plots), *_published(found), *_training(found, plots)]
    sections += [*_confusions(found, plots), *_tables(found), *_galleries(found, links), *_settings(found)]
    config = found.run.config
    intro = [f"{config.method} on {Path(config.data).name}, CLIP {Path(config.clip).name}, seed {config.seed}.", *notes]
    write_page(page, f"Run {found.run.path.name}", sections, intro)
    return plots


def write_figures(plots: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each plot as SVG and PDF, the same bytes for the same plot; returns the paths."""
    import matplotlib

    from czsl.runs.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in plots.items():
        svg, pdf = (folder / f"{name}.{kind}" for kind in ("svg", "pdf"))
        write_atomically(svg, str(plot_svg(figure)).encode())
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: conferences refuse the default
            figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Producer": None})
        written += [svg, pdf]
    return written


def _about(found: Material) -> Table:
    from czsl.runs.states import seconds_of_work

    run, config = found.run, found.run.config
    named = (config.method, config.preset and f"preset {config.preset}", config.recipe and f"recipe {config.recipe}")
    rows = [
        ["method", ", ".join(filter(None, named))],
        ["data", config.data],
        ["CLIP", " ".join(filter(None, (config.clip, config.clip_weights)))],
        ["epochs, batch, learning rate", f"{config.epochs}, {config.batch}, {config.lr:g}"],
        ["time of work", duration(seconds_of_work(run))],
        ["folder", short(run.path)],
    ]  # fmt: skip
    end: dict[str, Any] = next(reversed(list(run.metrics("end"))), {})
    if memory := end.get("peak_gpu_bytes") or end.get("peak_memory_bytes"):
        rows.append(["peak memory of a worker", f"{memory / 2**30:.2f} GiB"])
    return Table("The run", ["", ""], rows)


def _numbers(found: Material, plots: dict[str, Figure]) -> list[Any]:
    from czsl_cli.compare import curves_figure, curves_in_words
    from czsl_cli.point_report import point_lines, point_table, reliability_figure, reliability_in_words

    result, sections = found.result, list[Any]()
    if result is None:
        return []
    words = {"AUC": "auc", "AUC in 20 bins": "auc_ref20", "best HM": "hm", "best seen": "seen", "best unseen": "unseen"}
    words |= {"attribute accuracy": "attr_acc", "object accuracy": "obj_acc", "T1": "T1", "top-1": "top1"}
    rows = [[word, percent(result[key])] for word, key in words.items() if key in result]
    world = "open world" if found.eval_config.open_world else "closed world"
    title = f"Numbers: {found.eval_config.split} split, {world}, {result['images']:,} images"
    sections.append(Table(title, ["percent", "over all biases"], rows))
    if "operating_point" in result:
        name, columns, lines = point_table(result)
        said = "\n".join(line[0].upper() + line[1:] + "." for line in (name, *point_lines(result)))
        sections.append(Table("Operating point", columns, lines, said))
    if found.saved is not None and result.get("auc") is not None:
        run = {"name": found.run.path.name, "auc": result["auc"], "hm": result["hm"], "op_bias": result.get("op_bias")}
        plots["seen-unseen"] = curves_figure([run], [found.saved.extremes])
        alt = curves_in_words([result | run])
        sections.append(Plot("Seen and unseen accuracy over all calibration biases", plot_svg(plots["seen-unseen"]), alt=alt))
    if "reliability" in result:
        plots["reliability"] = reliability_figure(result)
        text = f"Each point is one of {result['ece_bins']} groups of equally many images. On the line a probability means what it says."
        svg = plot_svg(plots["reliability"])
        sections.append(Plot("Reliability of the probabilities", svg, text, reliability_in_words(result)))
    return sections


def _published(found: Material) -> list[Table]:
    from czsl_cli.published import run_next_to_published

    if found.benchmark is None or found.result is None or found.data is None:
        return []
    block = run_next_to_published(found.run.config, found.result, found.benchmark, found.data)
    return [Table(block.title, block.columns, block.rows, "\n".join(block.notes))]


def _training(found: Material, plots: dict[str, Figure]) -> list[Any]:
    from czsl_cli.training_curves import loss_figure, losses, own_figure, own_figures, validation_figure

    run, sections = found.run, list[Any]()
    if (figure := loss_figure(run)) is not None:
        plots["losses"] = figure
        ends = [f"{name.replace('_', ' ')} from {y[0]:.3f} to {y[-1]:.3f}" for name, (_, y) in losses(run).items()]
        sections.append(Plot("Losses in training", plot_svg(figure), alt="Losses over the epochs: " + "; ".join(ends)))
    if (figure := validation_figure(run)) is not None:
        plots["validation"] = figure
        sections.append(Plot("Validation", plot_svg(figure), alt="Validation numbers over the epochs; the table below has them."))
        records = [r for r in run.metrics("epoch") if r.get("auc") is not None]
        keys = [k for k in ("auc", "hm", "seen", "unseen", "attr_acc", "obj_acc", "top1") if any(k in r for r in records)]
        rows = [[r["epoch"], *(percent(r.get(k)) for k in keys)] for r in records]
        sections.append(Table("Validation, epoch by epoch", ["epoch", *keys], rows, "Percent.", sortable=True))
    if (figure := own_figure(run)) is not None:
        plots["method"] = figure
        ends = [f"{name.replace('_', ' ')} from {y[0]:.3f} to {y[-1]:.3f}" for name, (_, y) in own_figures(run).items()]
        title = "Health of the prototypes" if "effective_k" in own_figures(run) else "The method's own figures"
        sections.append(Plot(title, plot_svg(figure), alt="Over the epochs: " + "; ".join(ends)))
    return sections


def _kinds(found: Material) -> dict[str, tuple[np.ndarray, np.ndarray, tuple[str, ...]]]:
    """True and given labels of each kind with their names: attributes and objects, or classes."""
    from czsl.classes import ClassSpace

    if found.saved is None or found.given is None or found.data is None:
        return {}
    space, true_N2, named_N2 = found.data.space, found.saved.extremes.labels, found.given
    if isinstance(space, ClassSpace):
        return {"class": (true_N2[:, 1], named_N2[:, 1], space.classes)}
    return {
        "attribute": (true_N2[:, 0], named_N2[:, 0], space.attributes),
        "object": (true_N2[:, 1], named_N2[:, 1], space.objects),
    }


def _plural(kind: str) -> str:
    return "classes" if kind == "class" else f"{kind}s"


def _confusions(found: Material, plots: dict[str, Figure]) -> list[Any]:
    from czsl.evaluation.confusion import confusion, largest_confusions
    from czsl_cli.training_curves import confusion_figure

    sections: list[Any] = []
    for kind, (true_N, named_N, names) in _kinds(found).items():
        matrix = confusion(true_N, named_N, len(names))
        largest = largest_confusions(matrix, names, MAX_CONFUSIONS)
        drawn = confusion_figure(matrix, names)
        if drawn is not None:
            plots[f"confusion-{_plural(kind)}"], count = drawn
            part = "" if count == len(names) else f" The {count} with the most images of {len(names)}."
            said = "; ".join(f"{c['true']} taken for {c['named']}, {c['images']} images" for c in largest[:3]) or "no confusion"
            text = f"Each row is a true {kind}, in percent of its images, at the operating point.{part}"
            svg = plot_svg(plots[f"confusion-{_plural(kind)}"])
            sections.append(Plot(f"Confusion among {_plural(kind)}", svg, text, f"Confusion matrix. Largest: {said}."))
        rows = [[c["true"], c["named"], c["images"], percent(c["share"])] for c in largest]
        if rows:
            columns = ["true", "named", "images", "% of the true label's images"]
            sections.append(Table(f"Largest confusions among {_plural(kind)}", columns, rows, sortable=True))
    return sections


def _tables(found: Material) -> list[Any]:
    from czsl.evaluation.confusion import confusion, per_label

    sections: list[Any] = []
    for kind, (true_N, named_N, names) in _kinds(found).items():
        rows = [
            [row["name"], row["images"], percent(row["acc"]), row["taken_for"]]
            for row in per_label(confusion(true_N, named_N, len(names)), names)
        ]
        columns = [kind, "images", "accuracy, %", "most often taken for"]
        sections.append(Table(f"Accuracy per {kind}", columns, rows, "At the operating point.", sortable=True))
    if "attribute" in _kinds(found):
        sections.append(_compositions(found))
    return sections


def _compositions(found: Material) -> Table:
    assert found.saved is not None and found.given is not None and found.data is not None
    space, e = found.data.space, found.saved.extremes
    labels, place_N = np.unique(e.labels, axis=0, return_inverse=True)
    place_N = place_N.ravel()
    right_N = (found.given == e.labels).all(axis=1)
    images, right = np.bincount(place_N), np.bincount(place_N, right_N)
    seen = space.seen_mask(labels)
    rows = []
    for i, pair in enumerate(labels):
        wrong = found.given[(place_N == i) & ~right_N]
        taken = ""
        if len(wrong):
            others, counts = np.unique(wrong, axis=0, return_counts=True)
            most = others[np.argmax(counts)]
            taken = space.pair_name(most) if most[0] >= 0 else ""
        rows.append(
            [space.pair_name(pair), "seen" if seen[i] else "unseen", int(images[i]), percent(right[i] / images[i]), taken]
        )
    columns = ["composition", "in training", "images", "accuracy, %", "most often taken for"]
    return Table("Accuracy per composition", columns, rows, "At the operating point.", sortable=True)


def _galleries(found: Material, links: dict[int, str]) -> list[Any]:
    from czsl.data.images import BadImage, decode

    if not found.shown or found.data is None:
        return []
    space, split = found.data.space, found.data.split(found.eval_config.split)
    sections: list[Any] = []
    for kind, (title, tone) in GALLERIES.items():
        cards = []
        for s in (s for s in found.shown if s.kind == kind):
            try:
                shown = picture(decode(split.image_bytes(s.row), options=split.decode))
            except BadImage:
                shown = ""
            named = space.pair_name(s.named)
            truth = "right" if s.right else f"shows {space.pair_name(s.true)}"
            note = f"{100 * s.confidence:.0f} %, {truth}; {split.ids[s.row]}"
            cards.append(Card(shown, f"named {named}", note, tone or ("good" if s.right else "bad"), links.get(s.row, "")))
        text = "Probability at the operating point."
        if links:
            text += " Each picture leads to its explanation."
        if cards:
            sections.append(Gallery(title, cards, text))
    return sections


def _settings(found: Material) -> list[Any]:
    config = found.run.config
    rows = [[k, str(v)] for k, v in config.to_dict().items() if k != "model" and v is not None]
    own = [[k, str(v)[:300]] for k, v in config.model.items()]
    environment = found.run.environment()
    facts = [[k.replace("_", " "), str(environment[k])] for k in ENVIRONMENT if environment.get(k) is not None]
    facts += [[name, version] for name, version in environment.get("versions", {}).items()]
    sections = [Table("Settings of the run", ["setting", "value"], rows)]
    if own:
        sections.append(Table(f"Settings of {config.method}", ["setting", "value"], own))
    if facts:
        sections.append(Table("Environment", ["", ""], facts))
    return sections
