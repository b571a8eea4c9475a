"""Is a direction needed for a behaviour, and is it one of several? It is projected out of a model, which then answers; it is found
anew in what is left, projected out as well, and so on.

    round 1   the direction of each layer is projected out there, at every token
    round n   the directions are read once more while all those before are projected out (teacher-forced, on the same tokens), and
              what is new is projected out with them

A difference of means is linear in the hidden vectors: projected out of a layer, nothing is left of it in that layer by algebra, so
that no round says anything about one layer alone. Later layers read changed ones, and may build the difference again along other
directions: in round n there can be new ones from the n-th layer on. The norm of these against the first says how much is built
again; the rate of hesitation what the model makes of it. Random subspaces of as many dimensions in the same layers, which
answer the problems in turn, are the control.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunediff import randomness
from tunediff.directions import Source
from tunediff.edits import Directions, Edit, Zero
from tunediff.evaluations.behaviour.changes import Changed, told
from tunediff.evaluations.behaviour.conditions import accuracy, hesitations, length, perplexity
from tunediff.evaluations.behaviour.direction_claim import beyond_random
from tunediff.evaluations.behaviour.direction_notes import check_place, never_hesitates, said_of
from tunediff.evaluations.behaviour.oversteering import repeated
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, never_touched, outputs
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.behaviour.steered import PLAIN
from tunediff.evaluations.given import Given, Needs
from tunediff.hookpoints import Point, writing
from tunediff.measures.clustered import interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import ROLES, TUNED, Figure, Finding, Note, Refused, Stream, Table
from tunediff.text import Text

LEAST = 1e-3  # of the first direction's norm, below which what is found anew is rounding


class Round(NamedTuple):
    """The subspaces that are projected out in a round, and what was found for it: by layer.

    spans      orthonormal rows [n, width]                 new      norm of the direction found in this round, of the first
    overlap    share of its norm that lies in the span before; 0 but for rounding"""

    spans: dict[int, Tensor]
    new: dict[int, float]
    overlap: dict[int, float]


@dataclass(kw_only=True)
class DirectionNecessity(BehaviourEvaluation):
    """direction   how the direction is found; it is taken as long as it is
    layer       where it is read and projected out       onwards   true: in every later layer too, each its own
    role        the model                                rounds    how often at most it is found and projected out
    draws       number of random subspaces, the control, which answer the problems in turn; 0: none

    The first of the tasks is used; the behaviour is hesitation.
    """

    direction: Source
    layer: int
    onwards: bool = True
    role: str = TUNED
    rounds: int = 3
    draws: int = 20
    seed: int = 0

    name = "direction_necessity"
    needs = Needs.PAIR

    def __post_init__(self):
        if self.role not in ROLES:
            raise Refused(f"direction_necessity.role={self.role}: choose base or tuned.")
        if self.rounds < 1:
            raise Refused(f"direction_necessity.rounds={self.rounds}: give at least 1.")
        if self.draws < 0:
            raise Refused(f"direction_necessity.draws={self.draws}: give 0 or more.")
        if self.direction.needs_pair:
            raise Refused(
                f"{type(self.direction).__name__} looks at more than the model it is projected out of, so that what is left of it "
                "there says nothing: choose a direction of one model, such as DifferenceOfMeans."
            )
        self.tasks = dict(itertools.islice(self.tasks.items(), 1))

    def check(self, pair: ModelPair, text: Text) -> None:
        super().check(pair, text)
        check_place(pair, [self.role], self.direction, self.layer)

    def times_asked(self, pair: ModelPair) -> int:
        return 1 + self.rounds * (2 if self.draws else 1)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        source = replace(self.direction, normalise="none") if hasattr(self.direction, "normalise") else self.direction  # pyright: ignore
        layers = list(range(self.layer, given.pair.depth(self.role) if self.onwards else self.layer + 1))
        check_place(given.pair, [self.role], self.direction, self.layer)
        first = source.find(given, self.role, layers)
        yield from said_of(self.name, given, {self.role: first}, source, self.layer)
        rounds = list(rounds_of(given, source, self.role, layers, self.rounds))
        if len(rounds) < self.rounds:
            yield Note(
                f"{self.name}: after round {len(rounds)} nothing of the direction is left in any of the layers "
                f"{', '.join(map(str, layers))}: a difference of means is linear, and no later layer builds it again."
            )
        made = [Condition(PLAIN, f"{self.role}, unedited", self.role)]
        for n, one in enumerate(rounds, 1):
            own = projections(self.role, first.hookpoint, one.spans)
            made.append(Condition(f"round/{n}", f"projected out, round {n}", self.role, own, False, PLAIN))
            if self.draws:
                some = [subspaces(one.spans, self.seed, draw) for draw in range(self.draws)]
                drawn = tuple(projections(self.role, first.hookpoint, spans) for spans in some)
                title = f"random subspaces, round {n}"
                made.append(Condition(f"random/{n}", title, self.role, (), True, PLAIN, drawn=drawn))
        found = self.solved(given, (yield from self.asked(given)), made)
        yield from never_touched(self.name, found)
        yield from never_hesitates(self.name, found)
        by_name = {name: answered.solved for (_, name), answered in found.items()}
        yield from self._told(rounds, by_name)
        yield Table.of(
            f"{self.name}_outputs", outputs({k: one for k, one in found.items() if not one.condition.control})
        )

    def _told(
        self, rounds: Sequence[Round], found: Mapping[str, Sequence[Solved]]
    ) -> Iterator[Finding | Table | Figure | Note]:
        plain = found[PLAIN]
        rows = [{"round": 0, "kind": "unedited", "dimensions": 0, "new": None, "overlap": None, **_point(plain)}]
        changes = []
        for n, one in enumerate(rounds, 1):
            own, random = found[f"round/{n}"], found.get(f"random/{n}", ())
            changes.append(Changed(own, plain, random))
            yield from told(f"{self.name}/round_{n}", Changed(own, plain))
            if (beyond := beyond_random(own, random)) is not None:
                yield Finding(
                    f"{self.name}/round_{n}/hesitation_rate_over_random",
                    *beyond.bounded(),
                    meaning=f"hesitations per 1,000 tokens less those of {self.draws} random subspaces, which answered the same "
                    "problems in turn; the interval is that of the difference from one more of them (prediction interval)",
                    over="draws and problems",
                )
            of_round = {
                "round": n,
                "dimensions": max(map(len, one.spans.values())),
                "new": sum(one.new.values()) / len(one.new),
                "overlap": max(one.overlap.values()),
            }
            rows.append({**of_round, "kind": "projected out", **_point(own)})
            yield Finding(
                f"{self.name}/round_{n}/new_norm",
                of_round["new"],
                meaning="norm of the direction found in this round as a share of the first, mean over the layers that have one",
            )
            if random:
                rows.append({**of_round, "kind": "random subspaces", "new": None, "overlap": None, **_point(random)})
        yield Note(f"{self.name}: {needed(changes)}")
        yield Table.of(self.name, rows)
        yield figure(rows)


def needed(rounds: Sequence[Changed]) -> str:
    """The verdict in words, from what each round changed; a model that breaks down hesitates no more, which is said with it."""
    first = rounds[0]
    solves = first.over_random("accuracy") if first.control else first.change("accuracy")
    if solves is not None and solves.sign() < 0:
        than = "than without a random subspace" if first.control else "than before"
        return (
            f"without the direction the model solves fewer problems {than} ({100 * float(solves.value):+.0f} points): more than hesitation "
            "is gone, and whether that needs it cannot be told"
        )
    return _of_rates(rounds)


def _of_rates(rounds: Sequence[Changed]) -> str:
    """The verdict where the model still solves what it solved."""
    first, last = rounds[0], rounds[-1]
    change, beyond = first.change("hesitation_rate"), beyond_random(first.own, first.control)
    less = change is not None and change.sign() < 0
    falls = less and (beyond is None or beyond.sign() < 0)
    further = Changed(last.own, first.own).change("hesitation_rate")
    more = len(rounds) > 1 and further is not None and further.sign() < 0
    if falls and more:
        return "without the direction the model hesitates less, and less still without what was found anew: it is one of several"
    if falls:
        rest = "; what was found anew takes away no more of it beyond doubt" if len(rounds) > 1 else ""
        return f"without the direction the model hesitates less than without a random subspace: it is needed{rest}"
    if more:
        return (
            "without the direction alone the model hesitates no less beyond doubt, and less once what was found anew is gone too: "
            "it is one of several"
        )
    if less:
        return (
            "without the direction the model hesitates less, but whether less than without one more random subspace is open: that it "
            "is needed is underpowered"
        )
    return "that the model hesitates less without the direction is not beyond doubt"


def rounds_of(given: Given, source: Source, role: str, layers: Sequence[int], rounds: int) -> Iterator[Round]:
    """The rounds, until nothing new is found; at most so many."""
    first = source.find(given, role, layers)
    norms = {layer: float(first.at(layer).norm()) for layer in layers}
    spans = {layer: nn.functional.normalize(first.at(layer).double(), dim=0)[None] for layer in layers}
    yield Round(dict(spans), dict.fromkeys(layers, 1.0), dict.fromkeys(layers, 0.0))
    for n in range(1, rounds):
        later = layers[n:]  # what the earlier ones read has not changed since the last round
        if not later:
            return
        with projecting(given.pair.models[role], first.hookpoint, spans):
            found = source.find(given, role, later)
        new, overlap = {}, {}
        for layer in later:
            vector = found.at(layer).double()
            new[layer] = float(vector.norm()) / norms[layer]
            inside = vector @ spans[layer].T
            overlap[layer] = float(inside.norm() / vector.norm())
            rest = vector - inside @ spans[layer]
            if float(rest.norm()) > LEAST * norms[layer]:
                spans[layer] = torch.cat([spans[layer], nn.functional.normalize(rest, dim=0)[None]])
        if all(len(spans[layer]) <= n for layer in later):
            return
        yield Round(dict(spans), new, overlap)


@contextmanager
def projecting(model: nn.Module, hookpoint: str, spans: Mapping[int, Tensor]) -> Iterator[None]:
    """Context in which orthonormal rows [n, width] of each layer are projected out of the hidden vectors there, at every token."""

    def without(rows: Tensor, value: Tensor) -> Tensor:
        rows = rows.to(value)
        return value - (value @ rows.T) @ rows

    with ExitStack() as hooks:
        for layer, rows in spans.items():
            hooks.enter_context(writing(model, Point(hookpoint, layer), functools.partial(without, rows)))
        yield


def projections(role: str, hookpoint: str, spans: Mapping[int, Tensor]) -> tuple[Edit, ...]:
    """The edits that do the same in scoring and generation."""
    return tuple(
        Edit(
            Stream(role, hookpoint, layer, rows.shape[1]),
            Directions(rows.float(), torch.zeros(len(rows)), torch.zeros(len(rows))),
            Zero(),
        )
        for layer, rows in spans.items()
    )


def subspaces(spans: Mapping[int, Tensor], seed: int, draw: int) -> dict[int, Tensor]:
    """Orthonormal rows of as many random dimensions in each layer."""
    found = {}
    for layer, rows in spans.items():
        generator = randomness.generator(seed, "a random subspace in place of directions", draw, layer)
        found[layer] = torch.linalg.qr(torch.randn(rows.T.shape, generator=generator, dtype=torch.float64))[0].T
    return found


def _point(solved: Sequence[Solved]) -> dict[str, Any]:
    return {
        **interval_columns("behaviour", hesitations(solved)),
        **interval_columns("accuracy", accuracy(solved)),
        **interval_columns("perplexity", perplexity(solved)),
        "repetition": repeated(solved),
        **interval_columns("tokens", length(solved).skewed(least=0.0)),
    }


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws the rate, accuracy and perplexity of each round, beside random subspaces."""
    start = [{**rows[0], "kind": kind, "plain": True} for kind in dict.fromkeys(row["kind"] for row in rows[1:])]
    shown = [*start, *({**row, "plain": False} for row in rows[1:])]
    return Figure(
        name="direction_necessity/rounds",
        kind="lines",
        columns=Table.of("", [{**row, "control": row["kind"] == "random subspaces"} for row in shown]).columns,
        x="round",
        y=["behaviour", "accuracy", "perplexity"],
        section="Directions: is it needed, and is it one of several?",
        title="Projected out",
        caption="In each round the direction is found anew in what the rounds before left of it, and projected out as well; round 0 is "
        "the model as it is, which the dashed level continues. Bands are 95 % intervals over problems, of random subspaces of as "
        "many dimensions over these with their problems.",
        group="kind",
        control="control",
        rule="plain",
        words={
            "behaviour": "hesitations per 1,000 tokens",
            "perplexity": "perplexity of the responses",
            "new": "norm of what was found anew, of the first",
            "overlap": "its share within what was projected out before",
            "dimensions": "dimensions a layer",
            "control": "control",
        },
    )
