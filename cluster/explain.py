"""An image's best compositions explained by a method, with the training images of its run where the method shows some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import PAIR_TILE
from cluster.work.threads import cpu_threads
from czsl.compositions import CompositionSpace, index_pairs, label_of, label_words
from czsl.data.batches import stratified
from czsl.data.table import Split, open_data
from czsl.errors import CzslError
from czsl.evaluation.operating import OperatingPoint, seen_names, unseen_mask
from czsl.runs.run import Run
from methods.explanation import Examples, Explained
from methods.method import Method

EXAMPLES = 10  # training images per pair to look at if each costs a pass of an adapted tower


@dataclass(frozen=True)
class ExplainedPrediction:
    """A composition of the image (or a class, without an attribute): its names, score, probability among the candidates, rank from 1, why.

    calibrated : score with the bias of the operating point, which the rank is by
    seen : whether training saw it; ``rows``: rows of the training split for the images that the explanation names
    """

    attr: str
    obj: str
    score: float
    calibrated: float
    prob: float
    rank: int
    seen: bool
    explanation: Explained
    rows: np.ndarray

    @property
    def name(self) -> str:
        """``"wet dog"``, or the class."""
        return label_words(label_of(self.attr, self.obj))


class TrainingImages:
    """Training images of a run, by the composition that they help to explain.

    Parameters
    ----------
    method : Method
        The run's method, in evaluation mode; it may have more labels than the run.
    run : Run
    progress : Progress

    Raises
    ------
    CzslError
        The run's dataset is gone or damaged.
    """

    def __init__(self, method: Method, run: Run, progress: Progress = quiet):
        config = run.config
        self.method, self.config = method, config
        with cpu_threads(run.threads):  # features are kept for each number of threads
            data = open_data(config.data, config.decode)
            self.loader = FeatureLoader(method, data, "train", Group(), config.eval_batch, progress, method.clip.precision)
        self.space: CompositionSpace = run.space
        # Drawn once for all compositions, so that a prototype has the same images wherever it is shown.
        per_pair = 0 if method.frozen_images else EXAMPLES
        self.looked_at = stratified(self.split.attr, self.split.obj, per_pair, config.seed)

    @property
    def split(self) -> Split:
        """The training split."""
        return self.loader.split

    def rows(self, attr: int, obj: int) -> np.ndarray:
        """Rows looked at that show the attribute or the object (indices of the method's space), [n]."""
        names, rows = self.method.space, self.looked_at
        # Labels of the method follow the run's by name.
        own = [_index(self.space.attributes, names.attributes[attr]), _index(self.space.objects, names.objects[obj])]
        return rows[(self.split.attr[rows] == own[0]) | (self.split.obj[rows] == own[1])]

    def examples(self, attr: int, obj: int) -> Examples | None:
        """The images of :meth:`rows`; None without any."""
        rows, names = self.rows(attr, obj), self.method.space
        if not len(rows):
            return None
        features = self.loader.encode(rows, self.config.eval_batch).to(self.method.clip.device)
        attr_n = np.array([_index(names.attributes, self.space.attributes[a]) for a in self.split.attr[rows]])
        obj_n = np.array([_index(names.objects, self.space.objects[o]) for o in self.split.obj[rows]])
        return Examples(features, attr_n, obj_n)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def training_images(method: Method, run: Run | None, progress: Progress = quiet) -> tuple[TrainingImages | None, str]:
    """Training images for a method's explanations; None and the reason without them (no reason if none are needed)."""
    if not method.explains_by_examples:
        return None, ""
    if run is None:
        return None, "training images are not shown: there is no run"
    try:
        return TrainingImages(method, run, progress), ""
    except (CzslError, OSError) as error:
        what = error.what if isinstance(error, CzslError) else f"{error.strerror}: {error.filename}"
        return None, f"training images are not shown, the run's dataset cannot be read: {what}"


@torch.inference_mode()
def explain(
    method: Method,
    image: Image.Image,
    image_id: str,
    pairs: np.ndarray,
    *,
    asked: Sequence[tuple[str, str]] = (),
    top: int = 3,
    training: TrainingImages | None = None,
    space: CompositionSpace | None = None,
    point: OperatingPoint | None = None,
) -> list[ExplainedPrediction]:
    """The best compositions of an image, or those asked for, explained.

    Parameters
    ----------
    method : Method
        In evaluation mode.
    image : PIL image
        The original.
    image_id : str
        Its name (regions may be drawn by it).
    pairs : int array [P, 2]
        Candidates, among which probabilities and ranks are.
    asked : sequence of (attribute, object)
        Candidates to explain instead of the ``top`` best.
    training : TrainingImages, optional
    space : CompositionSpace, optional
        Whose training pairs count as seen; the method's by default.
    point : OperatingPoint, optional
        Bias of the ranking and scale of the probabilities; by default none is applied.
    """
    text = method.encode_compositions(torch.from_numpy(pairs.copy()).to(method.clip.device))
    scored = method.scored_image(image, image_id, text)
    if training is not None:
        scored = replace(scored, examples=training.examples)
    tiles = [text.tile(s, s + PAIR_TILE) for s in range(0, len(text), PAIR_TILE)]
    scores_P = torch.cat([method.scores(scored.features, tile) for tile in tiles], dim=1)[0].double().cpu()
    names, known, point = method.space, space or method.space, point or OperatingPoint()
    unseen_P = torch.from_numpy(unseen_mask(names, pairs, seen_names(known))).double()
    calibrated_P = scores_P + point.bias * unseen_P
    order_P = torch.argsort(calibrated_P, descending=True, stable=True)
    rank_P = torch.empty_like(order_P)
    rank_P[order_P] = torch.arange(1, len(order_P) + 1)
    scaling = point.composition
    prob_P = (method.log_weights(scores_P[None])[0] / scaling.temperature + scaling.bias * unseen_P).softmax(0)
    if asked:
        wanted = method.space.locate(index_pairs(asked, method.space.attributes, method.space.objects), pairs).tolist()
    else:
        wanted = order_P[:top].tolist()
    predictions = []
    for place in wanted:
        attr, obj = pairs[place].tolist()
        pair = names.pair_names((attr, obj))
        rows = training.rows(attr, obj) if training is not None else np.zeros(0, np.int64)
        why = method.explain_candidate(scored, place)
        score, calibrated, prob = (float(x[place]) for x in (scores_P, calibrated_P, prob_P))
        predictions.append(
            ExplainedPrediction(*pair, score, calibrated, prob, int(rank_P[place]), not unseen_P[place], why, rows)
        )
    return predictions
