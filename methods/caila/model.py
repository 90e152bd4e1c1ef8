"""CAILA (Zheng, Zhu, Nevatia: Concept-Aware Intra-Layer Adapters for Compositional Zero-Shot Learning, WACV 2024).

Letters: B images, P pairs, A attributes, O objects, L visual tokens, T text tokens, V visual width, D joint width, n prompts.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.backbone import Clip
from czsl.clip.captured import replayed
from czsl.clip.lean import unit
from czsl.clip.towers import own_precision
from czsl.compositions import CompositionSpace
from czsl.data.pixels import clip_pixels
from methods.caila.adapters import MIXTURE, TowerAdapters
from methods.caila.config import CAILAConfig
from methods.features import ImageFeatures, Targets, TextFeatures, primitives_of
from methods.method import Method
from methods.parts.branches import branch_losses

CONCEPTS = ("attribute", "object")
RESIZE = 8 / 7  # 256 pixels for a crop of 224
KEPT_PROMPTS = 64  # lists of prompts whose tokens are kept


@cache
def _spellings() -> dict[str, str]:
    return yaml.safe_load((Path(__file__).parent / "names.yaml").read_text(encoding="utf-8"))


def released_name(name: str) -> str:
    """Return a label as the public program writes it: lower case and as it is, but for the names in ``names.yaml``."""
    return _spellings().get(name, name.lower())


class CAILA(Method):
    """Adapters inside frozen CLIP towers: an attribute and an object stream of tokens, whose second halves are fused.

    An image costs three passes of the image tower, the fused half of them with twice the tokens. The text features cost one pass of the
    text tower for each pair, attribute and object. Scores are inner products, so an index can hold the pairs.
    """

    name, title, Config = "caila", "CAILA", CAILAConfig

    config: CAILAConfig
    text_concepts: ClassVar[tuple[str, ...]] = ("pair", *CONCEPTS)

    def __init__(self, space: CompositionSpace, clip: Clip, config: CAILAConfig):
        super().__init__(space, clip, config)
        self._kept_tokens: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        c, visual, text = config, clip.visual, clip.text
        self.fusion_start = c.fusion_start or len(visual.blocks) // 2
        if self.fusion_start >= len(visual.blocks):
            raise c.refused("fusion_start", f"the image tower has {len(visual.blocks)} layers")
        rank = max(1, visual.width // c.reduction)
        self.vision = TowerAdapters(visual.blocks, visual.width, rank, CONCEPTS, self.fusion_start)
        rank = max(1, text.width // c.reduction)
        self.text = TowerAdapters(text.blocks, text.width, rank, self.text_concepts) if c.text_adapters else None
        scale = (clip.logit_scale.detach() * c.primitive_scale).log()
        self.attribute_scale, self.object_scale = nn.Parameter(scale.clone()), nn.Parameter(scale.clone())
        if c.names == "reference":
            self.attribute_names = [released_name(n) for n in space.attributes]
            self.object_names = [released_name(n) for n in space.objects]

    # -- images ----------------------------------------------------------------------------------------------------
    @property
    def cache_key(self) -> str:
        """Empty for CLIP's own crop."""
        return "" if self.config.crop == "clip" else "bilinear, short side 8/7"

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """CLIP's pixels, or the middle of an image that was resized to a little more."""
        size = self.clip.image_size
        if self.config.crop == "clip":
            return super().prepare(image, image_id)
        pixels = clip_pixels(image, size, Image.Resampling.BILINEAR, round(size * RESIZE))
        return {"images": torch.from_numpy(pixels)}

    def image_features(self, batch) -> Tensor:
        """Un-normalised features of the fused, the attribute and the object stream, [B, 3, D]."""
        with own_precision(self.clip.device, self.clip.visual.precision):
            images_B3SS = self.clip.normalise(batch["images"])
            return replayed((self, "images"), self._streams, [images_B3SS], self.vision.trained).to(self.clip.mean.dtype)

    def _streams(self, images_B3SS: Tensor) -> Tensor:
        visual, F_ = self.clip.visual, self.fusion_start
        last, recompute = len(visual.blocks), visual.checkpointing
        embedded_BLV, L = visual.embed(images_B3SS), 0
        halfway, tops = [], []
        below, above, weights = range(F_), range(F_, last), self.vision.for_pass(*CONCEPTS, MIXTURE)
        for concept in CONCEPTS:
            x_BLV = self.vision.run(visual.blocks, below, concept, embedded_BLV, weights, recompute=recompute)
            halfway.append(x_BLV)
            tops.append(self.vision.run(visual.blocks, above, concept, x_BLV, weights, recompute=recompute)[:, 0])
            L = x_BLV.shape[1]
        fused = self.vision.run(visual.blocks, above, MIXTURE, torch.cat(halfway, dim=1), weights, recompute=recompute)
        tops.insert(0, (fused[:, 0] + fused[:, L]) / 2)
        return visual.project(torch.stack(tops, dim=1))

    def embed_images(self, features_BD: Tensor) -> ImageFeatures:
        """The three streams; dropout comes after the norm, as in the public program."""
        pair_BD, attribute_BD, object_BD = unit(features_BD).unbind(1)
        return ImageFeatures(F.dropout(pair_BD, self.config.image_dropout, self.training), attribute_BD, object_BD)

    # -- text ------------------------------------------------------------------------------------------------------
    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Text features of index pairs: a pair's feature is the mean of its own, its attribute's and its object's."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        attribute_AD = self._attributes(range(self.space.num_attributes))
        object_OD = self._objects(range(self.space.num_objects))
        pair_PD = self._compose(pairs_P2, attribute_AD[pairs_P2[:, 0]], object_OD[pairs_P2[:, 1]])
        return TextFeatures(pairs_P2, pair_PD, unit(attribute_AD), unit(object_OD))

    def encode_pairs(self, pairs_P2: Tensor) -> Tensor:
        """Pair features [P, D]; of the primitives only those are encoded that occur."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        (attributes, a_P), (objects, o_P) = (column.unique(return_inverse=True) for column in pairs_P2.T)
        return self._compose(pairs_P2, self._attributes(attributes.tolist())[a_P], self._objects(objects.tolist())[o_P])

    def _compose(self, pairs_P2: Tensor, attribute_PD: Tensor, object_PD: Tensor) -> Tensor:
        prompts = [f"a photo of a {self.attribute_names[a]} {self.object_names[o]}" for a, o in pairs_P2.tolist()]
        return unit((self._encode(prompts, "pair") + attribute_PD + object_PD) / 3)

    def _attributes(self, places) -> Tensor:
        return self._encode([f"a photo of a {self.attribute_names[a]} object" for a in places], "attribute")

    def _objects(self, places) -> Tensor:
        return self._encode([f"a photo of a {self.object_names[o]}" for o in places], "object")

    def _encode(self, prompts: list[str], concept: str) -> Tensor:
        """Un-normalised text features [n, D]."""
        return self.encode_texts(lambda rows: self._encode_some(prompts[rows], concept), len(prompts))

    def _encode_some(self, prompts: list[str], concept: str) -> Tensor:
        text = self.clip.text
        ids_nT, end_n = self._tokens(prompts)
        x_nTW = text.embed_tokens(ids_nT)
        if self.text is None:
            return text.encode_embeddings(x_nTW, end_n)
        with own_precision(self.clip.device, text.precision):
            return replayed((self, concept), partial(self._texts, concept), [x_nTW, end_n], self.text.trained)

    def _tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [n, T] and the end token's position [n] on the towers' device; kept, since a step has the prompts of the one before."""
        device = self.clip.device
        key = (str(device), *prompts)
        if key not in self._kept_tokens:
            if len(self._kept_tokens) == KEPT_PROMPTS:
                self._kept_tokens.clear()
            with torch.inference_mode(False):  # a training step may save them for its backward pass
                ids_nT, end_n = self.clip.text.tokenize(prompts)
                self._kept_tokens[key] = ids_nT.to(device), end_n.to(device)
        return self._kept_tokens[key]

    def _texts(self, concept: str, x_nTW: Tensor, end_n: Tensor) -> Tensor:
        """The tower with adapters: token embeddings without positions -> features at the end tokens."""
        assert self.text is not None
        text = self.clip.text
        layers, weights = range(len(text.blocks)), self.text.for_pass(concept)
        x_nTW = x_nTW + text.positional_embedding[: x_nTW.shape[1]]
        x_nTW = self.text.run(text.blocks, layers, concept, x_nTW, weights, causal=True)
        return text.project(x_nTW[torch.arange(len(x_nTW), device=x_nTW.device), end_n])

    # -- scores and training ---------------------------------------------------------------------------------------
    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled cosines of the three streams; those of primitives have scales of their own."""
        pair_BP = self.clip.logit_scale * images.pair @ text.pair.T
        (attribute_BD, object_BD), (attribute_AD, object_OD) = primitives_of(images), primitives_of(text)
        attr_BA = self.attribute_scale.exp() * attribute_BD @ attribute_AD.T
        return pair_BP, attr_BA, self.object_scale.exp() * object_BD @ object_OD.T

    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of the three streams."""
        return branch_losses(self.logits(images, text), targets, (1.0, 1.0, 1.0))
