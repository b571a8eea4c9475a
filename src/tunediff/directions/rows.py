"""Directions that no mean is taken for: rows of a head or of a decoder, principal components, chance, and what is left of
another direction once something was taken out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.dictionary import ReconstructingDictionary, TranscoderAdapter
from tunediff.directions.direction import Direction, Place, Source, check_layers, read_direction
from tunediff.directions.means import differences, normalised, told
from tunediff.models import ModelPair, unembedding
from tunediff.shapes import Refused


@dataclass(frozen=True, kw_only=True)
class PrincipalComponent(Source):
    """A principal component of h_tuned - h_base over tokens, around its mean, from the covariance [width, width] in float64; it
    points where the mean difference does.

    component   number of the component, from 0, the largest"""

    component: int = 0
    hookpoint: str = "resid_post"
    tokens: int = 50_000
    needs_pair = True

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        moments: list[tuple[Tensor, Tensor]] = []
        count = 0
        for batch, apart in differences(given, self.hookpoint, layers, self.tokens):
            new = [(value.sum(0), value.T @ value) for value in apart]
            moments = [(a + c, b + d) for (a, b), (c, d) in zip(moments, new, strict=True)] if moments else new
            count += len(batch.token)
        vectors, shares = {}, []
        for layer, (total, squares) in zip(layers, moments, strict=True):
            mean = total / count
            values, components = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
            if not 0 <= self.component < len(values):
                raise Refused(
                    f"component={self.component}: a difference of width {len(values)} has that many components."
                )
            if not values[-1] > 1e-12 * squares.diagonal().sum().clamp(min=1e-30) / count:
                raise Refused(f"h_tuned - h_base does not vary at layer {layer}: it has no principal component.")
            one = components[:, -1 - self.component]
            vectors[layer] = (one if one @ mean >= 0 else -one).float()
            shares.append(float(values[-1 - self.component] / values.clamp(min=0).sum()))
        return Direction(
            vectors, self.hookpoint, {**told(self, given.pair, role, read=count), "variance_share": shares}
        )


@dataclass(frozen=True, kw_only=True)
class DecoderRow(Source):
    """The decoder row of a latent in a model's own units, at the layer that the dictionary reads."""

    latent: int
    normalise: str = "none"
    needs_pair = True

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        dictionary = getattr(given, "dictionary", None)
        if dictionary is None or isinstance(dictionary, TranscoderAdapter):
            raise Refused("direction=decoder_row asks for a study with a dictionary that reconstructs activations.")
        dictionary = cast(ReconstructingDictionary, dictionary)
        if not 0 <= self.latent < dictionary.latents:
            raise Refused(f"latent={self.latent}: the dictionary has latents 0 to {dictionary.latents - 1}.")
        rows = dictionary.W_dec / dictionary.normalisation.scale
        pieces = dict(zip(dictionary.streams, rows[self.latent].detach().float().split(dictionary.widths), strict=True))
        own = {s.layer: (s, piece) for s, piece in pieces.items() if s.role == role}
        if missing := [layer for layer in layers if layer not in own]:
            raise Refused(f"layers {missing}: the dictionary reads the {role} model at {sorted(own)}.")
        vectors = {layer: own[layer][1].cpu() for layer in layers}
        hookpoint = own[layers[0]][0].hookpoint
        return normalised(Direction(vectors, hookpoint, told(self, given.pair, role)), self.normalise)


@dataclass(frozen=True, kw_only=True)
class Unembedding(Source):
    """The mean row of the unembedding of some tokens less that of all tokens, times the gain of the final norm where
    `through_norm`: what raises their logits most on the direct path. The same at every layer.

    tokens   texts; of each the first token that it is spelled with"""

    tokens: Sequence[str] = (" Wait",)
    through_norm: bool = True
    normalise: str = "unit"

    def __post_init__(self) -> None:
        if not self.tokens or not all(self.tokens):
            raise Refused(f"direction.tokens={list(self.tokens)}: give texts that the tokenizer spells.")

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        check_layers(given.pair, role, layers)
        rows, mean, gain = rows_of(given.pair, role, self.tokens)
        vector = (rows.mean(0) - mean) * (gain if self.through_norm else 1.0)
        found = Direction(dict.fromkeys(layers, vector), "resid_post", told(self, given.pair, role))
        return normalised(found, self.normalise)


