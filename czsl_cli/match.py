"""``czsl match``: rank images for a sentence, or sentences for an image, by ComCLIP and by plain CLIP."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_json, print_table, progress_bar, say, warn
from czsl_cli.inputs import gather_images, image_options, tell_left_out
from czsl_cli.match_words import EXPLAINED, parse_in_words, region_in_words
from czsl_cli.options import decode_options, named_run

if TYPE_CHECKING:
    from PIL import Image

    from methods.comclip.matching import Match, Matcher
    from methods.comclip.parse import Composition

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("images", nargs=-1, metavar="[RUN] [IMAGES]...")
@named_run(others="images", default="")
@click.option("--text", "texts", multiple=True, help='A sentence, e.g. "a dog chases a cat"; may be given several times.')
@click.option("--texts", "texts_file", type=FILE, help="Sentences, one a line.")
@click.option("--eval", "eval_file", type=FILE, help="Evaluate a file: ComVG, SVO-Probes, Winoground, VL-Checklist, retrieval.")
@click.option(
    "--images",
    "where",
    type=click.Path(exists=True, path_type=Path),
    help="--eval: the folder of its images. Else a table with a column of file names (CSV, JSON lines, Parquet).",
)
@image_options
@click.option("--limit", type=click.IntRange(1), help="Number of items of --eval, evenly spread over the file.")
@click.option("--clean-triplets", is_flag=True, help="--eval: tidy the file's subject, verb and object (layingin -> lay).")
@click.option("--clip", help="`tiny` (default), an open_clip model, hf-hub:org/name, a model's folder, or a weight file.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option(
    "--mode",
    type=click.Choice(["unit", "raw", "gclip"]),
    default="unit",
    show_default=True,
    help="Scoring variant: `unit` (normalised vectors), `raw` (as the released ComVG script), `gclip` (follow-up paper).",
)
@click.option(
    "--regions",
    type=click.Choice(["patch", "grid", "superpixel", "file", "whole"]),
    help="Regions in which words are found: CLIP's own patches (default), windows, segments, --regions-file, nowhere.",
)
@click.option(
    "--regions-file", type=click.Path(exists=True, path_type=Path), help="Regions: our JSON, GRiT's or GroundingDINO's."
)
@click.option(
    "--fill",
    type=click.Choice(["black", "mean", "blur", "crop"]),
    default="black",
    show_default=True,
    help="Outside of a region; crop: cut it out.",
)
@click.option(
    "--relation",
    type=click.Choice(["union", "whole", "off"]),
    default="union",
    show_default=True,
    help="Sub-image of a verb: subject and object, the whole image, or none.",
)
@click.option(
    "--beta", type=click.FloatRange(0), default=1.0, show_default=True, help="Weight of all sub-images; the image has weight 1."
)
@click.option("--rerank", type=click.IntRange(1), help="Re-rank only CLIP's top N.  [default: all; retrieval: 10]")
@click.option("--top", "-k", type=click.IntRange(1), default=10, show_default=True, help="Number of matches to show per query.")
@decode_options("`exif` and `white`; --eval: as stored, as the field does")
@click.option("--explain", is_flag=True, help="Show the region and the weight of each word in the best matches.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with the sub-images.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def match(
    images, run, texts, texts_file, eval_file, where, column, root, all_files, html, as_json, orientation, background, **options
) -> None:
    """Rank IMAGES (files, folders, archives, patterns, `-` for a list on stdin) for a sentence, or sentences for an image.

    \b
      czsl match photos/ --text "a dog chases a cat" --clip ViT-B-16
      czsl match dog.jpg --text "a dog chases a cat" --text "a cat chases a dog" --html why.html
      czsl match --eval ComVG.csv --images comvg/ --clip ViT-L-14 --json

    Entities and relations of a sentence are found in the image; each one's part of it is weighted by how well it fits its word and added to
    the image (ComCLIP). Of a RUN (or --run RUN) its CLIP is used; without one, --clip. Scores are cosines. What cannot be composed keeps
    plain CLIP's answer, and is counted.
    """
    from czsl.data.images import decode
    from czsl.data.photographs import AS_SHOWN, AS_STORED
    from czsl.errors import UsageError
    from czsl_cli.runs import tell_unknown_words

    if run is not None:
        options["clip"], options["clip_weights"] = _clip_of(run, options)
    how = (AS_SHOWN if eval_file is None else AS_STORED).changed(orientation, background)
    if eval_file is not None:
        if images or texts or texts_file:
            raise UsageError("--eval brings its own images and sentences", "IMAGE, --text or --texts was given", "drop them")
        if where is None or not where.is_dir():
            raise UsageError(
                "--eval needs the folder of its images", "match files hold the names of images only", "add --images DIR"
            )
        if html or options["explain"]:
            raise UsageError(
                "--eval has no page", "it answers thousands of questions", "drop --html and --explain, or match single images"
            )
        from czsl_cli.match_eval import evaluate_file

        with progress_bar() as bar:
            matcher = make_matcher(options, bar.update)
            result = evaluate_file(matcher, eval_file, where.resolve(), options, how)
        _finish_eval(result, as_json)
        return
    for name in ("limit", "clean_triplets"):
        if options[name]:
            raise UsageError(f"--{name.replace('_', '-')} goes with --eval", "it applies to files of questions", "drop it")
    if where is not None and where.is_dir():
        raise UsageError(
            "--images DIR goes with --eval",
            "without --eval, --images names a table",
            "give images as arguments: czsl match FOLDER --text ..",
        )
    sentences = _sentences(texts, texts_file)
    tell_unknown_words(options["clip"] or "tiny", [one.sentence for one in sentences])
    inputs = gather_images(images, where, column=column, root=root, all_files=all_files, full_names=True)
    names = inputs.source.names

    def load(name: str):
        return decode(inputs.source.open(name), options=how)

    with progress_bar() as bar:
        matcher = make_matcher(options, bar.update)
        found = rank(matcher, names, sentences, options["rerank"], load, bool(html) or options["explain"])
    _show(found, matcher, options, as_json)
    if html:
        from czsl_cli.match_page import write_match_page

        write_match_page(html, found.questions(options["top"]), matcher, load)
        say(f"page: {html}")
    tell_left_out(inputs)
    if found.errors:
        say(f"{len(found.errors)} of {len(names)} images could not be used")
    if found.errors or inputs.refused:
        sys.exit(6)


def _clip_of(run: Path, options: dict[str, Any]) -> tuple[str, str | None]:
    """The CLIP of a run, which is all of it that matching uses."""
    from czsl.errors import UsageError
    from czsl.runs.run import Run

    if options["clip"] or options["clip_weights"]:
        raise UsageError(f"{run} brings its CLIP", "--clip or --clip-weights was given", "leave out one of the two")
    config = Run(run).config
    return config.clip, config.clip_weights


def make_matcher(options: dict[str, Any], progress: Any) -> Matcher:
    """The matcher for the options, on the GPU if there is one."""
    from czsl.clip.loading import load_clip
    from czsl.data.files.regions import read_regions
    from czsl.errors import UsageError
    from czsl.gpus import own_device
    from methods.comclip.algebra import Rule
    from methods.comclip.matching import Matcher

    file, regions = options["regions_file"], options["regions"]
    if (regions or ("file" if file else "patch")) != "file" and file:
        raise UsageError(f"--regions {regions} reads no file", "--regions-file was given", "drop one of the two")
    if regions == "file" and not file:
        raise UsageError("--regions file needs its file", "regions are read from it", "add --regions-file FILE")
    kind = regions or ("file" if file else "patch")
    clip = load_clip(options["clip"] or "tiny", options["clip_weights"], features=kind not in ("patch", "superpixel"))
    clip = clip.to(own_device())
    table = read_regions(file) if file else None
    rule = Rule(mode=options["mode"], beta=options["beta"])
    return Matcher(clip, kind, rule, options["fill"], options["relation"], table, progress=progress)


def _sentences(texts: tuple[str, ...], file: Path | None) -> list[Composition]:
    from czsl.data.files.match import read_sentences
    from czsl.errors import UsageError
    from methods.comclip.parse import parse

    lines = [*texts, *(read_sentences(file) if file else [])]
    lines = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not lines:
        raise UsageError(
            "no sentence", "images are ranked for a sentence", 'add --text "a dog chases a cat", --texts FILE, or --eval FILE'
        )
    return [parse(line) for line in lines]


class MatchRanking:
    """Plain CLIP's cosines of all images and sentences, and ComCLIP's of those that were composed."""

    def __init__(self, names: list[str], sentences: list[Composition], clip: Any, matches: dict[tuple[str, str], Match], errors):
        self.names, self.sentences, self.clip, self.matches, self.errors = names, sentences, clip, matches, errors

    @property
    def by_image(self) -> bool:
        """Return whether sentences are ranked for one image."""
        return len(self.names) == 1 and len(self.sentences) > 1

    def questions(self, top: int) -> list[dict[str, Any]]:
        """Return the queries, each with its best answers: name, sentence, score, cosines and ranks."""
        from czsl.evaluation.matching import reranked

        asked = range(len(self.names)) if self.by_image else range(len(self.sentences))
        found = []
        for q in asked:
            firsts = self.clip[q].tolist() if self.by_image else self.clip[:, q].tolist()
            pairs = [(q, i) if self.by_image else (i, q) for i in range(len(firsts))]
            composed = {}
            for i, (n, c) in enumerate(pairs):
                if (match := self.matches.get((self.names[n], self.sentences[c].sentence))) is not None:
                    composed[i] = match
            order = reranked(firsts, {i: m.score for i, m in composed.items()}, len(composed))
            plain = sorted(range(len(firsts)), key=lambda i: -firsts[i])
            answers = [
                {
                    "image": self.names[pairs[i][0]], "sentence": self.sentences[pairs[i][1]], "rank": r, "clip": firsts[i],
                    "clip_rank": plain.index(i) + 1, "match": composed.get(i),
                }
                for r, i in enumerate(order[:top], 1)
            ]  # fmt: skip
            title = self.names[q] if self.by_image else self.sentences[q].sentence
            found.append({"title": title, "sentence": None if self.by_image else self.sentences[q], "answers": answers})
        return found


def rank(
    matcher: Matcher,
    names: list[str],
    sentences: list[Composition],
    rerank: int | None,
    load: Callable[[str], Image.Image],
    masks: bool,
) -> MatchRanking:
    """Scores of images and sentences; with ``rerank`` only the first of each sentence (or image) are composed."""
    from czsl.errors import DataError

    features, errors = matcher.whole(names, load)
    for name, why in errors.items():
        warn(f"{name}: {why}")
    good = [name for name in names if name in features]
    if not good:
        raise DataError("none of the images can be read", next(iter(errors.values())), "see the warnings above")
    clip_NC = matcher.clip_scores(features, good, [s.sentence for s in sentences])
    by_image = len(good) == 1 and len(sentences) > 1
    depth = min(rerank or clip_NC.numel(), clip_NC.shape[1 if by_image else 0])
    best = clip_NC.topk(depth, dim=1 if by_image else 0).indices
    wanted = {
        name: [s for c, s in enumerate(sentences) if (c in best[0] if by_image else n in best[:, c])]
        for n, name in enumerate(good)
    }
    found = matcher.matches(wanted, features, load, masks)
    for name, why in matcher.failed.items():
        warn(f"{name}: plain CLIP's scores: {why}")
    matches = {(name, s.sentence): m for name, ms in found.items() for s, m in zip(wanted[name], ms, strict=True)}
    return MatchRanking(good, sentences, clip_NC, matches, errors | matcher.failed)


# -- what is printed -------------------------------------------------------------------------------------------------
def _show(found: MatchRanking, matcher: Matcher, options: dict[str, Any], as_json: bool) -> None:
    questions = found.questions(options["top"])
    if as_json:
        print_json(_content(questions, found, matcher, options))
        return
    other = "sentence" if found.by_image else "image"
    for question in questions:
        about = f" [{parse_in_words(question['sentence'])}]" if question["sentence"] else ""
        rows = []
        for a in question["answers"]:
            name = a["sentence"].sentence if found.by_image else a["image"]
            rows.append([a["rank"], name, f"{a['match'].score:.4f}" if a["match"] else "-", f"{a['clip']:.4f}", a["clip_rank"]])
        print_table(["rank", other, "ComCLIP", "CLIP", "CLIP's rank"], rows, title=question["title"] + about)
        if options["explain"]:
            for a in [a for a in question["answers"] if a["match"] and a["match"].words][:EXPLAINED]:
                _explain(a)
    for why, count in matcher.counts.items():
        if count:
            say(f"{why}: {count}")


def _explain(answer: dict[str, Any]) -> None:
    rows = [[w.text, w.kind, region_in_words(w), f"{w.cosine:.4f}", f"{w.weight:.3f}"] for w in answer["match"].words]
    title = f"{answer['image']}: {answer['sentence'].sentence}"
    print_table(["word", "is", "its part", "cosine", "weight"], rows, title=title)


def _content(questions, found: MatchRanking, matcher: Matcher, options: dict[str, Any]) -> dict[str, Any]:
    sentences = [
        {
            "text": s.sentence, "parser": s.source, "entities": [e.text for e in s.entities],
            "relations": [[s.entities[i].text, verb, s.entities[j].text] for i, verb, j in s.relations],
        }
        for s in found.sentences
    ]  # fmt: skip
    asked = []
    for question in questions:
        answers = []
        for a in question["answers"]:
            match = a["match"]
            record = {
                "rank": a["rank"], "image": a["image"], "sentence": a["sentence"].sentence, "clip": a["clip"],
                "clip_rank": a["clip_rank"], "score": match.score if match else None,
            }  # fmt: skip
            if match and options["explain"]:
                record["words"] = [
                    {"word": w.text, "is": w.kind, "cosine": w.cosine, "fit": w.fit, "weight": w.weight,
                     "share_of_image": 1.0 if w.mask is None else float(w.mask.mean())}
                    for w in match.words
                ]  # fmt: skip
            answers.append(record)
        asked.append({"question": question["title"], "answers": answers})
    settings = {key: options[key] for key in ("mode", "fill", "relation", "beta", "rerank")}
    return {
        "clip": matcher.clip.name, "regions": matcher.regions, **settings, "sentences": sentences, "questions": asked,
        "counts": dict(matcher.counts), "passes": dict(matcher.passes), "errors": found.errors,
    }  # fmt: skip


def _finish_eval(result: dict[str, Any], as_json: bool) -> None:
    from czsl_cli.match_eval import print_evaluation

    if as_json:
        print_json(result)
    else:
        print_evaluation(result)
    if result["failed"]:
        sys.exit(6)
