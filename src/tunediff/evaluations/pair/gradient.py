"""Gradients of hidden vectors: what would training on a text do to a direction, before its first step, and what do a vector that
is added or a sentence in the prompt change about it?

    plain          the model on the text as it is
    added/<s>      s times the direction is added at one layer, at every token: preventative steering
    random/<s>     random vectors of the same length in its place: is it this direction, or any of its size?
    <prompt>       a sentence stands in the prompt: inoculation prompting, or a placebo

of which, over the tokens that predict what is learned, with g the gradient of the loss of a text's tokens, in nats:

    loss           nats a learned token
    along          mean of -<g, v> / |v| at each layer: above 0 a step of descent raises the activation along v (it amplifies the
                   trait), below 0 it lowers it             amplifying   share of tokens at which it is above 0
    participation  of how many directions the gradients make equal use, and `first`, the share of the largest: measures/gradients.py
    cosine         of the changes that two conditions make to the mean gradient, and of each with the direction

"Shifting the Gradient" (arXiv 2604.16423) says that added vectors turn the gradient towards attenuation and lower the loss no
more than they raise it, and that prompts lower the loss and change the gradient otherwise; its definitions and values were not to
be had, and these are ours. The gradient at the module's output and behind an added constant are the same number: what differs
is what the model computes from there on. A gradient of activations is no update of weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunediff import randomness
from tunediff.directions import Direction, Source
from tunediff.evaluations.given import Given, Needs, Work
from tunediff.hookpoints import Point, reading, writing
from tunediff.measures.clustered import Bounded, Estimate, interval_columns, jackknifed, ratio
from tunediff.measures.gradients import component, spread
from tunediff.models import ModelPair
from tunediff.objectives import Imitation
from tunediff.shapes import BASE, ROLES, Figure, Finding, Note, Refused, Stream, Table
from tunediff.text import Example, Text, examples
from tunediff.text.examples import IGNORED, MicroBatch, collated

PLAIN = "plain"
GROUPS = 20
UNITS = ("own", "residual_norm")
Step = Callable[[Any], Any]  # a step of text.prepare


class Condition(NamedTuple):
    """name, vectors [draw, width] that are added in turn, an example each, and the step that puts a sentence into prompts"""

    name: str
    added: Tensor | None = None
    prompt: Step | None = None


class Taken(NamedTuple):
    """Sums over the tokens of every example, in float64: nats and tokens [example], and at each layer the sum of components and the number of amplifying
    tokens [example, layer]; at the layer of the vector the sums of gradients [group, width] and of their outer products."""

    nats: Tensor
    tokens: Tensor
    along: Tensor
    amplifying: Tensor
    mean: Tensor
    moments: Tensor


@dataclass(kw_only=True)
class Gradient:
    """direction   where the direction comes from; found in the model of `role`
    role        the model whose gradients are taken      layer     layer at which vectors are added
    layers      layers at which gradients are measured; None: all
    strengths   of the added vector, in units of `unit`: own, the vector as its source made it; residual_norm, the mean length of
                the hidden vectors there
    prompts     name -> step of text.prepare that puts a sentence into the prompt
    draws       random vectors in place of the direction, which take the examples in turn; 0: none
    examples    of the text's training side      block     tokens of each at most      seed   of the random vectors
    """

    direction: Source
    layer: int
    role: str = BASE
    layers: Sequence[int] | None = None
    strengths: Sequence[float] = (1.0, 2.0, 4.0)
    unit: str = "own"
    prompts: Mapping[str, Step] | None = None
    draws: int = 10
    examples: int = 200
    block: int = 2048
    seed: int = 0

    needs = Needs.PAIR

    def __post_init__(self) -> None:
        if self.unit not in UNITS or self.role not in ROLES:
            raise Refused(
                f"gradient.unit={self.unit}, gradient.role={self.role}: choose {' or '.join(UNITS)}, and base or tuned."
            )
        if not all(0 < strength < math.inf for strength in self.strengths):
            raise Refused(
                f"gradient.strengths={list(self.strengths)}: give numbers above 0; 0 is always measured, as plain."
            )
        if self.examples < 2 or self.draws < 0:
            raise Refused(
                f"gradient.examples={self.examples}, gradient.draws={self.draws}: give at least 2 examples, and 0 draws or more."
            )
        if taken := {PLAIN, "added", "random", "direction"} & {*(self.prompts or ())}:
            raise Refused(
                f"gradient.prompts names {sorted(taken)}, which mean something else here: choose other names."
            )

    def check(self, pair: ModelPair, text: Text) -> None:
        """Raises Refused for layers that the model has not."""
        if outside := [layer for layer in (self.layer, *(self.layers or ())) if not 0 <= layer < pair.depth(self.role)]:
            raise Refused(
                f"gradient: layer {outside[0]} is none of the {self.role} model's, 0 to {pair.depth(self.role) - 1}."
            )

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """A pass forward and one back, which takes twice as much, of each condition."""
        conditions = 1 + len(self.strengths) * (2 if self.draws else 1) + len(self.prompts or ())
        return Work(passes=3 * conditions * self.examples * self.block / 40_000)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        pair = given.pair
        layers = list(self.layers) if self.layers is not None else list(range(pair.depth(self.role)))
        direction = self.direction.find(given, self.role, sorted({*layers, self.layer}))
        direction.check(pair, self.role)
        learned: dict[Step | None, list[Example]] = {None: self._examples(given, None)}
        for prompt in (self.prompts or {}).values():
            learned[prompt] = self._examples(given, prompt)
        conditions = self._conditions(given, direction, learned[None])
        found = {one.name: self._taken(given, direction, layers, one, learned[one.prompt]) for one in conditions}
        yield Note(
            f"gradient: {len(learned[None]):,} examples of the training side, {int(found[PLAIN].tokens.sum()):,} learned tokens; vectors "
            f"are added at layer {self.layer} of the {self.role} model, in units of {self.unit}"
        )
        rows = [row for name in found for row in self._rows(name, layers, found)]
        table, cosines = Table.of("gradient", rows), Table.of("gradient_cosines", list(self._cosines(direction, found)))
        yield table
        yield cosines
        yield from self._findings(rows, found)
        yield from _figures(table.columns, cosines.columns, self.layer)

    # -- what is measured ------------------------------------------------------------------------------------------------

    def _examples(self, given: Given, prompt: Step | None) -> list[Example]:
        text = given.text
        if prompt is not None:
            text = copy.copy(given.text)
            text.prepare = {**given.text.prepare, "of gradient.prompts": prompt}
        tokenizer = given.pair.tokenizers[given.pair.entry(self.role)]
        found = examples(text, tokenizer, block=self.block, limit=self.examples, setting="gradient.block")
        if len(found) < 2:
            raise Refused(
                f"gradient: the training side of the text has {len(found)} examples, and at least 2 are needed."
            )
        return list(found)

    def _conditions(self, given: Given, direction: Direction, some: Sequence[Example]) -> list[Condition]:
        vector, made = direction.at(self.layer), [Condition(PLAIN)]
        if self.unit == "residual_norm":
            vector = vector / vector.norm() * self._residual_norm(given, direction.hookpoint, some)
        drawn = [
            torch.randn(len(vector), generator=randomness.generator(self.seed, "vectors beside an added one", draw))
            for draw in range(self.draws)
        ]
        others = torch.stack([one / one.norm() * vector.norm() for one in drawn]) if drawn else None
        for strength in self.strengths:
            made.append(Condition(f"added/{strength:g}", strength * vector[None]))
            if others is not None:
                made.append(Condition(f"random/{strength:g}", strength * others))
        return [*made, *(Condition(name, None, prompt) for name, prompt in (self.prompts or {}).items())]

    @torch.no_grad()
    def _residual_norm(self, given: Given, hookpoint: str, some: Sequence[Example]) -> float:
        """Mean length of the hidden vectors at the layer, over all tokens of the examples."""
        model, total, count = given.pair.models[self.role], 0.0, 0
        point = Point(hookpoint, self.layer)
        for example in some:
            with reading(model, [point], stop=False) as read:
                model.base_model(
                    input_ids=torch.tensor([example.ids], device=given.pair.device(self.role)), use_cache=False
                )
            total, count = total + float(read[point][0].float().norm(dim=-1).sum()), count + len(example.ids)
        return total / count

    def _taken(
        self, given: Given, direction: Direction, layers: Sequence[int], condition: Condition, some: Sequence[Example]
    ) -> Taken:
        pair, width = given.pair, len(direction.at(self.layer))
        objective = Imitation(given.logits_mb)
        objective.check(pair.models[self.role])
        points = [Point(direction.hookpoint, layer) for layer in dict.fromkeys([*layers, self.layer])]
        mean, moments = torch.zeros(GROUPS, width).double(), torch.zeros(width, width).double()
        rows = []
        for number, example in enumerate(some):
            batch = MicroBatch(*(part.to(pair.device(self.role)) for part in collated([example])))
            added = None if condition.added is None else condition.added[number % len(condition.added)]
            nats, gradients = self._backward(pair, objective, batch, points, added)
            predicts = batch.labels[0] != IGNORED
            if not math.isfinite(nats):
                raise Refused(
                    f"gradient: the loss under {condition.name} is {nats}: lower gradient.strengths={list(self.strengths)}."
                )
            of_layer = [
                component(gradients[Point(direction.hookpoint, n)][predicts], direction.at(n)).cpu().double()
                for n in layers
            ]
            own = gradients[Point(direction.hookpoint, self.layer)][predicts].cpu().double()
            mean[number % GROUPS] += own.sum(0)
            moments += own.T @ own
            counts = [float(sum(part)) for values in of_layer for part in (values, values > 0)]
            rows.append(torch.tensor([nats, float(predicts.sum()), *counts], dtype=torch.float64))
        stacked = torch.stack(rows)
        return Taken(stacked[:, 0], stacked[:, 1], stacked[:, 2::2], stacked[:, 3::2], mean, moments)

    def _backward(
        self, pair: ModelPair, objective: Imitation, batch: MicroBatch, points: Sequence[Point], added: Tensor | None
    ) -> tuple[float, dict[Point, Tensor]]:
        """Nats of the learned tokens of one example, and their gradient [position, width] at every point."""
        model = pair.models[self.role]
        at = Point(points[0].hookpoint, self.layer)

        def begin(value: Tensor) -> Tensor:
            return value.detach().requires_grad_(True)

        def add(value: Tensor) -> Tensor:
            return value + added.to(value) if added is not None else value

        with torch.enable_grad(), ExitStack() as hooks:
            hooks.enter_context(writing(model, Point("resid_pre", 0), begin))
            read = hooks.enter_context(reading(model, points, stop=False, detach=False))
            hooks.enter_context(writing(model, at, add))
            nats, _ = objective.loss_sum(model, batch)
            found = torch.autograd.grad(nats, [read[point] for point in points])
        return float(nats.detach()), {point: g[0].detach() for point, g in zip(points, found, strict=True)}

    # -- what is said of it ------------------------------------------------------------------------------------------------

    def _rows(self, name: str, layers: Sequence[int], found: Mapping[str, Taken]) -> Iterator[dict[str, Any]]:
        own, plain = found[name], found[PLAIN]
        loss, uses = ratio(own.nats, own.tokens), spread(own.moments)
        for n, layer in enumerate(layers):
            along, before = (ratio(one.along[:, n], one.tokens) for one in (own, plain))
            yield {
                "condition": name,
                "layer": layer,
                **interval_columns("along", along.bounded()),
                **interval_columns("along_change", _change(along, before)),
                **interval_columns("amplifying", ratio(own.amplifying[:, n], own.tokens).bounded(least=0.0, most=1.0)),
                **interval_columns("loss", loss.bounded(least=0.0)),
                **interval_columns("loss_change", _change(loss, ratio(plain.nats, plain.tokens))),
                "participation": uses.participation if layer == self.layer else None,
                "first": uses.first if layer == self.layer else None,
            }

    def _cosines(self, direction: Direction, found: Mapping[str, Taken]) -> Iterator[dict[str, Any]]:
        """Cosines of the changes of mean gradients at the layer of the vector, as descent follows them, with one another and with
        the direction; `plain` stands for its gradient itself."""
        axis = direction.at(self.layer).double()

        def sides(name: str) -> Tensor:
            """[group + 1, width]: descent's mean step of all, and without each group."""

            def mean(one: Taken) -> Tensor:
                whole, count = one.mean.sum(0), float(one.tokens.sum())
                counts = torch.zeros(GROUPS).double().index_add_(0, torch.arange(len(one.tokens)) % GROUPS, one.tokens)
                return -torch.cat([(whole / count)[None], (whole - one.mean) / (count - counts)[:, None]])

            return mean(found[name]) - (mean(found[PLAIN]) if name != PLAIN else 0.0)

        steps = {name: sides(name) for name in found} | {"direction": axis.expand(GROUPS + 1, -1)}
        filled = min(GROUPS, len(found[PLAIN].tokens))
        for one, other in itertools.combinations(steps, 2):
            values = cosine_similarity(steps[one], steps[other], dim=-1)
            made = jackknifed(values[0], values[1 : filled + 1], torch.ones(filled, dtype=torch.float64))
            yield {"one": one, "other": other, **interval_columns("cosine", made.bounded(least=-1.0, most=1.0))}

    def _findings(self, rows: Sequence[dict[str, Any]], found: Mapping[str, Taken]) -> Iterator[Finding]:
        here = [row for row in rows if row["layer"] == self.layer] or [
            row for row in rows if row["layer"] == rows[0]["layer"]
        ]
        meanings = {
            "loss": "nats a learned token",
            "loss_change": "nats a learned token, less those of the plain text",
            "along": f"mean of -<g, v>/|v| at layer {here[0]['layer']}, nats a unit: above 0 descent amplifies",
            "along_change": f"the same, less that of the plain text, at layer {here[0]['layer']}",
            "amplifying": f"share of learned tokens at which descent amplifies, at layer {here[0]['layer']}",
        }
        for row in here:
            for name, meaning in meanings.items():
                if row["condition"] == PLAIN and name.endswith("_change"):
                    continue
                ends = row[name], row[f"{name}_low"], row[f"{name}_high"]
                over = "examples" if ends[1] is not None else ""
                yield Finding(f"gradient/{row['condition']}/{name}", *ends, meaning, over=over)
            if row["participation"] is not None:
                meaning = f"of how many directions gradients at layer {self.layer} make equal use: (sum s)^2 / sum s^2"
                yield Finding(f"gradient/{row['condition']}/participation", row["participation"], meaning=meaning)
                meaning = f"share of the first component of gradients at layer {self.layer}, not centred"
                yield Finding(f"gradient/{row['condition']}/first", row["first"], meaning=meaning)