@torch.no_grad()
def rows_of(pair: ModelPair, role: str, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [token, width] of the unembedding of the first token of each text, the mean row [width] of all, and the gain [width]
    of the final norm, in float32 on the CPU. Raises Refused for no text, or one without a token."""
    tokenizer = pair.tokenizers[pair.entry(role)]
    spelled = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    if not texts or not all(spelled):
        raise Refused(f"tokens {list(texts)}: give texts that the tokenizer spells.")
    weight, gain = unembedding(pair.models[role])
    known = weight[: min(len(weight), len(tokenizer))]
    total = torch.stack([part.float().sum(0) for part in known.split(4096)]).sum(0)
    numbers = sorted({ids[0] for ids in spelled})
    return weight[numbers].float().cpu(), (total / len(known)).cpu(), gain.cpu()


@dataclass(frozen=True, kw_only=True)
class RandomDirection(Source):
    """A direction uniform on the sphere, of length 1, another one at every layer; `draw` is its number among the draws of a
    seed."""

    seed: int = 0
    draw: int = 0
    hookpoint: str = "resid_post"

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        check_layers(given.pair, role, layers)
        width = given.pair.width(role, self.hookpoint)
        vectors = {
            layer: torch.randn(width, generator=randomness.generator(self.seed, "a random direction", self.draw, layer))
            for layer in layers
        }
        return Direction(vectors, self.hookpoint, told(self, given.pair, role)).units


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Source):
    """The rest of `source` without its component along `to`, as long as `source` was: with a random source the control
    of "any direction but this"."""

    source: Source
    to: Source

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        own, other = (one.find(given, role, layers) for one in (self.source, self.to))
        said = {"source": "Orthogonal", "of": dict(own.provenance), "to": dict(other.provenance)}
        return _without(own, {layer: other.at(layer)[None] for layer in layers}, said)


@dataclass(frozen=True, kw_only=True)
class WithoutLogitEffect(Source):
    """The rest of `source` once its direct effect on the logits of some tokens is gone: without the span of the rows of
    the unembedding of these, times the gain of the final norm, and as long as it was. It can raise them only through later
    layers.

    tokens   texts; of each the first token that it is spelled with"""

    source: Source
    tokens: Sequence[str] = (" Wait", " wait", "Wait", "wait", " Hmm", "Hmm")

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        own = self.source.find(given, role, layers)
        rows, mean, gain = rows_of(given.pair, role, self.tokens)
        said = {"source": "WithoutLogitEffect", "of": dict(own.provenance), "tokens": list(self.tokens)}
        return _without(own, dict.fromkeys(layers, (rows - mean) * gain), said)


@dataclass(frozen=True, kw_only=True)
class FromFile(Source):
    """A direction that a file holds, as evaluation=directions leaves it; of its layers those that are asked for."""

    path: str

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        found = read_direction(Path(self.path))
        chosen = replace(found, vectors={layer: found.at(layer) for layer in layers})
        chosen.check(given.pair, role)
        return chosen


def _without(own: Direction, rows: dict[int, Tensor], said: dict[str, Any]) -> Direction:
    """A direction without its part in the span of rows [n, width] of each layer, and as long as before. Raises Refused where
    nothing is left."""
    vectors = {}
    for layer in own.layers:
        vector = own.at(layer).double()
        span, sizes, _ = torch.linalg.svd(rows[layer].double().T, full_matrices=False)
        span = span[:, sizes > 1e-8 * sizes[0]]
        rest = vector - span @ (span.T @ vector)
        if rest.norm() < 1e-6 * vector.norm():
            raise Refused(f"At layer {layer} nothing is left of the direction: it lies in what is taken out of it.")
        vectors[layer] = (rest * (vector.norm() / rest.norm())).float()
    return Direction(vectors, own.hookpoint, said)
