"""A direction and its controls -> what is added to the hidden vectors of a model, all as long as the direction.

direction              as its source finds it in one of the models
label/<name>           the same source, of another label's events
overall_mean           the mean hidden vector of the model that the direction is from
without_logit_effect   the direction without its direct effect on the logits of the keywords, of the model that is steered
unembedding            the first keyword's row of the unembedding of the model that is steered
self                   the hidden vector itself, made longer: as much on average over tokens
random_direction       directions uniform on the sphere, which answer the problems in turn
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.directions import Direction, Place, Source, Unembedding, WithoutLogitEffect
from tunediff.directions.means import read
from tunediff.edits import Add, Directions, Edit, Gate, Operation, Part, Scale, Whole
from tunediff.evaluations.behaviour.solving import Condition
from tunediff.evaluations.latents.edits import random_direction
from tunediff.shapes import Refused, Stream

DIRECTION, RANDOM, PLAIN = "direction", "random_direction", "unedited"
CONTROLS = ("overall_mean", "without_logit_effect", "unembedding", "self")  # that are asked for by name
TITLES = {
    DIRECTION: "the direction",
    "overall_mean": "overall mean",
    "without_logit_effect": "without its effect on the logit",
    "unembedding": "unembedding",
    "self": "the hidden vector itself",
    RANDOM: "random directions",
}


class Steered(NamedTuple):
    """A vector, or random ones, added to one model at any strength.

    kind      as in the list at the head of the file       source   role of the model it was found in; None: in neither
    target    role of the model that is written            parts    one, or of random directions one a draw
    at        its place there                              operation   strength -> operation on a part
    """

    kind: str
    source: str | None
    target: str
    at: Stream
    parts: Sequence[Part]
    operation: Callable[[float], Operation] = Add

    @property
    def title(self) -> str:
        return TITLES.get(self.kind, self.kind.replace("/", " "))

    def named(self, strength: float) -> str:
        """The name of the condition at a strength, such as base_to_tuned/direction/2."""
        where = self.target if self.source is None else f"{self.source}_to_{self.target}"
        return f"{where}/{self.kind}/{strength:g}"

    def condition(self, strength: float, gate: Gate) -> Condition:
        edits = [(Edit(self.at, part, self.operation(strength), gate),) for part in self.parts]
        draws = tuple(edits) if self.kind == RANDOM else ()
        return Condition(
            self.named(strength),
            f"{self.title}, {self.source or 'neither'} to {self.target}, strength {strength:g}",
            self.target,
            () if draws else edits[0],
            self.kind != DIRECTION,
            f"{self.target}/{PLAIN}",
            drawn=draws,
        )


@dataclass(frozen=True)
class Found(Source):
    """A direction that was found before."""

    direction: Direction

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        return self.direction


class Moments(NamedTuple):
    """Mean hidden vector [width] of a model's kept tokens, and the mean norm of its hidden vectors."""

    mean: Tensor
    norm: float


def moments(given: Place, streams: Sequence[Stream], tokens: int) -> dict[str, Moments]:
    """Moments of each model's stream by its role, over the training side of the text."""
    totals, norms, count = [torch.zeros(s.width, dtype=torch.float64) for s in streams], [0.0] * len(streams), 0
    for batch, values in read(given.pair, given.text, streams, tokens):
        totals = [total + value.double().sum(0) for total, value in zip(totals, values, strict=True)]
        norms = [norm + float(value.double().norm(dim=-1).sum()) for norm, value in zip(norms, values, strict=True)]
        count += len(batch.token)
    found = zip(streams, totals, norms, strict=True)
    return {s.role: Moments((total / count).float(), norm / count) for s, total, norm in found}


def of_label(source: Source, label: str) -> Source:
    """The same source for another label's events. Raises Refused for one that has no label."""
    if not is_dataclass(source) or not hasattr(source, "label"):
        raise Refused(
            f"others=[{label}] asks for the directions of other labels, and {type(source).__name__} has no label: others=[]."
        )
    return replace(source, label=label)  # pyright: ignore[reportCallIssue]


def along(row: Tensor, size: float) -> Directions:
    """The part that adds so much along a row [width] at strength 1."""
    unit = torch.nn.functional.normalize(row.float(), dim=-1)[None]
    return Directions(unit, torch.tensor([size]), torch.zeros(1))


def drawn(at: Stream, size: float, draws: int, seed: int) -> list[Part]:
    """Random directions of this size, one a draw."""
    return [
        along(random_direction(at, randomness.generator(seed, "a direction beside a found one", draw)), size)
        for draw in range(draws)
    ]


def steered(
    given: Any,
    directions: dict[str, Direction],
    others: dict[str, dict[str, Direction]],
    target: str,
    layer: int,
    *,
    known: dict[str, Moments],
    unit: str,
    controls: Sequence[str],
    keywords: Sequence[str],
    draws: int,
    seed: int,
) -> Iterator[Steered]:
    """Everything that is added to one model. `directions` are by source, `others` by label and source; `unit` as in DirectionSteering. In
    residual_norm all have one size whatever their source, so that what depends on none is there once."""
    own = {source: float(direction.at(layer).norm()) for source, direction in directions.items()}
    sizes = own if unit == "own" else dict.fromkeys(directions, known[target].norm)
    for source, direction in directions.items():
        at = direction.stream(target, layer)
        rows = {DIRECTION: direction.at(layer)}
        rows |= {f"label/{label}": by_source[source].at(layer) for label, by_source in others.items()}
        if "overall_mean" in controls:
            rows["overall_mean"] = known[source].mean
        if "without_logit_effect" in controls:
            less = WithoutLogitEffect(source=Found(direction), tokens=keywords)
            rows["without_logit_effect"] = less.find(given, target, [layer]).at(layer)
        for kind, row in rows.items():
            yield Steered(kind, source, target, at, [along(row, sizes[source])])
    for source, size in sizes.items() if unit == "own" else ((None, known[target].norm),):
        at = next(iter(directions.values())).stream(target, layer)
        if "unembedding" in controls:
            word = Unembedding(tokens=keywords[:1]).find(given, target, [layer]).at(layer)
            yield Steered("unembedding", source, target, at, [along(word, size)])
        if "self" in controls:
            more = size / known[target].norm
            yield Steered("self", source, target, at, [Whole()], lambda strength, more=more: Scale(1 + strength * more))
        if draws:
            yield Steered(RANDOM, source, target, at, drawn(at, size, draws, seed))
