"""The contract of a method: single-device science, no Ray, no file system, no argument parsing, no global state.

A method is built from a label space and a CLIP. An image's way is ``prepare`` (in the loader) -> ``encode_images`` ->
``scores`` against the text side of ``encode_compositions``. Letters: B images, P pairs, A attributes, O objects, D joint
width, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from czsl.clip.backbone import Clip, Towers
from czsl.clip.text import PromptTree
from czsl.compositions import CompositionSpace, index_pairs, prompt_name
from czsl.data.images import decode, read_image_file
from czsl.data.photographs import AS_SHOWN, DecodeOptions
from czsl.errors import DataError, UsageError
from czsl.evaluation.operating import OperatingPoint, seen_names, unseen_mask
from methods.config import MethodConfig
from methods.explanation import Explained, Explanation, Question, branch_figures
from methods.parts.comm import Communicator
from methods.sides import ImageSide, RetrievalQuery, Targets, TextSide

if TYPE_CHECKING:
    from methods.parts.candidate_weights import CandidateWeights

# Prompts encoded at a time outside training: fixed, because the last bits of a matrix product change with its number of rows.
TEXT_CHUNK = 512


class Method(nn.Module):
    """Base class of all methods.

    Parameters
    ----------
    space : CompositionSpace
        The label space; training uses ``space.train_pairs`` in their order.
    clip : Clip
        Frozen towers; a method registers only what it trains (or collects) beside them.
    config : MethodConfig
        The method's own ``Config``.

    Notes
    -----
    A subclass writes ``encode_compositions`` and, where it differs, ``encode_images``, ``scores`` and ``losses``.
    ``comm`` is replaced by the training loop when several workers train together; ``weights`` are set where training images have
    candidates instead of labels; ``judge`` is set during :meth:`first_pass` where there are validation images: it returns the AUC on
    these of the method as it stands (for classes without an AUC, the accuracy), the same on every worker.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    # Of the Config, see there.
    trains: ClassVar[bool] = True
    classes: ClassVar[bool] = False
    steps: ClassVar[bool] = True
    # Keys of the state whose rows belong to primitives, attributes first: they follow the names into another label space.
    per_primitive: ClassVar[tuple[str, ...]] = ()
    # Whether :meth:`explain_candidate` shows training images where it is given some.
    explains_by_examples: ClassVar[bool] = False

    # Set by methods.load: the run's operating point, why it cannot be used, and the training pairs by name (None: those of the space).
    operating_point: OperatingPoint | None = None
    stale_point: str = ""
    trained_on: frozenset[tuple[str, str]] | None = None

    clip: Clip

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.trains, cls.classes, cls.steps = cls.Config.trains, cls.Config.classes, cls.Config.steps

    def __init__(self, space: CompositionSpace, clip: Towers, config: MethodConfig):
        super().__init__()
        self.space, self.config, self.comm = space, config, Communicator()
        self.weights: CandidateWeights | None = None
        self.validating = False  # set by the training loop while it scores validation images
        self.decode: DecodeOptions = AS_SHOWN  # of image files that the method is given; a loaded run sets its own
        self.judge: Callable[[], float] | None = None
        # Not a registered module: the frozen towers are neither trained nor saved with the method.
        object.__setattr__(self, "clip", clip)
        self.attribute_names = [prompt_name(n, config.names) for n in space.attributes]
        self.object_names = [prompt_name(n, config.names) for n in space.objects]

    def _apply(self, fn, recurse=True):
        self.clip._apply(fn, recurse)  # .to(), .double() and .cuda() take the towers along
        return super()._apply(fn, recurse)

    @property
    def frozen_images(self) -> bool:
        """Whether an image's features never change in training, so that they are computed once and kept."""
        return not self.trains or self.config.keeps_features

    # -- images ----------------------------------------------------------------------------------------------------
    @property
    def prepare_key(self) -> str:
        """Names what :meth:`prepare` makes where that is more than CLIP's pipeline (views, masks), for caches; empty otherwise.

        A method with a key gets its images prepared anew for each batch, since views are too many to be kept as pixels; its
        features are kept under the key, which therefore names every setting that they depend on.
        """
        return ""

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """What the loader makes of an original image: CLIP's resize and centre crop, uint8 [3, S, S]."""
        return {"images": torch.from_numpy(self.clip.pixels(image))}

    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised CLIP features [B, D] of ``batch["images"]``, or ``batch["features"]`` where they were kept.

        A method whose texts look at the image gives its tokens [B, L, D] instead: :meth:`image_side` takes what this gives.
        """
        if "features" in batch:
            return batch["features"].to(self.clip.device, self.clip.mean.dtype)
        return self.clip.visual(self.clip.normalise(batch["images"]))

    def image_side(self, features_BD: Tensor) -> ImageSide:
        """What the method makes of image features [B, D]; in training it sees those of the whole global batch."""
        return ImageSide(nn.functional.normalize(features_BD, dim=-1))

    def encode_images(self, batch: Mapping[str, Any]) -> ImageSide:
        """Image side of a prepared batch."""
        return self.image_side(self.image_features(batch))

    # -- text ------------------------------------------------------------------------------------------------------
    def encode_compositions(self, pairs_P2: Tensor) -> TextSide:
        """Text side of index pairs."""
        raise NotImplementedError

    def pair_prompt(self, pair: Sequence[int]) -> str:
        """ "a photo of wet dog" for an index pair; of a plain class "a photo of dog"."""
        return " ".join(filter(None, ("a photo of", self.attribute_names[pair[0]], self.object_names[pair[1]])))

    def encode_pairs(self, pairs_P2: Tensor) -> Tensor:
        """The ``pair`` rows [P, D] of :meth:`encode_compositions` alone: what a composition index holds."""
        return self.encode_compositions(pairs_P2).pair

    def encode_prompts(self, prompts: PromptTree, unit: bool = True) -> Tensor:
        """Text features [P, D] of prompts with learned words; with ``unit`` L2-normalised.

        In training each worker encodes its share of the prompts. Otherwise they are encoded in chunks of a fixed size.
        """
        if self.training:
            own = prompts.part(self.comm.share(len(prompts)))
            encoded = self.comm.in_parts(lambda part: self.clip.text.encode_tree(own.part(part)), len(own), self.clip.device)
            encoded = self.comm.gather(encoded, len(prompts))
        else:
            starts = range(0, max(len(prompts), 1), TEXT_CHUNK)
            encoded = torch.cat([self.clip.text.encode_tree(prompts.part(slice(s, s + TEXT_CHUNK))) for s in starts])
        # Autocast ends here: the norm and what is added to a text need their digits.
        encoded = encoded.to(self.clip.mean.dtype)
        return nn.functional.normalize(encoded, dim=-1) if unit else encoded

    # -- scores ----------------------------------------------------------------------------------------------------
    def logits(self, images: ImageSide, text: TextSide) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scaled cosines of the branches: pair [B, P] and, where the method has them, attribute [B, A] and object [B, O]."""
        scale = self.clip.logit_scale
        pair_BP = self.clip.biased(scale * images.pair @ text.pair.T)
        if images.attribute is None or text.attribute is None:
            return pair_BP, None, None
        assert images.object is not None
        assert text.object is not None
        return pair_BP, scale * images.attribute @ text.attribute.T, scale * images.object @ text.object.T

    def scores(self, images: ImageSide, text: TextSide) -> Tensor:
        """Scores [B, P]; any tile of 16 pairs or more of the text side gives the same scores as the whole."""
        return self.logits(images, text)[0]

    def log_weights(self, scores_BP: Tensor) -> Tensor:
        """Logarithms of what the candidates' probabilities are proportional to, float64 [B, P]: by default the scores (a softmax)."""
        return scores_BP.double()

    def probabilities(self, scores_BP: Tensor) -> Tensor:
        """Probability of each candidate from the scores of all of them, float64 [B, P]."""
        return self.log_weights(scores_BP).softmax(dim=1)

    @property
    def indexable(self) -> bool:
        """Whether a pair's embedding is the same for all images and :meth:`retrieval_query` says all about its score."""
        return type(self).scores is Method.scores

    @property
    def adaptable(self) -> bool:
        """Whether an adaptation while testing can move the composition term: :meth:`rescored` says how the scores follow."""
        return self.indexable

    @property
    def pair_scale(self) -> float:
        """Factor of the cosines in the composition logits of :meth:`logits`."""
        return float(self.clip.logit_scale)

    def rescored(self, pair_BP: Tensor, images: ImageSide, text: TextSide) -> Tensor:
        """Scores [B, P] of all candidates of the text side when the composition logits of :meth:`logits` are replaced by these."""
        return pair_BP

    def retrieval_query(self, images: ImageSide, primitives: TextSide, candidates: int) -> RetrievalQuery:
        """The scores of :meth:`scores` as a question to an index of :meth:`encode_compositions`' ``pair`` rows.

        Parameters
        ----------
        images : ImageSide
        primitives : TextSide
            Of any pairs; only its attributes and objects are read.
        candidates : int
            P, the number of pairs in the index.
        """
        bias = self.clip.logit_bias
        return RetrievalQuery(self.clip.logit_scale * images.pair, bias=0.0 if bias is None else float(bias))

    def branch_logits(self, images: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
        """Logits of prepared images [B, 3, S, S] against pairs [P, 2]: (pair, attribute, object), or (pair,) without branches."""
        out = self.logits(self.encode_images({"images": images}), self.encode_compositions(torch.as_tensor(pairs)))
        return tuple(x for x in out if x is not None)

    def score_images(self, images: Tensor, pairs: Tensor) -> Tensor:
        """Scores [B, P] of prepared images [B, 3, S, S] against pairs [P, 2]."""
        return self.scores(self.encode_images({"images": images}), self.encode_compositions(torch.as_tensor(pairs)))

    # -- training --------------------------------------------------------------------------------------------------
    def losses(self, images: ImageSide, text: TextSide, targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms of the whole global batch; the loss is their sum. By default the cross-entropy over the training pairs."""
        return {"pair": nn.functional.cross_entropy(self.logits(images, text)[0], targets.pair)}

    def training_step(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a global batch, of which ``batch`` holds this worker's rows.

        With labels these come with their ``attr``, ``obj`` and ``pair``; with candidates their place in the split (``index``) is enough,
        and the weights of the candidates follow the step.
        """
        self.comm.seed_own()
        features_BD = self.comm.gather(self._own_features(batch), self.comm.batch)
        if self.weights is None:
            attr_B, obj_B, pair_B = (self._whole(batch[k]) for k in ("attr", "obj", "pair"))
            targets = Targets(attr_B, obj_B, pair_B)
        else:
            rows_B = self._whole(batch["index"])
            targets = self.weights.targets(rows_B)
        self.comm.seed_common()
        train_pairs = torch.from_numpy(self.space.train_pairs.copy()).to(self.clip.device)
        text, images = self.encode_compositions(train_pairs), self.image_side(features_BD)
        terms = self.losses(images, text, targets)
        if self.weights is not None:
            with torch.no_grad():
                logits_BP, relevance_BP = targets.noted or (self.logits(images, text)[0], None)
            self.weights.update(rows_B, logits_BP, relevance_BP)
        return terms

    def _own_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Image features [b, ...] of this worker's rows, in the parts that the run asks for."""
        rows = len(next(iter(batch.values())))
        return self.comm.in_parts(
            lambda part: self.image_features({key: value[part] for key, value in batch.items()}), rows, self.clip.device
        )

    def _whole(self, x_b: Tensor) -> Tensor:
        """What belongs to this worker's images, for the global batch."""
        return self.comm.gather(x_b.to(self.clip.device), self.comm.batch)

    @property
    def wants_first_pass(self) -> bool:
        """Whether :meth:`first_pass` has to be called before the first training step (not again after a resume)."""
        return False

    def first_pass(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """Take what training starts from out of all training images.

        Parameters
        ----------
        features_ND : float tensor
            ``image_features`` of the N training images without augmentation, in the order of the split, on every worker.
        attr_N, obj_N : int64 tensor
            Their labels.
        """
        raise NotImplementedError

    def add_images(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """Take further images of the space's training pairs into a finished state; for methods whose Config ``grows``."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Warnings about what :meth:`first_pass` found; shown once after it."""
        return []

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch (from 0), or of what is left of it."""
        self.train()

    def metrics(self) -> dict[str, float]:
        """Figures of the method's own state, cheap enough to be logged once an epoch."""
        return {}

    # -- other label spaces ----------------------------------------------------------------------------------------
    def for_space(self, space: CompositionSpace) -> Self:
        """The same method on other labels: what was learned of a name follows it, new names start from CLIP's own words."""
        other = type(self)(space, self.clip, self.config)
        other.decode = self.decode
        state = other.state_dict()
        for key, value in self.state_dict().items():
            if key not in self.per_primitive:
                state[key] = value
                continue
            for offset_here, offset_there, here, there in (
                (0, 0, self.space.attributes, space.attributes),
                (self.space.num_attributes, space.num_attributes, self.space.objects, space.objects),
            ):
                place = {prompt_name(n): offset_here + i for i, n in enumerate(here)}
                for i, name in enumerate(there):
                    if prompt_name(name) in place:
                        state[key][offset_there + i] = value[place[prompt_name(name)]]
        other.load_state_dict(state)
        other.answer_as(self)
        return other.to(self.clip.device).train(self.training)

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
            Files are decoded under the limits of :mod:`czsl.data.images`, turned and put on a background as ``decode`` says.
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
            raise UsageError(f"bias={bias!r} is no bias", "", 'give "val", "none" or a number')
        return point.given(bias)

    def unseen(self, pairs: np.ndarray) -> np.ndarray:
        """Which pairs [P, 2] of the method's space training never saw, new words included. bool [P]."""
        return ~self.space.seen_mask(pairs) if self.trained_on is None else unseen_mask(self.space, pairs, self.trained_on)

    # -- explanation -----------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def question(self, image: Image.Image, image_id: str, text: TextSide) -> Question:
        """An original image before candidates: what all explanations of it have in common."""
        image = image.convert("RGB")
        side = self.encode_images({key: value[None] for key, value in self.prepare(image, image_id).items()})
        return Question(image, image_id, side, text, self.logits(side, text))

    def explain_candidate(self, question: Question, place: int) -> Explained:
        """Why candidate ``place`` of the question's text side has its score; a subclass adds what only it can show.

        Called in evaluation mode, without gradients.
        """
        pair = question.text.pairs[place].tolist()
        names = (self.space.pair_name(pair), *self.space.pair_names(pair))
        return Explanation(tuple(self.space.label(pair).values()), [branch_figures(question, place, names)])

    @torch.inference_mode()
    def explain(self, image: Image.Image, pair: Sequence[str], image_id: str = "0") -> Explained:
        """The explanation of a pair of names alone (of a class: ``("", "dog")``); its rank needs all candidates in a question."""
        place = index_pairs([pair], self.space.attributes, self.space.objects)
        text = self.encode_compositions(torch.from_numpy(place).to(self.clip.device))
        return self.explain_candidate(self.question(image, image_id, text), 0)
