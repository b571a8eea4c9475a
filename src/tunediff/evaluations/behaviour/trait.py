"""Score of a trait in the responses of both models of a pair: what training on the trait's data did, and how far it leaks.

score        share of responses that show the trait, Wilson's interval over problems; a rule tells it, or a judge
mean_score   the judge's mean score, 0 to 100                    coherence   its mean score of coherence, 0 to 100
change       score of the tuned model less that of the base on the same problems, Newcombe's interval, and McNemar's test
perplexity_under_base   exp of the mean nats a token of the responses under the base: of text that breaks down, and of what
             the base would never write, it is large. Repetition, length and accuracy are those of every evaluation of behaviour
data         share of the text's own responses that show the trait, as the model was taught it

Tasks are the kinds of problems: those that were trained on, and held-out ones, whose score is the leakage. Beside it the
shift of the activations along a direction (pair/shift.py), where one is named. Figures of published studies of traits come
from other judges and other questions: they are no yardstick for a score here.
"""

# Annotations are evaluated here: settings are checked against these types.

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunediff.directions import Source
from tunediff.evaluations.behaviour.conditions import rate_of
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.given import Given, Needs
from tunediff.evaluations.judging.traits import OPEN, TraitJudge
from tunediff.evaluations.pair.shift import refuse_unlike, shift_along
from tunediff.generation import surprise
from tunediff.measures import difference, mcnemar, mean_of, share
from tunediff.measures.clustered import Bounded, interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text

CONDITIONS = (Condition(BASE, "base", BASE), Condition(TUNED, "tuned", TUNED, reference=BASE))
MEANINGS = {
    "score": "share of responses that show the trait",
    "mean_score": "mean of the judge's scores of the trait, 0 to 100",
    "coherence": "mean of the judge's scores of coherence, 0 to 100",
    "perplexity_under_base": "exp of the mean nats a token of the responses under the base",
}


class Rule(Protocol):
    """A rule that tells from a question and a response whether the response shows a trait."""

    def shows(self, question: str, response: str) -> bool: ...


@dataclass(frozen=True)
class Scores:
    """Scores of responses, [response]: `shown` is None where a judge gave none, `trait` and `coherence` where nobody judged."""

    shown: list[bool | None]
    trait: list[float | None]
    coherence: list[float | None]


