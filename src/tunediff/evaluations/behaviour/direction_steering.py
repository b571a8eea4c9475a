"""The 2 x 2 of "Reasoning-Finetuning Repurposes Latent Representations in Base Models" (arXiv 2507.12638): a direction that is
found in the base or in the tuned model steers the base or the tuned model.

direction_claim.py has the verdict on the paper's claim, steered.py the controls. The rate of keywords rises as well when a text
degenerates, so that each stands with its coherence, as in steering_sweep.py. The published figures are of directions of length 1
(the authors' early code) and, in replications, of directions as they are: these are not comparable, and `unit` says which was
steered with. Intervals are 95 % together over the strengths (Bonferroni).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunediff.directions import Direction, Source
from tunediff.edits import Everywhere, Gate
from tunediff.evaluations.behaviour.conditions import (
    accuracy,
    hesitations,
    length,
    mean,
    mean_change,
    perplexity,
    rate_of,
)
from tunediff.evaluations.behaviour.direction_claim import claim, step_of
from tunediff.evaluations.behaviour.direction_figures import UNITS, figures
from tunediff.evaluations.behaviour.direction_notes import check_place, never_hesitates, said_of
from tunediff.evaluations.behaviour.judged import Judged, agreement, judged, rate
from tunediff.evaluations.behaviour.oversteering import Curve, coherent, of_one, repeated
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found, never_touched, outputs
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.behaviour.steered import (
    CONTROLS,
    DIRECTION,
    PLAIN,
    RANDOM,
    Moments,
    Steered,
    moments,
    of_label,
    steered,
)
from tunediff.evaluations.given import Given, Needs
from tunediff.evaluations.judging.chat import Judge
from tunediff.measures.clustered import Bounded, Estimate, interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text

VERDICTS = {"holds": "holds", "does not hold": "does not hold", "underpowered": "is underpowered"}
KEYWORDS = (" Wait", " wait", "Wait", "wait", " Hmm", "Hmm")


class Point(NamedTuple):
    """The responses at one strength, those under random directions of that length, and whether the first are coherent."""

    strength: float
    solved: Sequence[Solved]
    chance: Sequence[Solved]
    coherent: bool


@dataclass(kw_only=True)
class DirectionSteering(BehaviourEvaluation):
    """direction     how the direction is found, in each of `sources`
    layer         where it is read and written
    sources       roles of the models that it is found in         targets   of those that it steers
    strengths     strengths of it, in units of `unit`             gate      the tokens at which it is added
    unit          residual_norm: the mean norm of the target's hidden vectors there, the direction at length 1; own: the
                  direction as long as its source made it
    others        labels whose directions, found the same way, are controls of this one
    controls      overall_mean, without_logit_effect, unembedding, self, as in steered.py
    keywords      texts whose first tokens are those of the behaviour: the first for `unembedding`, all for `without_logit_effect`
    draws         number of random directions, a control, which answer the problems in turn; 0: none
    norm_tokens   tokens of the text over which norms and the overall mean are taken
    collapse, repetition   bounds of a coherent text, as in SteeringSweep
    judge         a language model that is asked whether responses backtrack, of the directions alone; None: nobody is asked

    The first of the tasks is used; the behaviour is hesitation.
    """

    direction: Source
    layer: int
    strengths: Sequence[float]
    sources: Sequence[str] = ROLES
    targets: Sequence[str] = ROLES
    unit: str = "residual_norm"
    gate: Gate = Everywhere()
    others: Sequence[str] = ()
    controls: Sequence[str] = CONTROLS
    keywords: Sequence[str] = KEYWORDS
    collapse: float = 3.0
    repetition: float = 0.5
    draws: int = 20
    norm_tokens: int = 20_000
    judge: Judge | None = None
    seed: int = 0

    name = "direction_steering"
    needs = Needs.PAIR

    def __post_init__(self):
        for setting in ("sources", "targets"):
            given = list(getattr(self, setting))
            if not given or set(given) - set(ROLES) or len(set(given)) < len(given):
                raise Refused(f"direction_steering.{setting}={given}: give base, tuned or both.")
        if self.draws < 0 or self.norm_tokens < 1:
            raise Refused(
                f"direction_steering.draws={self.draws}, norm_tokens={self.norm_tokens}: give 0 draws or more, and tokens from 1."
            )
        if self.unit not in UNITS:
            raise Refused(f"direction_steering.unit={self.unit}: choose {' or '.join(UNITS)}.")
        if not self.strengths or any(strength <= 0 for strength in self.strengths):
            raise Refused("direction_steering needs strengths above 0; 0 is always measured.")
        if unknown := set(self.controls) - set(CONTROLS):
            raise Refused(f"direction_steering.controls has {sorted(unknown)}: choose of {', '.join(CONTROLS)}.")
        if not self.keywords and set(self.controls) & {"unembedding", "without_logit_effect"}:
            raise Refused(
                "direction_steering.keywords=[]: unembedding and without_logit_effect ask for the words of the behaviour."
            )
        for label in self.others:
            of_label(self.direction, label)
        self.chat = None if self.judge is None else self.judge.chat("evaluation.direction_steering.judge")
        self.strengths = sorted(self.strengths)
        self.tasks = dict(itertools.islice(self.tasks.items(), 1))

    def check(self, pair: ModelPair, text: Text) -> None:
        super().check(pair, text)
        check_place(pair, dict.fromkeys((*self.sources, *self.targets)), self.direction, self.layer)

    def times_asked(self, pair: ModelPair) -> int:
        from_target = len({"unembedding", "self"} & set(self.controls)) + bool(self.draws)
        from_source = 1 + len(self.others) + len(set(self.controls) - {"unembedding", "self"})
        times = len(self.sources) if self.unit == "own" else 1
        each = len(self.sources) * from_source + times * from_target
        return len(self.targets) * (1 + each * len(self.strengths))

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        directions = {source: self.direction.find(given, source, [self.layer]) for source in self.sources}
        yield from said_of(self.name, given, directions, self.direction, self.layer)
        others = {
            label: {
                source: of_label(self.direction, label).find(given, source, [self.layer]) for source in self.sources
            }
            for label in self.others
        }
        hookpoint = next(iter(directions.values())).hookpoint
        for target, direction in itertools.product(self.targets, directions.values()):
            direction.check(given.pair, target)
        roles = dict.fromkeys((*self.sources, *self.targets))
        places = [stream for role in roles for stream in given.pair.streams(hookpoint, self.layer, reads=role)]
        known = moments(given, places, self.norm_tokens)
        added = [
            one
            for target in self.targets
            for one in steered(
                given,
                directions,
                others,
                target,
                self.layer,
                known=known,
                unit=self.unit,
                controls=self.controls,
                keywords=self.keywords,
                draws=self.draws,
                seed=self.seed,
            )
        ]
        made = [Condition(f"{role}/{PLAIN}", f"{role}, unedited", role) for role in self.targets]
        made += [one.condition(strength, self.gate) for one in added for strength in self.strengths]
        found = self.solved(given, (yield from self.asked(given)), made)
        yield from never_touched(self.name, found)
        yield from never_hesitates(self.name, found)
        verdicts: Judged = {}
        if self.chat is not None:
            shown = {key: one.solved for (_, key), one in found.items() if not one.condition.control}
            fewer = "evaluation.direction_steering.problems"
            verdicts = yield from judged(self.chat, shown, name=self.name, fewer=fewer)
            yield agreement(verdicts, name=self.name, model=self.chat.model)
        yield from self._told(found, added, directions, known, verdicts)

    def _told(
        self,
        found: Found,
        added: Sequence[Steered],
        directions: Mapping[str, Direction],
        known: Mapping[str, Moments],
        verdicts: Judged,
    ) -> Iterator[Finding | Table | Figure | Note]:
        (task,) = self.tasks
        rows, cells, steps = [], [], {}
        for target in self.targets:
            plain = found[task, f"{target}/{PLAIN}"].solved
            seen = interval_columns("judged", rate(verdicts, f"{target}/{PLAIN}"))
            rows.append(
                {"source": None, "target": target, "kind": PLAIN, **_point(0.0, plain, plain, (), True), **seen}
            )
            mine = [one for one in added if one.target == target]
            for one in mine:
                curve = [found[task, one.named(strength)].solved for strength in self.strengths]
                fine = coherent(plain, curve, collapse=self.collapse, repetition=self.repetition)
                beside = [r for r in mine if r.kind == RANDOM != one.kind and r.source in (None, one.source)]
                chance = [found[task, r.named(strength)].solved for r in beside for strength in self.strengths]
                points = [
                    Point(*point)
                    for point in zip(self.strengths, curve, chance or [()] * len(curve), fine, strict=True)
                ]
                named = {"source": one.source, "target": target, "kind": one.kind}
                for p in points:
                    seen = interval_columns("judged", rate(verdicts, one.named(p.strength)))
                    rows.append({**named, **_point(p.strength, plain, p.solved, p.chance, p.coherent), **seen})
                if one.kind == DIRECTION and one.source is not None:
                    steps[one.source, target] = [step_of(plain, p.solved, p.chance, p.coherent) for p in points]
                    one_long = known[target].norm
                    if self.unit == "own":
                        one_long = float(directions[one.source].at(self.layer).norm())
                    cells.append((yield from self._cell(one, plain, points, one_long)))
        if {(BASE, BASE), (BASE, TUNED)} <= set(steps):
            verdict = claim(steps[BASE, TUNED], steps[BASE, BASE], steps.get((TUNED, TUNED), ()))
            what = "the direction of the base raises hesitation in the tuned model and not in the base"
            yield Note(f"{self.name}: that {what} {VERDICTS[verdict.word]}: {verdict.why}.")
            value = {"holds": 1.0, "does not hold": 0.0}.get(verdict.word)
            yield Finding(f"{self.name}/claim", value, meaning=f"{what}: 1 holds, 0 does not hold, null underpowered")
        yield Table.of(self.name, [{**row, "unit": self.unit} for row in rows])
        shown = {key: one for key, one in found.items() if not one.condition.control}
        yield Table.of(f"{self.name}_outputs", outputs(shown))
        yield from figures(rows, cells, self.unit)

    def _cell(
        self, one: Steered, plain: Sequence[Solved], points: Sequence[Point], one_long: float
    ) -> Generator[Finding | Note, None, dict[str, Any]]:
        """Yields what is found of one direction in one model, and returns it as a row; `one_long` is the norm that strength 1 adds."""
        where, level = f"{self.name}/{one.source}_to_{one.target}", 1 - 0.05 / len(self.strengths)
        measures: dict[str, Bounded] = dict.fromkeys(
            ("rate", "change", "over_random", "perplexity", "accuracy"), (None, None, None)
        )
        held = [point for point in points if point.coherent]
        if held:
            strength, solved, chance, _ = held[-1]
            step = step_of(plain, solved, chance, True)
            measures["rate"], measures["change"] = hesitations(solved, level=level), step.change.skewed(level)
            if step.beyond is not None:
                measures["over_random"] = step.beyond.bounded(level)
            measures["perplexity"], measures["accuracy"] = perplexity(solved), accuracy(solved)
        else:
            yield Note(f"{self.name}, {one.source} to {one.target}: no strength leaves the text coherent.")
        words = {
            "rate": "hesitations per 1,000 tokens at the largest strength at which the text is coherent, with an interval wide enough "
            "for whichever that is (Bonferroni)",
            "change": "that rate less the unsteered model's, on the same problems",
            "over_random": f"that rate less that of {self.draws} random directions as long, which answered the same problems in turn; the "
            "interval is that of the difference from one more of them (prediction interval)",
        }
        for name, meaning in words.items():
            if name != "over_random" or self.draws:
                over = "draws and problems" if name == "over_random" else "problems"
                yield Finding(f"{where}/{name}", *measures[name], meaning, over=over)
        row = {
            "cell": f"{one.source} to {one.target}",
            "source": one.source,
            "strength": held[-1].strength if held else None,
        }
        meaning = f"that strength, in units of {self.unit}, of which 1 adds a vector of norm {one_long:.4g}"
        yield Finding(f"{where}/strength", row["strength"], meaning=meaning)
        solved, chance, fine = ([getattr(one, field) for one in points] for field in ("solved", "chance", "coherent"))
        most = max(map(keyword_share, solved), key=lambda one: float(one.value)).skewed(level, least=0.0)
        meaning = (
            "share of words that are hesitations at the strength at which it is largest, coherent or not; Bonferroni"
        )
        yield Finding(f"{where}/most_share", *most, meaning, over="problems")
        yield from of_one(where, Curve(plain, solved, chance if self.draws else [], fine))
        for name, bounded in measures.items():
            row |= interval_columns(name, bounded)
        return {**row, "unit": self.unit}


def keyword_share(solved: Sequence[Solved]) -> Estimate:
    """Hesitations as a share of words, equation 1 of the paper."""
    words = [len(one.response.text.split()) for one in solved]
    return rate_of(solved, [one.behaviour.hesitations for one in solved], words)


def _point(
    strength: float, plain: Sequence[Solved], solved: Sequence[Solved], chance: Sequence[Solved], fine: bool
) -> dict[str, Any]:
    """The measures of one kind of steering at one strength: the columns of a row of the table."""
    share = keyword_share(solved)
    step = step_of(plain, solved, chance, fine)
    nothing = (None, None, None)
    return {
        "strength": strength,
        **interval_columns("behaviour", hesitations(solved)),
        **interval_columns("change", step.change.skewed() if strength else nothing),
        **interval_columns("over_random", nothing if step.beyond is None else step.beyond.bounded()),
        **interval_columns("keyword_share", share.skewed(least=0.0)),
        **interval_columns("perplexity", perplexity(solved)),
        "repetition": repeated(solved),
        "distinct": mean([one.behaviour.distinct for one in solved]),
        "coherent": fine,
        **interval_columns("accuracy", accuracy(solved)),
        **interval_columns("tokens", length(solved).skewed(least=0.0)),
        "norm": mean_change(solved),
    }
