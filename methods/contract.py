"""The contract of a method: single-device science, no Ray, no file system, no argument parsing, no global state.

A method is built from a label space and a CLIP. An image's way is ``prepare`` (in the loader) -> ``encode_images`` -> ``scores`` against
the text features of ``encode_compositions``. :class:`methods.method.Method` adds what is made of these parts. Letters: B images, P pairs, A
attributes, O objects, D joint width, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.clip.lean import unit
from czsl.clip.towers import Towers
from czsl.compositions import CompositionSpace, prompt_name
from czsl.data.photographs import AS_SHOWN, DecodeOptions
from czsl.gpus import onto
from methods.config import MethodConfig
from methods.explanation import Explained, Explanation, ScoredImage, branch_figures
from methods.features import ImageFeatures, RetrievalQuery, Targets, TextFeatures, primitives_of
from methods.parts.adapters import BlockAdapters
from methods.parts.comm import Communicator

if TYPE_CHECKING:
    from methods.parts.label_confidences import LabelConfidences


class Contract(nn.Module):
    """The contract: what a method is, and what it may write.

    Parameters
    ----------
    space : CompositionSpace
        The label space; training uses ``space.train_pairs`` in their order.
    clip : Clip
        Frozen towers; a method registers only what it trains (or collects) in addition.
    config : MethodConfig
        The method's own ``Config``.

    Notes
    -----
    A subclass writes ``encode_compositions`` and, where it differs, ``encode_images``, ``scores`` and ``losses``.
    ``comm`` is replaced by the training loop when several workers train together; ``confidences`` are set if training images have
    candidate labels instead of labels; ``judge`` is set during :meth:`initialise` if validation images exist: it returns the AUC on
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
    # Keys of the state whose rows belong to the training pairs: they follow the names of these.
    per_pair: ClassVar[tuple[str, ...]] = ()
    # Whether :meth:`explain_candidate` shows training images where it is given some.
    explains_by_examples: ClassVar[bool] = False

    clip: Clip

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.trains, cls.classes, cls.steps = cls.Config.trains, cls.Config.classes, cls.Config.steps

    def __init__(self, space: CompositionSpace, clip: Towers, config: MethodConfig):
        super().__init__()
        self.space, self.config, self.comm = space, config, Communicator()
        self.confidences: LabelConfidences | None = None
        self.validating = False  # set by the training loop while it scores validation images
        self.decode: DecodeOptions = AS_SHOWN  # of image files that the method is given; a loaded run sets its own
        self.judge: Callable[[], float] | None = None
        # In the image tower, of a method that has any: it sets its own.
        self.adapters: BlockAdapters | None = None
        # Not a registered module: the frozen towers are neither trained nor saved with the method.
        object.__setattr__(self, "clip", clip)
        self.attribute_names = [prompt_name(n, config.names) for n in space.attributes]
        self.object_names = [prompt_name(n, config.names) for n in space.objects]

    def _apply(self, fn, recurse=True):
        self.clip._apply(fn, recurse)  # .to(), .double() and .cuda() take the towers along
        return super()._apply(fn, recurse)

    @property
    def frozen_images(self) -> bool:
        """True if an image's features never change in training, so that they are computed once and kept."""
        return not self.trains or self.config.keeps_features

    # -- images ----------------------------------------------------------------------------------------------------
    @property
    def cache_key(self) -> str:
        """Names what :meth:`prepare` makes where that is more than CLIP's pipeline (views, masks), for caches; empty otherwise.

        A method with a key gets its images prepared again for each batch, since views are too many to be kept as pixels; its
        features are kept under the key, which therefore names every setting that they depend on.
        """
        return ""

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """Preprocess an original image in the loader: CLIP's resize and centre crop, uint8 [3, S, S]."""
        return {"images": torch.from_numpy(self.clip.pixels(image))}

    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised CLIP features [B, D] of ``batch["images"]`` from the tower and its adapters, or ``batch["features"]`` if kept.

        A method whose texts look at the image gives its tokens [B, L, D] instead: :meth:`embed_images` takes what this gives.
        """
        if "features" in batch:
            return onto(batch["features"], self.clip.device).to(self.clip.mean.dtype)
        images_B3SS = self.clip.normalise(batch["images"])
        return self.clip.visual(images_B3SS) if self.adapters is None else self.clip.visual(images_B3SS, adapters=self.adapters)

    def embed_images(self, features_BD: Tensor) -> ImageFeatures:
        """Return the method's image features from those of the tower [B, D]; in training it gets those of the whole global batch."""
        return ImageFeatures(unit(features_BD))

    def encode_images(self, batch: Mapping[str, Any]) -> ImageFeatures:
        """Image features of a prepared batch."""
        return self.embed_images(self.image_features(batch))

    # -- text ------------------------------------------------------------------------------------------------------
    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Text features of index pairs."""
        raise NotImplementedError

    def pair_prompt(self, pair: Sequence[int]) -> str:
        """ "a photo of wet dog" for an index pair; of a plain class "a photo of dog"."""
        return " ".join(filter(None, ("a photo of", self.attribute_names[pair[0]], self.object_names[pair[1]])))

    def encode_pairs(self, pairs_P2: Tensor) -> Tensor:
        """The ``pair`` rows [P, D] of :meth:`encode_compositions` only: what a composition index holds."""
        return self.encode_compositions(pairs_P2).pair

    # -- scores ----------------------------------------------------------------------------------------------------
    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scaled cosines of the branches: pair [B, P] and, where the method has them, attribute [B, A] and object [B, O]."""
        scale = self.clip.logit_scale
        pair_BP = self.clip.biased(scale * images.pair @ text.pair.T)
        if images.attribute is None or text.attribute is None:
            return pair_BP, None, None
        branches = zip(primitives_of(images), primitives_of(text), strict=True)
        attr_BA, obj_BO = (scale * image_BD @ text_nD.T for image_BD, text_nD in branches)
        return pair_BP, attr_BA, obj_BO

    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Scores [B, P]; any tile of 16 pairs or more of the text features gives the same scores as the whole."""
        return self.logits(images, text)[0]

    def log_weights(self, scores_BP: Tensor) -> Tensor:
        """Logarithms of what the candidates' probabilities are proportional to, float64 [B, P]: by default the scores (a softmax)."""
        return scores_BP.double()

    def probabilities(self, scores_BP: Tensor) -> Tensor:
        """Probability of each candidate from the scores of all of them, float64 [B, P]."""
        return self.log_weights(scores_BP).softmax(dim=1)

    @property
    def indexable(self) -> bool:
        """True if scores are inner products with fixed pair embeddings (:meth:`retrieval_query`), so an index can be used."""
        return type(self).scores is Contract.scores

    @property
    def adaptable(self) -> bool:
        """True if an adaptation while testing can move the composition term; :meth:`rescored` then gives the scores."""
        return self.indexable

    @property
    def pair_scale(self) -> float:
        """Factor of the cosines in the composition logits of :meth:`logits`."""
        return float(self.clip.logit_scale)

    def rescored(self, pair_BP: Tensor, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Scores [B, P] of all candidates of the text features when the composition logits of :meth:`logits` are replaced by these."""
        return pair_BP

    def retrieval_query(self, images: ImageFeatures, primitives: TextFeatures, candidates: int) -> RetrievalQuery:
        """The scores of :meth:`scores` as a query to an index of :meth:`encode_compositions`' ``pair`` rows.

        Parameters
        ----------
        images : ImageFeatures
        primitives : TextFeatures
            Text features of any pairs; only attributes and objects are read.
        candidates : int
            P, the number of pairs in the index.
        """
        bias = self.clip.logit_bias
        return RetrievalQuery(self.clip.logit_scale * images.pair, bias=0.0 if bias is None else float(bias))

    # -- training ------------------------------------------------------------------------------------------------------
    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms of the whole global batch; the loss is their sum. By default the cross-entropy over the training pairs."""
        return {"pair": nn.functional.cross_entropy(self.logits(images, text)[0], targets.pair)}

    @property
    def needs_initialisation(self) -> bool:
        """True if :meth:`initialise` has to be called before the first training step (not again after a resume)."""
        return False

    def initialise(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
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
        """Warnings about what :meth:`initialise` found; shown once after it."""
        return []

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch (from 0), or of what is left of it."""
        self.train()

    def without_values(self) -> None:
        """Make the training steps of this copy independent of values: its tensors have shapes only, and its memory is counted.

        A method overrides it if a step reads numbers back from tensors (``tolist``, ``int``) to choose the shapes of others.
        """

    def metrics(self) -> dict[str, float]:
        """Figures of the method's own state, cheap enough to be logged once an epoch."""
        return {}

    # -- explanation ---------------------------------------------------------------------------------------------------
    def explain_candidate(self, scored: ScoredImage, index: int) -> Explained:
        """Explain the score of candidate ``index`` of the text features; a subclass adds what only it can show.

        Called in evaluation mode, without gradients.
        """
        pair = scored.text.pairs[index].tolist()
        names = (self.space.pair_name(pair), *self.space.pair_names(pair))
        return Explanation(tuple(self.space.label(pair).values()), [branch_figures(scored, index, names)])