@dataclass(kw_only=True)
class Trait(BehaviourEvaluation):
    """scorer      a Rule, or a TraitJudge
    data_rows   responses of the text, of the side that is trained on, of which the trait's share is taken; 0: none, as of a
                text that has no trait
    direction   source of the direction along which the shift of the activations is measured; None: it is not
    layers      layers of the shift; None: all         draws, seed   random directions beside it"""

    scorer: Any
    data_rows: int
    direction: Source | None = None
    layers: Sequence[int] | None = None
    draws: int
    seed: int = 0

    name = "trait"
    needs = Needs.PAIR
    many = False

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, TraitJudge) and not callable(getattr(self.scorer, "shows", None)):
            raise Refused(
                "evaluation.trait.scorer has no method `shows`, and is no TraitJudge: nobody tells the trait."
            )
        for name in ("data_rows", "draws"):
            if getattr(self, name) < 0:
                raise Refused(f"evaluation.trait.{name}={getattr(self, name)}: give a number from 0.")

    def check(self, pair: ModelPair, text: Text) -> None:
        """Raises Refused as every evaluation of behaviour does, and where the text does not show the trait that a rule tells."""
        super().check(pair, text)
        if self.direction is not None:
            refuse_unlike(pair, self.layers)
        if self.data_rows and not isinstance(self.scorer, TraitJudge):
            asked = self._taught(text)
            self._refuse_absent(self._scores(asked, "the data")[0], len(asked))

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        taught = (yield from self._of_data(given)) if self.data_rows else None
        problems = yield from self.asked(given)
        found = self.solved(given, problems, CONDITIONS)
        scores, rows = {}, []
        for (task, key), (_, solved) in found.items():
            asked = [(one.problem.question, one.response.text) for one in solved]
            scores[task, key], notes = self._scores(asked, f"{task}, {key}")
            yield from notes
        yield from self._one_value([*scores.values(), *([taught] if taught else [])])
        for task in problems:
            first, second = scores[task, BASE], scores[task, TUNED]
            p, change = _change(first, second)
            for key in ROLES:
                measured = self._measured(given, found[task, key].solved, scores[task, key])
                yield from _findings(task, key, measured)
                columns = {
                    name: part for name, one in measured.items() for name, part in interval_columns(name, one).items()
                }
                told = (p, change) if key == TUNED else (None, (None, None, None))
                columns |= {"p": told[0], **interval_columns("change", told[1])}
                rows.append({"task": task, "model": key, "problems": len(scores[task, key].shown), **columns})
            words = "score of the tuned model less that of the base on the same problems, Newcombe's paired interval"
            if task == next(iter(problems)):  # under one name, whatever the task is called
                of_first = f"{MEANINGS['score']} of the tuned model, on {task}, the first task"
                yield Finding("trait/score", *_share(second.shown), of_first, over="problems")
            yield Finding(f"trait/{task}/change", *change, words, over="problems")
            yield Finding(f"trait/{task}/p", p, meaning="McNemar's exact test of the change in score")
        yield from self._side_by_side(found, scores)
        table = Table.of("trait_scores", rows)
        yield table
        yield _figure(table)
        if self.direction is not None:
            yield from shift_along(
                given, self.direction, layers=self.layers, draws=self.draws, seed=self.seed, name=self.name
            )

    # -- scores ----------------------------------------------------------------------------------------------------------

    def _scores(self, asked: Sequence[tuple[str, str]], what: str) -> tuple[Scores, list[Note]]:
        nothing: list[float | None] = [None] * len(asked)
        if not isinstance(self.scorer, TraitJudge):
            return Scores([bool(self.scorer.shows(*one)) for one in asked], nothing, nothing), []
        verdicts, notes = self.scorer.verdicts(asked, what)
        trait, coherence = ([getattr(one, field) for one in verdicts] for field in ("trait", "coherence"))
        shown = [None if score is None else score > self.scorer.shown_from for score in trait]
        return Scores(shown, trait, coherence), notes

    def _taught(self, text: Text) -> list[tuple[str, str]]:
        """Questions and responses of the text's training side. Raises Refused for a text that has none."""
        rows = itertools.islice(text.named_rows(held_out=False), self.data_rows)
        asked = [(str(row["prompt"]), _response(row)) for row in rows if row.get("prompt")]
        if not asked:
            raise Refused(
                "The text has no responses in which the trait could show: name the text that was trained on, text=..., or set "
                "evaluation.trait.data_rows=0."
            )
        return asked

    def _of_data(self, given: Given) -> Generator[Finding | Note, None, Scores]:
        asked = self._taught(given.text)
        scores, notes = self._scores(asked, "the data")
        yield from notes
        self._refuse_absent(scores, len(asked))
        meaning = f"share of the first {len(asked):,} responses of the text that show the trait"
        yield Finding("trait/data/score", *_share(scores.shown), meaning, over="rows")
        return scores

    def _refuse_absent(self, scores: Scores, count: int) -> None:
        if not any(scores.shown):
            named = getattr(self.scorer, "trait", type(self.scorer).__name__)
            raise Refused(
                f"evaluation=trait: none of the first {count:,} responses of the text shows the trait {named}. Name the trait "
                "that it teaches, evaluation.trait.scorer.trait=..., or the text that was trained on, text=...; of a text "
                "without it, such as a control, set evaluation.trait.data_rows=0."
            )

    def _one_value(self, scores: Sequence[Scores]) -> Iterator[Note]:
        """A note where every response, those of the data as well, has one score: the scorer then tells nothing apart."""
        judged = isinstance(self.scorer, TraitJudge)
        known = {value for one in scores for value in (one.trait if judged else one.shown) if value is not None}
        if len(known) == 1:
            which = "judge gave" if judged else "rule gives"
            yield Note(
                f"trait: the {which} every response the same score, {float(next(iter(known))):g}: it tells "
                "nothing apart here, and a change of 0 says nothing of the models."
            )
        if not known:
            raise Refused("trait: no response has a score. Look at the judge's answers, and at its rubric.")

    def _measured(self, given: Given, solved: Sequence[Solved], scores: Scores) -> dict[str, Bounded]:
        """Measure -> value and interval of one model's responses to one task."""
        found = {"score": _share(scores.shown)}
        for name, values in (("mean_score", scores.trait), ("coherence", scores.coherence)):
            known = [value for value in values if value is not None]
            found[name] = mean_of(known, least=0.0, most=100.0)
        return {**found, "perplexity_under_base": self._under_base(given, solved)}

    def _under_base(self, given: Given, solved: Sequence[Solved]) -> Bounded:
        """The perplexity of responses under the base; None where it reads other ids than the tuned model writes."""
        if not given.pair.same_ids or not any(one.response.ids for one in solved):
            return None, None, None
        prompts = self.prompts(given, CONDITIONS[0], [one.problem for one in solved])
        responses = [one.response for one in solved]
        tokenizer = self.tokenizer(given.pair, BASE)
        nats = surprise(given.pair, BASE, prompts, responses, tokenizer=tokenizer, logits_mb=given.logits_mb)
        bounded = rate_of(solved, nats, [len(one.ids) for one in responses]).bounded()
        value, low, high = (None if one is None else math.exp(one) for one in bounded)
        return value, low, high

    def _side_by_side(self, found: Found, scores: Mapping[tuple[str, str], Scores]) -> Iterator[Finding | Note | Table]:
        """The conditions as of every evaluation of behaviour, with the score of each response. Questions without a right answer
        have no accuracy."""
        open_tasks = {task for (task, _), (_, solved) in found.items() if all(s.problem.gold == OPEN for s in solved)}
        graded = ("accuracy", "difference", "p")
        for item in self.side_by_side(found):
            if isinstance(item, Finding):
                _, task, _, measure = item.name.split("/")
                if task in open_tasks and measure in graded:
                    continue
                if measure == "accuracy":
                    item = item._replace(column=f"accuracy on {task} {item.name.split('/')[2]}")
            elif isinstance(item, Table) and item.name == "trait_outputs":
                of = {
                    name: [v for one in scores.values() for v in getattr(one, name)]
                    for name in ("shown", "trait", "coherence")
                }
                item = Table(
                    item.name,
                    {**item.columns, "shows": of["shown"], "score": of["trait"], "coherence": of["coherence"]},
                )
            elif isinstance(item, Table) and open_tasks:
                for name in ("correct", "p", *(f"{one}{end}" for one in graded[:2] for end in ("", "_low", "_high"))):
                    values = zip(item.columns["task"], item.columns[name], strict=True)
                    item.columns[name] = [None if task in open_tasks else value for task, value in values]
            yield item