def _change(own: Estimate, plain: Estimate) -> Bounded:
    """A number less that of the plain text, on the same examples."""
    return (own - plain).bounded()


def _figures(rows: dict[str, list], cosines: dict[str, list], at: int) -> Iterator[Figure]:
    section = "What training would do to a direction, before its first step"
    random = [str(name).startswith("random/") for name in rows["condition"]]
    yield Figure(
        "gradient/along",
        kind="lines",
        columns=rows | {"random": random},
        x="layer",
        y=["along", "amplifying"],
        section=section,
        title="Component of descent's step along the direction, layer by layer",
        caption="Above 0 a step of descent raises the activation along the direction. Bands are 95 % intervals over examples; random vectors "
        "of the same length are the control.",
        group="condition",
        control="random",
        words={"along": "nats a unit along the direction", "amplifying": "share of tokens that amplify"},
    )
    shown = at if at in rows["layer"] else rows["layer"][0]
    kept = [n for n, layer in enumerate(rows["layer"]) if layer == shown]
    yield Figure(
        "gradient/loss",
        kind="intervals",
        columns={name: [values[n] for n in kept] for name, values in rows.items()},
        x="condition",
        y=["loss", *["participation", "first"] * (shown == at)],
        section=section,
        title="Loss on what is learned, with the vector or the sentence there",
        group="condition",
        words={
            "loss": "nats a learned token",
            "participation": "participation ratio",
            "first": "share of the first component",
        },
    )
    pairs = [f"{one} and {other}" for one, other in zip(cosines["one"], cosines["other"], strict=True)]
    yield Figure(
        "gradient/cosines",
        kind="intervals",
        columns=cosines | {"pair": pairs},
        x="pair",
        y=["cosine"],
        section=section,
        title="Cosines of the changes that they make to the mean step",
        caption="plain stands for the step itself, the others for what they change of it.",
        group="pair",
        words={"cosine": "cosine"},
    )
