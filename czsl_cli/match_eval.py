"""``czsl match --eval``: published questions about sentences and images, answered by ComCLIP and by plain CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from czsl.data.photographs import AS_STORED, DecodeOptions
from czsl_cli.console import percent, print_table, say, warn

if TYPE_CHECKING:
    from czsl.data.files.match import MatchFile, MatchItem
    from methods.comclip.matching import Match, Matcher
    from methods.comclip.parse import Composition

RERANK = 10  # of retrieval, as in the paper
LISTED = 10  # failures that are printed; JSON has all
NAMES = {
    "comvg": "ComVG",
    "svo": "SVO-Probes",
    "winoground": "Winoground",
    "vl-checklist": "VL-Checklist",
    "retrieval": "retrieval",
}


def evaluate_file(
    matcher: Matcher, path: Path, folder: Path, options: dict[str, Any], how: DecodeOptions = AS_STORED
) -> dict[str, Any]:
    """Numbers of a match file, of ComCLIP and of plain CLIP on the same items.

    An item counts in any case: where it cannot be composed with plain CLIP's answer, where an image cannot be read as wrong for both.

    Parameters
    ----------
    matcher : Matcher
    path : Path
        A file that :func:`czsl.data.files.match.read_match_file` reads.
    folder : Path
        Absolute; no image outside of it is opened.
    options : dict
        ``limit``, ``rerank``, ``clean_triplets``, and those that the result repeats.
    how : DecodeOptions
        Decoding of the images; by default as stored, as the field does.
    """
    from czsl.data.files.match import MatchFile, all_captions, all_images, read_match_file
    from czsl.data.images import decode, read_image_file
    from czsl.data.paths import contained
    from czsl_cli.runs import tell_unknown_words
    from methods.comclip.parse import parse

    def load(name: str):
        return decode(read_image_file(contained(folder, name)), options=how)

    file = read_match_file(path)
    total = len(file.items)
    if options["limit"] and options["limit"] < total:
        chosen = np.linspace(0, total - 1, options["limit"]).round().astype(int)
        file = MatchFile(file.kind, tuple(file.items[i] for i in chosen))
    captions = all_captions(file.items)
    parsed = {text: parse(text, triplet, options["clean_triplets"]) for text, triplet in captions.items()}
    # Captions are compared as they are written; the parser tidies white space.
    features, unread = matcher.whole(all_images(file.items), load)
    if unread and not features:
        warn(f"none of the {len(unread):,} images can be read: is {folder} their folder?")
    known = {name: i for i, name in enumerate(features)}
    texts = list(captions)
    tell_unknown_words(options["clip"] or "tiny", texts)
    clip_NC = matcher.clip_scores(features, list(known), [parsed[text].sentence for text in texts])
    clip = _ClipScores(known, {text: c for c, text in enumerate(texts)}, clip_NC.double().cpu().numpy())
    answer = _retrieval if file.kind == "retrieval" else _choices
    numbers, failed = answer(matcher, file, clip, features, parsed, load, unread, options)
    return {
        "format": file.kind, "items": len(file.items), "of_items": total, "images": len(known) + len(unread), "captions": len(texts),
        "clip_model": matcher.clip.name, "regions": matcher.regions, "mode": matcher.rule.mode, "fill": matcher.fill,
        "relation": matcher.relation, "beta": matcher.rule.beta, **numbers, "failed": failed,
        "counts": {why: n for why, n in matcher.counts.items() if n}, "passes": dict(matcher.passes),
    }  # fmt: skip


class _ClipScores:
    """Plain CLIP's cosines of images and captions by name."""

    def __init__(self, images: dict[str, int], captions: dict[str, int], scores_NC: np.ndarray):
        self.images, self.captions, self.scores = images, captions, scores_NC

    def of(self, items: tuple[MatchItem, ...]) -> dict[tuple[str, str], float]:
        """Scores of all images and captions of the items; unreadable images have NaN."""
        pairs = {(image, text) for item in items for image in item.images for text in item.captions if image in self.images}
        return {(image, text): float(self.scores[self.images[image], self.captions[text]]) for image, text in pairs}


def _composed(matcher: Matcher, wanted: dict[str, list[str]], parsed: dict[str, Composition], features, load) -> dict:
    """ComCLIP's score by (image, caption)."""
    found: dict[str, list[Match]] = matcher.matches({n: [parsed[t] for t in ts] for n, ts in wanted.items()}, features, load)
    return {(name, text): m.score for name, ms in found.items() for text, m in zip(wanted[name], ms, strict=True)}