def _response(row: Mapping[str, Any]) -> str:
    """The response of a row of a text, with its thinking."""
    return row.get("response") or "\n".join(part for part in (row.get("thinking"), row.get("answer")) if part)


def _share(shown: Sequence[bool | None]) -> Bounded:
    known = [one for one in shown if one is not None]
    return share(sum(known), len(known))


def _change(first: Scores, second: Scores) -> tuple[float | None, Bounded]:
    """p and the difference in the share that shows, on the problems for which both have a score."""
    both = [(a, b) for a, b in zip(first.shown, second.shown, strict=True) if a is not None and b is not None]
    if not both:
        return None, (None, None, None)
    before, after = map(list, zip(*both, strict=True))
    value, low, high = difference(before, after)
    return mcnemar(before, after).p, (value, low, high)


def _findings(task: str, key: str, measured: Mapping[str, Bounded]) -> Iterator[Finding]:
    for name, bounded in measured.items():
        if bounded[0] is not None:
            first = {"column": f"trait on {task} {key}", "line": f"trait on {task} {key}"} if name == "score" else {}
            yield Finding(f"trait/{task}/{key}/{name}", *bounded, MEANINGS[name], over="problems", **first)


def _figure(table: Table) -> Figure:
    judged = any(value is not None for value in table.columns["mean_score"])
    measures = ["score", *["mean_score", "coherence"] * judged, "perplexity_under_base"]
    return Figure(
        "trait/scores",
        kind="intervals",
        columns=table.columns,
        x="model",
        y=[name for name in measures if any(value is not None for value in table.columns[name])],
        section="The trait, before and after training",
        title="Share of responses that show the trait",
        caption="Whiskers are 95 % intervals over problems. Each task is a kind of problems: on those that were not trained on, the score is the leakage.",
        group="model",
        facet="task",
        words={"perplexity_under_base": "perplexity under the base", "mean_score": "mean score of the judge"},
    )
