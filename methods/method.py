"""A method with all that follows from its parts: training steps, other label spaces, predictions and explanations.

Letters: B images, P pairs, D joint width, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from czsl.clip import lean
from czsl.clip.prompt_tree import PromptTree, parts_of
from czsl.clip.text import TextTower
from czsl.compositions import CompositionSpace, index_pairs, prompt_name
from czsl.data.images import decode, read_image_file
from czsl.errors import DataError, UsageError
from czsl.evaluation.operating import OperatingPoint, seen_names, unseen_mask
from czsl.gpus import onto
from methods.contract import Contract
from methods.explanation import Explained, ScoredImage
from methods.features import Targets, TextFeatures
from methods.parts.renaming import renamed_pairs

# Prompts encoded at a time outside training: fixed, because the last bits of a matrix product change with its number of rows.
TEXT_CHUNK = 512
LABELS = ("attr", "obj", "pair", "index")  # of a batch: what is known of the images of all workers


def _encode_part(text: TextTower, prompts: PromptTree, rows: slice) -> Tensor:
    return text.encode_tree(prompts.part(rows))


class Method(Contract):
    """Base class of all methods: see :class:`methods.contract.Contract` for what a method writes."""

    # Set by methods.load: the run's operating point, why it cannot be used, and the training pairs by name (None: those of the space).
    operating_point: OperatingPoint | None = None
    stale_point: str = ""
    trained_on: frozenset[tuple[str, str]] | None = None
    _train_pairs: Tensor | None = None  # a cache of train_pairs

    # -- text ----------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_names(self, pairs_P2: Tensor) -> Tensor:
        """Text features [P, D] of :meth:`pair_prompt` in plain words, L2-normalised; names of any length count whole."""
        return self.clip.text.encode([self.pair_prompt(pair) for pair in pairs_P2.tolist()])

    def encode_prompts(self, prompts: PromptTree, unit: bool = True) -> Tensor:
        """Text features [P, D] of prompts with learned words; with ``unit`` L2-normalised.

        They are encoded as :meth:`encode_texts` does it.
        """
        return self.encode_prompt_sets([prompts], unit)[0]

    def encode_prompt_sets(self, sets: Sequence[PromptTree], unit: bool = True) -> list[Tensor]:
        """Text features [P, D] of several sets of prompts (pairs, attributes, objects); with ``unit`` L2-normalised.

        In training sets of one length go through the text tower in one pass, of which each worker takes its share of all prompts.
        Otherwise each set is encoded on its own, so that its digits do not depend on the others.
        """
        text, sizes = self.clip.text, [len(tree) for tree in sets]

        def finished(features_PD: Tensor) -> Tensor:
            return lean.unit(features_PD) if unit else features_PD

        if self.training and len({(len(tree.trunk), tree.ends.shape[1]) for tree in sets}) == 1:
            together_PD = self.encode_texts(lambda rows: text.encode_trees(parts_of(sets, rows)), sum(sizes))
            return list(finished(together_PD).split(sizes))
        return [finished(self.encode_texts(partial(_encode_part, text, tree), len(tree))) for tree in sets]

    def encode_texts(self, encode: Callable[[slice], Tensor], count: int) -> Tensor:
        """Encode ``count`` texts with ``encode``, [count, ...]; it is called with the rows to encode.

        In training each worker encodes its share of the texts. Otherwise they are encoded in chunks of a fixed size. Autocast ends here:
        the norm and what is added to a text need their digits.
        """
        if self.training:
            mine = self.comm.share(count)
            own = self.comm.in_parts(
                lambda part: encode(slice(mine.start + part.start, mine.start + part.stop)),
                mine.stop - mine.start,
                self.clip.device,
            )
            encoded = self.comm.gather(own, count)
        else:
            encoded = torch.cat([encode(slice(s, s + TEXT_CHUNK)) for s in range(0, max(count, 1), TEXT_CHUNK)])
        return encoded.to(self.clip.mean.dtype)

    # -- scores of images ----------------------------------------------------------------------------------------------
    def branch_logits(self, images: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
        """Logits of prepared images [B, 3, S, S] against pairs [P, 2]: (pair, attribute, object), or (pair,) without branches."""
        out = self.logits(self.encode_images({"images": images}), self.encode_compositions(torch.as_tensor(pairs)))
        return tuple(x for x in out if x is not None)

    def score_images(self, images: Tensor, pairs: Tensor) -> Tensor:
        """Scores [B, P] of prepared images [B, 3, S, S] against pairs [P, 2]."""
        return self.scores(self.encode_images({"images": images}), self.encode_compositions(torch.as_tensor(pairs)))

    # -- training ------------------------------------------------------------------------------------------------------
    @property
    def train_pairs(self) -> Tensor:
        """The training pairs in their order, int64 [C, 2], copied to the method's device once."""
        if self._train_pairs is None or self._train_pairs.device != self.clip.device:
            with torch.inference_mode(False):  # a training step may save it for its backward pass
                self._train_pairs = torch.from_numpy(self.space.train_pairs.copy()).to(self.clip.device)
        return self._train_pairs

    def training_step(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a global batch, of which ``batch`` holds this worker's images and the labels of all.

        The labels are ``attr``, ``obj`` and ``pair``; with candidate labels the ``index`` of each image in the split is enough, and the
        label confidences are updated after the step. Each worker has the labels of all images, so they are not sent.
        """
        self.comm.seed_own()
        features_BD = self.comm.gather(self._own_features(batch), self.comm.batch)
        if self.confidences is None:
            attr_B, obj_B, pair_B = (onto(batch[k], self.clip.device) for k in ("attr", "obj", "pair"))
            targets = Targets(attr_B, obj_B, pair_B)
        else:
            rows_B = onto(batch["index"], self.clip.device)
            targets = self.confidences.targets(rows_B)
        self.comm.seed_common()
        text, images = self.encode_compositions(self.train_pairs), self.embed_images(features_BD)
        terms = self.losses(images, text, targets)
        if self.confidences is not None:
            with torch.no_grad():
                logits_BP, relevance_BP = targets.noted or (self.logits(images, text)[0], None)
            self.confidences.update(rows_B, logits_BP, relevance_BP)
        return terms

    def _own_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Image features [b, ...] of this worker's rows, in the parts that ``accumulate`` sets."""
        own = {key: value for key, value in batch.items() if key not in LABELS}
        rows = len(next(iter(own.values())))
        return self.comm.in_parts(
            lambda part: self.image_features({key: value[part] for key, value in own.items()}), rows, self.clip.device
        )

    # -- other label spaces ----------------------------------------------------------------------------------------
    def for_space(self, space: CompositionSpace) -> Self:
        """The same method on other labels: what was learned of a name follows it, new names start from CLIP's own words."""
        other = self.twin(space)
        state, rows = other.state_dict(), self._rows_of_pairs(space)
        for key, value in self.state_dict().items():
            if key in self.per_pair:
                state[key] = state[key].to(value)
                state[key][rows >= 0] = value[rows[rows >= 0]]
                continue
            if key not in self.per_primitive:
                state[key] = value.clone()
                continue
            state[key] = state[key].to(value)
            for offset_here, offset_there, here, there in (
                (0, 0, self.space.attributes, space.attributes),
                (self.space.num_attributes, space.num_attributes, self.space.objects, space.objects),
            ):
                index_of = {prompt_name(n): offset_here + i for i, n in enumerate(here)}
                for i, name in enumerate(there):
                    if prompt_name(name) in index_of:
                        state[key][offset_there + i] = value[index_of[prompt_name(name)]]
        other.load_state_dict(state, assign=True)  # in the precision that they have here
        return other.to(self.clip.device)

    def twin(self, space: CompositionSpace) -> Self:
        """The same method on other labels before anything is learned, with this one's answers; the towers are shared as they are."""
        other = type(self)(space, self.clip, self.config)
        other.decode = self.decode
        other.answer_as(self)
        return other.train(self.training)

    def _rows_of_pairs(self, space: CompositionSpace) -> Tensor:
        """For each training pair of another space its place among those of this one by their names, -1 for a new one; int64 [C]."""
        rows_C = np.full(len(space.train_pairs), -1)
        if self.per_pair and len(rows_C) and len(self.space.train_pairs):
            names_there = renamed_pairs(space.train_pairs, space, self.space)
            found_C = self.space.locate(names_there.clip(0), self.space.train_pairs)
            rows_C = np.where((names_there >= 0).all(1), found_C, -1)
        return torch.from_numpy(rows_C).to(self.clip.device)

    def answer_as(self, other: Method) -> None:
        """Take over another method's operating point and what it was trained on."""
        self.operating_point, self.stale_point = other.operating_point, other.stale_point
        self.trained_on = seen_names(other.space) if other.trained_on is None else other.trained_on

    # -- prediction ------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[Image.Image | str | Path],
        pairs: np.ndarray | None = None,
        k: int = 5,
        bias: Literal["val", "none"] | float = "val",
    ) -> list[dict[str, Any]]:
        """The k best compositions of each image, with marginal probabilities of attributes and objects.

        Parameters
        ----------
        images : sequence of PIL images or paths
            Files are decoded under the limits of :mod:`czsl.data.images`, turned and put on a background by ``decode``.
        pairs : int array [P, 2], optional
            Candidates; the closed world by default.
        k : int, default 5
        bias : "val", "none" or float, default "val"
            What is added to the scores of pairs that training never saw: as the run's operating point has it (nothing without one),
            nothing, or a number.

        Returns
        -------
        list of dict
            ``{"predictions": [{"attr", "obj", "score", "calibrated", "prob"}], "attributes": [{"name", "prob"}], "objects": [...],
            "operating_point": {...}}`` per image, best ``calibrated`` score first; of plain classes ``{"predictions": [{"class", ..}],
            "classes": [{"name", "prob"}], ..}``. Probabilities are among the candidates.

        Raises
        ------
        DataError
            The run's operating point was chosen for other weights or candidates.
        """
        from methods.parts.ranking import Ranking

        point = self.point(bias)
        opened = [x if isinstance(x, Image.Image) else decode(read_image_file(Path(x)), options=self.decode) for x in images]
        prepared = [self.prepare(image.convert("RGB"), str(i)) for i, image in enumerate(opened)]
        if not prepared:
            return []
        batch = {key: torch.stack([p[key] for p in prepared]) for key in prepared[0]}
        pairs = self.space.closed_pairs if pairs is None else np.asarray(pairs)
        was_training = self.training
        self.eval()
        try:
            text = self.encode_compositions(torch.tensor(pairs, device=self.clip.device))
            scores_BP = self.scores(self.encode_images(batch), text)
            ranking = Ranking(pairs, self.space, k, point, self.unseen(pairs))
            ranking.add(scores_BP, self.log_weights(scores_BP))
            return [{**record, "operating_point": point.brief()} for record in ranking.records()]
        finally:
            self.train(was_training)

    def point(self, bias: str | float = "val") -> OperatingPoint:
        """The operating point of answers: as ``bias`` of :meth:`predict` names it."""
        if bias == "none":
            return OperatingPoint()
        if self.stale_point:
            raise DataError(
                "the operating point of the run cannot be used", self.stale_point, 'czsl calibrate RUN, or bias="none"'
            )
        point = self.operating_point or OperatingPoint()
        if bias == "val":
            return point
        if isinstance(bias, str) or not np.isfinite(bias):
            raise UsageError(
                f"bias={bias!r} is not a bias", "a bias is added to the scores of unseen pairs", 'give "val", "none" or a number'
            )
        return point.given(bias)

    def unseen(self, pairs: np.ndarray) -> np.ndarray:
        """Return which pairs [P, 2] of the method's space are unseen, new words included, bool [P]."""
        return ~self.space.seen_mask(pairs) if self.trained_on is None else unseen_mask(self.space, pairs, self.trained_on)

    # -- explanation ---------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def scored_image(self, image: Image.Image, image_id: str, text: TextFeatures) -> ScoredImage:
        """An original image before candidates: what all explanations of it have in common."""
        image = image.convert("RGB")
        features = self.encode_images({key: value[None] for key, value in self.prepare(image, image_id).items()})
        return ScoredImage(image, image_id, features, text, self.logits(features, text))

    @torch.inference_mode()
    def explain(self, image: Image.Image, pair: Sequence[str], image_id: str = "0") -> Explained:
        """The explanation of a single pair of names (of a class: ``("", "dog")``); its rank needs the text features of all candidates."""
        pair_12 = index_pairs([pair], self.space.attributes, self.space.objects)
        text = self.encode_compositions(torch.from_numpy(pair_12).to(self.clip.device))
        return self.explain_candidate(self.scored_image(image, image_id, text), 0)