def _choices(matcher, file: MatchFile, clip: _ClipScores, features, parsed, load, unread, options):
    from czsl.errors import UsageError
    from czsl.evaluation.matching import difference_interval, right_answers

    if options["rerank"]:
        raise UsageError("--rerank goes with retrieval", f"the file is of {NAMES[file.kind]}", "drop it")
    plain = clip.of(file.items)
    wanted: dict[str, list[str]] = {}
    for image, text in sorted(plain):
        wanted.setdefault(image, []).append(text)
    composed = _composed(matcher, wanted, parsed, features, load)
    failed = []
    own: dict[str, list[np.ndarray]] = {}
    for item in file.items:
        missing = [name for name in item.images if name in unread or name in matcher.failed]
        if missing:
            why = "; ".join(f"{n}: {unread.get(n) or matcher.failed.get(n)}" for n in missing)
            taken = "wrong" if any(n in unread for n in missing) else "plain CLIP's answer"
            failed.append({"item": item.identity, "counted_as": taken, "why": why})
        for measure, right in right_answers(file.kind, [item], plain if missing else composed).items():
            own.setdefault(measure, []).append(right)
    theirs = right_answers(file.kind, file.items, plain)
    groups = np.array([item.group for item in file.items])
    rows = []
    for measure, answers in own.items():
        ours = np.concatenate(answers)
        shown = [("", np.ones(len(ours), bool))]
        if 1 < len(set(groups.tolist())) <= 10:
            shown += [(group, groups == group) for group in sorted(set(groups.tolist()))]
        for group, those in shown:
            low, high = difference_interval(ours[those], theirs[measure][those])
            rows.append({
                "measure": f"{measure}, {group}" if group else measure, "items": int(those.sum()),
                "comclip": float(ours[those].mean()), "clip": float(theirs[measure][those].mean()), "difference_95": [low, high],
            })  # fmt: skip
    return {"results": rows}, failed


def _retrieval(matcher, file: MatchFile, clip: _ClipScores, features, parsed, load, unread, options):
    from czsl.evaluation.matching import recalls, reranked

    depth = options["rerank"] or RERANK
    names, texts = list(clip.images), list(clip.captions)
    scores_NC = clip.scores
    wanted: dict[str, dict[str, None]] = {}
    for c in range(len(texts)):
        for n in np.argsort(-scores_NC[:, c], kind="stable")[:depth]:
            wanted.setdefault(names[n], {})[texts[c]] = None
    for n, name in enumerate(names):
        for c in np.argsort(-scores_NC[n], kind="stable")[:depth]:
            wanted.setdefault(name, {})[texts[c]] = None
    composed = _composed(matcher, {name: list(own) for name, own in wanted.items()}, parsed, features, load)
    ranks: dict[str, dict[str, list[int | None]]] = {
        way: {"comclip": [], "clip": []} for way in ("text to image", "image to text")
    }
    failed = [{"item": name, "counted_as": "wrong", "why": why} for name, why in unread.items()]
    failed += [{"item": name, "counted_as": "plain CLIP's answer", "why": why} for name, why in matcher.failed.items()]
    for item in file.items:
        n = clip.images.get(item.images[0])
        own = {clip.captions[text] for text in item.captions}
        questions: list[tuple[str, list[float], dict[int, float], set[int]]] = []
        for c in (clip.captions[text] for text in item.captions):
            second = {i: composed[key] for i, name in enumerate(names) if (key := (name, texts[c])) in composed}
            questions.append(("text to image", scores_NC[:, c].tolist(), second, {n} if n is not None else set()))
        if n is None:
            questions.append(("image to text", [], {}, set()))
        else:
            second = {c: composed[key] for c, text in enumerate(texts) if (key := (names[n], text)) in composed}
            questions.append(("image to text", scores_NC[n].tolist(), second, own))
        for way, first, second, right in questions:
            for who, order in (("comclip", reranked(first, second, depth)), ("clip", reranked(first, {}, 0))):
                found = [place for place, i in enumerate(order, 1) if i in right]
                ranks[way][who].append(found[0] if found else None)
    rows = []
    for way, both in ranks.items():
        ours, theirs = recalls(both["comclip"]), recalls(both["clip"])
        rows += [{"measure": f"{way}, {k}", "items": len(both["clip"]), "comclip": ours[k], "clip": theirs[k]} for k in ours]
    return {"rerank": depth, "results": rows}, failed


def print_evaluation(result: dict[str, Any]) -> None:
    """The numbers as a table, what failed as warnings, and what it took."""
    rows = []
    for row in result["results"]:
        change = f"{100 * (row['comclip'] - row['clip']):+.1f}"
        interval = row.get("difference_95")
        about = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
        rows.append([row["measure"], row["items"], percent(row["comclip"]), percent(row["clip"]), change, about])
    part = "" if result["items"] == result["of_items"] else f" of {result['of_items']:,}"
    depth = f", CLIP's first {result['rerank']} re-ranked" if "rerank" in result else ""
    title = (
        f"{NAMES[result['format']]}, {result['items']:,}{part} items, {result['regions']} regions, mode {result['mode']}{depth}"
    )
    columns = ["percent", "questions", "ComCLIP", "CLIP", "difference", "95 % interval"]
    shown = len(columns) - ("rerank" in result)  # recalls have no interval
    print_table(columns[:shown], [row[:shown] for row in rows], title)
    passes = ", ".join(f"{n:,} {what}" for what, n in result["passes"].items())
    if passes:
        say(f"encoded once each: {passes}")
    for why, n in result["counts"].items():
        say(f"{why}: {n:,}")
    for failure in result["failed"][:LISTED]:
        warn(f"item {failure['item']} counts as {failure['counted_as']}: {failure['why']}")
    if len(result["failed"]) > LISTED:
        warn(f"and {len(result['failed']) - LISTED} more (--json lists all)")
