"""GDE (Berasi et al., CVPR 2025): a composition's embedding is where the directions of its attribute and its object lead.

Letters: N images, C training pairs, P pairs, A attributes, O objects, T their sum, D joint width.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.towers import Towers
from czsl.compositions import CompositionSpace, prompt_name
from czsl.errors import DataError, UsageError
from methods.explanation import Explanation, ScoredImage
from methods.features import TextFeatures
from methods.gde.config import GDEConfig
from methods.gde.explain import Fitted, direction_parts
from methods.gde.geometry import centre, end_points, moves, pair_weights, solve, weighted_means
from methods.method import Method
from methods.parts.words import KeptWords

# What is tried on the validation images, where the settings leave it open.
SHARES = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TEMPERATURES = (0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
# What is taken without validation images.
SHARE, RIDGE, EVEN = 0.5, 1.0, math.inf  # an infinite temperature gives all images of a pair the same weight
SHOWN = 5  # names in a note


class GDE(Method):
    """One pass over frozen image features gives a direction for each attribute and object; nothing is trained by gradient.

    It costs an (A + O) x (A + O) system and some fifty looks at the validation features. It keeps image features [N, D] in the cache
    folder, and in its state the mean of each training pair [C, D], to which images can be added.
    """

    name, title, Config = "gde", "GDE", GDEConfig
    per_primitive = ("directions",)
    per_pair = ("pair_means", "pair_mass", "pair_images")
    explains_by_examples = True

    config: GDEConfig
    mean: Tensor
    offset: Tensor
    directions: Tensor
    pair_means: Tensor
    pair_mass: Tensor
    pair_images: Tensor
    chosen: Tensor

    def __init__(self, space: CompositionSpace, clip: Towers, config: GDEConfig):
        super().__init__(space, clip, config)
        C, T, D = len(space.train_pairs), space.num_attributes + space.num_objects, clip.dim
        # The centre of the training images; and the mean of all pairs as a move from there: 0 until images are added.
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("offset", torch.zeros(D))
        self.register_buffer("directions", torch.zeros(T, D))
        # Of each training pair: its mean as a move from the centre, the logarithm of its images' summed weights, their number.
        self.register_buffer("pair_means", torch.zeros(C, D))
        self.register_buffer("pair_mass", torch.full((C,), -torch.inf))
        self.register_buffer("pair_images", torch.zeros(C, dtype=torch.int64))
        # Temperature, ridge and share of the text; before the initialisation it is plain CLIP.
        self.register_buffer("chosen", torch.tensor([EVEN, RIDGE, 1.0]))
        self.words = KeptWords(clip, self.encode_names)

    # -- settings in use -----------------------------------------------------------------------------------------------
    @property
    def temperature(self) -> float:
        """Temperature of the weights of a pair's images; infinite for equal weights."""
        return float(self.chosen[0])

    @property
    def ridge(self) -> float:
        """Weight of the squared length of directions."""
        return float(self.chosen[1])

    @property
    def share(self) -> float:
        """Share of the text feature in an embedding."""
        return float(self.chosen[2])

    @property
    def known(self) -> Tensor:
        """Return which attributes, then objects, have training images, bool [T]."""
        pairs_C2 = self.train_pairs.cpu()[(self.pair_images > 0).cpu()]
        known_T = torch.zeros(len(self.directions), dtype=torch.bool)
        known_T[pairs_C2[:, 0]] = True
        known_T[self.space.num_attributes + pairs_C2[:, 1]] = True
        return known_T

    # -- text ----------------------------------------------------------------------------------------------------------
    def moved(self, pairs_P2: Tensor) -> Tensor:
        """Moves [P, D] from the centre to compositions."""
        rows_P2 = pairs_P2.to(self.directions.device)
        return self.offset + self.directions[rows_P2[:, 0]] + self.directions[self.space.num_attributes + rows_P2[:, 1]]

    def ends(self, pairs_P2: Tensor) -> Tensor:
        """Unit vectors [P, D] to which the directions lead; also in the linear geometry, since image features are normalised."""
        return normalize(end_points(self.mean, self.moved(pairs_P2), self.config.geometry), dim=-1)

    @torch.no_grad()
    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """``share * prompt + (1 - share) * ends`` for index pairs, [P, D]; not normalised."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        share = self.share
        if not share:
            return TextFeatures(pairs_P2, self.ends(pairs_P2))
        words_PD = self.words(pairs_P2)
        if share == 1:
            return TextFeatures(pairs_P2, words_PD)
        return TextFeatures(pairs_P2, share * words_PD + (1 - share) * self.ends(pairs_P2))

    # -- the one pass --------------------------------------------------------------------------------------------------
    @property
    def needs_initialisation(self) -> bool:
        """It is all of the training."""
        return not bool(self.pair_images.any())

    @torch.no_grad()
    def initialise(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """Find the directions, and choose on validation images what the settings leave open.

        First the ridge with the share of the text, both of them together; then the temperature of the weights with these.

        Raises
        ------
        DataError
            The training set is empty.
        """
        if not len(features_ND):
            raise DataError(
                "there are no training images", "GDE finds its directions from them", "import images of the split train"
            )
        c, images = self.config, self._located(features_ND, attr_N, obj_N)
        several = bool((images[1].bincount() > 1).any())
        even = c.weights == "uniform" or not several
        self._set(EVEN if even or c.temperature is None else c.temperature, RIDGE, SHARE)
        self._collect(*images)
        ridges = (0.0,) if c.fit == "mean" else RIDGES if c.ridge is None else (c.ridge,)
        shares = SHARES if c.text is None else (c.text,)
        if self.judge is None:
            ridges, shares = (RIDGE,) if len(ridges) > 1 else ridges, (SHARE,) if len(shares) > 1 else shares
        best = -math.inf, ridges[0], shares[0]
        for ridge in ridges:
            self._set(self.temperature, ridge, shares[0])
            self._fit()
            for share in shares:
                self._set(self.temperature, ridge, share)
                best = max(best, (self._judged(len(ridges) * len(shares)), ridge, share), key=lambda found: found[0])
        self._set(self.temperature, *best[1:])
        temperature = self.temperature
        if c.temperature is None and not even and self.share < 1:
            for tried in TEMPERATURES if self.judge else ():
                self._set(tried, *best[1:])
                self._collect(*images)
                self._fit()
                if (found := self._judged(2)) > best[0]:
                    best, temperature = (found, *best[1:]), tried
        self._set(temperature, *best[1:])
        self._collect(*images)
        self._fit()

    def _set(self, temperature: float, ridge: float, share: float) -> None:
        self.chosen.copy_(torch.tensor([temperature, ridge, share]))

    def _judged(self, choices: int) -> float:
        """The AUC on validation images; not computed if nothing is left to choose."""
        return self.judge() if self.judge is not None and choices > 1 else 0.0

    def _located(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features [N, D], the training pair of each image [N], and its cosine with the pair's prompt [N]; on the CPU."""
        x_ND = normalize(features_ND.double(), dim=-1).cpu()
        labels_N2 = torch.stack([attr_N, obj_N], dim=1).cpu().numpy()
        place_N = torch.from_numpy(self.space.locate(labels_N2, self.space.train_pairs))
        words_CD = self.words(self.train_pairs).double().cpu()
        return x_ND, place_N, (x_ND * words_CD[place_N]).sum(1)

    def _collect(self, x_ND: Tensor, place_N: Tensor, cosine_N: Tensor) -> None:
        """Centre and pair means of images, at the temperature in use."""
        C = len(self.pair_means)
        weights_N, mass_C = pair_weights(cosine_N / self.temperature, place_N, C)
        mean_D = centre(x_ND, weights_N, self.config.geometry)
        self.mean.copy_(mean_D)
        self.pair_means.copy_(weighted_means(moves(mean_D, x_ND, self.config.geometry), weights_N, place_N, C))
        self.pair_mass.copy_(mass_C)
        self.pair_images.copy_(place_N.bincount(minlength=C))

    def _fit(self) -> None:
        """Directions from the means of pairs."""
        there_C = (self.pair_images > 0).cpu()
        means_CD = self.pair_means.double().cpu()[there_C]
        pairs_C2 = self.train_pairs.cpu()[there_C]
        offset_D = means_CD.mean(0)
        sizes = self.space.num_attributes, self.space.num_objects
        self.offset.copy_(offset_D)
        self.directions.copy_(solve(means_CD - offset_D, pairs_C2, *sizes, self.config.fit, self.ridge))

    # -- more images ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def add_images(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """Update pair means and directions with further images of the space's training pairs.

        The centre of the tangent space and what was chosen on validation images stay. In the linear geometry the result is that of one
        pass over all images; on the sphere the tangent space is that of the first ones.
        """
        x_ND, place_N, cosine_N = self._located(features_ND, attr_N, obj_N)
        C = len(self.pair_means)
        weights_N, mass_C = pair_weights(cosine_N / self.temperature, place_N, C)
        means_CD = weighted_means(moves(self.mean.double().cpu(), x_ND, self.config.geometry), weights_N, place_N, C)
        before_C = self.pair_mass.double().cpu()
        total_C = torch.logaddexp(before_C, mass_C)
        new_C1 = (mass_C - total_C).exp().nan_to_num(0.0)[:, None]  # a pair without images in either: -inf - -inf
        self.pair_means.copy_(torch.lerp(self.pair_means.double().cpu(), means_CD, new_C1))
        self.pair_mass.copy_(total_C)
        self.pair_images += place_N.bincount(minlength=C).to(self.pair_images.device)
        self._fit()

    def metrics(self) -> dict[str, Any]:
        """Return the settings in use: share of the text, ridge, temperature (absent if images have equal weights)."""
        if self.needs_initialisation:
            return {}
        out = {"text": round(self.share, 6)}
        if self.config.fit == "ridge":
            out["ridge"] = round(self.ridge, 6)
        return out | ({"temperature": round(self.temperature, 6)} if math.isfinite(self.temperature) else {})

    def notes(self) -> list[str]:
        """Primitives without images or with a zero direction, and pairs of one image."""
        if self.needs_initialisation:
            return []
        known_T, zero_T = self.known, (self.directions.norm(dim=1) < 1e-6).cpu()
        names = [*self.space.attributes, *self.space.objects]
        share = self.share
        rest = f"the text names them (text={share:.2g})" if share else "with text=0 nothing tells their compositions apart"
        out = []
        if missing := [n or "the attribute" for n, known in zip(names, known_T.tolist(), strict=True) if not known]:
            out.append(f"{len(missing)} names have no training image and a zero direction: {_some(missing)}; {rest}")
        lost = [n for n, known, zero in zip(names, known_T.tolist(), zero_T.tolist(), strict=True) if known and zero and n]
        if lost:
            out.append(f"the direction of {len(lost)} names is zero although they have images: {_some(lost)}; {rest}")
        if int(self.pair_images.max()) == 1:
            out.append(f"every training {self.space.noun} has a single image: directions follow single photographs")
        return out

    # -- other label spaces --------------------------------------------------------------------------------------------
    def for_space(self, space: CompositionSpace) -> Self:
        """The same on other labels: directions follow their names, pair means the names of their pairs.

        Raises
        ------
        UsageError
            A new word where the text has no share: nothing is known of it.
        """
        new = self._without_images(space)
        if new and not self.share:
            raise UsageError(
                f"GDE without text cannot name {_some(new)}",
                "no training image shows these words, and the share of the text is 0",
                "add images of them with czsl add, or train with text=0.5",
            )
        return super().for_space(space)

    def _without_images(self, space: CompositionSpace) -> list[str]:
        """Words of another space that are new and that none of its training pairs has."""
        new = []
        sides = ((self.space.attributes, space.attributes), (self.space.objects, space.objects))
        for side, (here, there) in enumerate(sides):
            known, shown = {prompt_name(n) for n in here}, set(space.train_pairs[:, side].tolist())
            new += [n for i, n in enumerate(there) if prompt_name(n) not in known and i not in shown]
        return new

    # -- explanation ---------------------------------------------------------------------------------------------------
    def explain_candidate(self, scored: ScoredImage, index: int) -> Explanation:
        """Parts of the score, the nearest directions, and the training images that lie furthest along those of the composition."""
        word_D = self.words(scored.text.pairs[index : index + 1])[0]
        vectors = (x.double().cpu() for x in (self.mean, self.offset, self.directions, word_D))
        fitted = Fitted(self.space, self.config.geometry, float(self.clip.logit_scale), self.share, self.known, *vectors)
        return direction_parts(fitted, scored, index)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
