"""Accuracy of each model of the pair on benchmarks, and how it grows with the budget of tokens.

Each model is asked through its own chat template with its own prompt of the task. A budget below the largest cuts the same
response where it would have ended, which is the response that the model would have given under it; with `force` it is the
thinking that is ended there, and `decoding.conclusion` asks for an answer (s1, arXiv 2501.19393, section 3). Budgets are
of all tokens that a response may have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunediff.benchmarks import Grader, Problem
from tunediff.evaluations.behaviour.conditions import grades, rate_of, share_of
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found
from tunediff.evaluations.behaviour.solving import Answered, Condition
from tunediff.evaluations.given import Given, Needs
from tunediff.generation import Response
from tunediff.measures import BudgetCurve, Interval, scaling, scaling_difference
from tunediff.measures.clustered import interval_columns
from tunediff.measures.samples import change, mean, pass_at, share_by_problem
from tunediff.models import ModelPair
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text

SLOPE = "slope of accuracy against the budget, percentage points"
# fields of BudgetCurve: how their findings are named, and what they mean
MEASURES = {
    "best": (
        "best_accuracy",
        "accuracy at the best budget, chosen on one half of the problems and measured on the other",
    ),
    "per_1000_tokens": ("slope_per_1000_tokens", f"{SLOPE} per 1,000 tokens"),
    "per_doubling": (
        "slope_per_doubling",
        "slope of accuracy against log2 of the budget, percentage points a doubling",
    ),
    "per_token": ("slope_per_token", f"{SLOPE} a token"),
    "area": ("area", "area under accuracy against log2 of the budget, as a share of the whole"),
}


CONDITIONS = (Condition(BASE, "base", BASE), Condition(TUNED, "tuned", TUNED, reference=BASE))


@dataclass(kw_only=True)
class Benchmark(BehaviourEvaluation):
    """budgets         budgets below that of a task, which is always measured: shares of it, or from 1 on numbers of tokens
    force           true: thinking is ended `answer_tokens` before the budget is spent
    samples         responses to each problem
    """

    budgets: Sequence[float]
    force: bool
    answer_tokens: int
    samples: int = 1

    name = "benchmark"
    needs = Needs.PAIR
    own_template = True
    many = False

    def __post_init__(self):
        if self.decoding.tokens is not None:
            self.budgets_below(self.decoding.tokens)
        if self.force and not self.decoding.conclusion:
            raise Refused(
                "benchmark.force ends the thinking and asks for an answer: say with what, "
                "such as decoding.conclusion='Final Answer:'."
            )
        if self.samples < 1:
            raise Refused(f"benchmark.samples={self.samples}: at least 1 response to each problem.")
        if self.samples > 1 and self.decoding.temperature == 0 and not self.decoding.generation_config:
            raise Refused(
                f"benchmark.samples={self.samples} and decoding.temperature=0 would write one response {self.samples} times: "
                "set a temperature such as 0.6, or decoding.generation_config=true."
            )

    def budgets_below(self, tokens: int) -> list[int]:
        """All budgets of a task, in tokens and in order; the largest is `tokens`. Raises Refused for one beyond it."""
        wrong = [one for one in self.budgets if not 0 < one <= tokens or (one > 1 and one != round(one))]
        if wrong:
            raise Refused(
                f"benchmark.budgets has {wrong}: each is a share of a task's budget, or a number of tokens up to the {tokens:,} "
                "that its responses may have (evaluation.benchmark.decoding.tokens)."
            )
        return sorted({*(max(1, round(one * tokens)) if one < 1 else round(one) for one in self.budgets), tokens})

    def check(self, pair: ModelPair, text: Text) -> None:
        super().check(pair, text)
        for name in self.tasks:
            self.budgets_below(self._budget(Given(pair, text, 0), name, self._problems(name))[0])

    def times_asked(self, pair: ModelPair) -> int:
        return 2 * self.samples * (len(self.budgets) if self.force else 1)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        found: Found = {}
        curves: list[dict[str, object]] = []
        slopes: list[Finding] = []
        of_tasks: dict[str, dict[str, NDArray]] = {}
        yield from self._greedy(given)
        for name, problems in (yield from self.asked(given)).items():
            right: dict[str, NDArray] = {}
            budgets = self.budgets_below(self.allowed[name])
            for condition in CONDITIONS:
                by_budget, found[name, condition.name] = self._by_budget(given, name, problems, condition)
                right[condition.role] = np.asarray(by_budget)
                curves += curve(name, condition.role, right[condition.role], budgets)
            of_tasks[name] = {role: answers.mean(-1).T for role, answers in right.items()}
            slopes += _scaling(name, of_tasks[name], budgets)
        yield from slopes
        if len({tuple(self.budgets_below(self.allowed[name])) for name in of_tasks}) == 1:
            pooled = {role: np.concatenate([shares[role] for shares in of_tasks.values()]) for role in ROLES}
            yield from _scaling("all", pooled, self.budgets_below(self.allowed[next(iter(of_tasks))]))
        yield from self.side_by_side(found)
        yield from reading(found)
        if self.samples > 1:
            yield from passes(found)
        table = Table.of("benchmark_scaling", curves)
        yield table
        yield from figures(table.columns, slopes)

    def _by_budget(
        self, given: Given, name: str, problems: Sequence[Problem], condition: Condition
    ) -> tuple[list[list[list[bool]]], Answered]:
        """Grades [budget][problem][sample] of the answers; how responses are written is measured for the largest budget
        alone."""
        # the largest budget contains the smaller ones, unless thinking is ended at another place under each
        whole = [] if self.force else self._sampled(given, name, problems, condition)
        tokenizer = self.tokenizer(given.pair, condition.role)
        each = [problem._replace(sample=n) for problem in problems for n in range(self.samples)]
        right, answers = [], []
        with Grader() as grader:
            for budget in self.budgets_below(self.allowed[name]):
                if self.force:
                    thinking = max(0, budget - self.answer_tokens)
                    forced = dataclasses.replace(self.decoding, tokens=budget, think_at_most=thinking)
                    under = dataclasses.replace(condition, decoding=forced)
                    responses = self._sampled(given, name, problems, under)
                else:
                    responses = [cut(one, budget, tokenizer) for one in whole]
                answers = self.graded(name, each, responses, grader, given.pair.layouts)
                correct = [grade.correct for _, _, grade in answers]
                right.append([correct[n : n + self.samples] for n in range(0, len(correct), self.samples)])
        return right, Answered(condition, self.measured(given, condition, answers))

    def _sampled(self, given: Given, name: str, problems: Sequence[Problem], condition: Condition) -> list[Response]:
        """Responses to each problem, those to one side by side. A model that is greedy by its own generation_config.json writes
        the same every time, and is asked once."""
        greedy = self.decoding_of(given.pair, condition).temperature == 0
        times = 1 if greedy else self.samples
        each = [problem._replace(sample=n) for problem in problems for n in range(times)]
        return [one for one in self.respond(given, name, each, condition) for _ in range(self.samples // times)]

    def _greedy(self, given: Given) -> Iterator[Note]:
        for condition in CONDITIONS if self.samples > 1 else ():
            if self.decoding_of(given.pair, condition).temperature == 0:
                yield Note(
                    f"benchmark: {condition.role} takes the most likely token by its generation_config.json, so that its "
                    f"{self.samples} samples of a problem are one response."
                )


def _scaling(name: str, right: Mapping[str, NDArray], budgets: Sequence[int]) -> Iterator[Finding]:
    """The findings on shares of right answers [problem, budget] of each model."""
    for role in ROLES:
        yield from _findings(f"benchmark/{name}/{role}", scaling(right[role], budgets), "")
    both = scaling_difference(right[BASE], right[TUNED], budgets)
    yield from _findings(f"benchmark/{name}/tuned_less_base", both, ", tuned less base")


def figures(curves: dict[str, list], slopes: Sequence[Finding]) -> Iterator[Figure]:
    """Accuracy against the budget, and below it what its slopes are found to be."""
    section = "Accuracy against thinking budget"
    yield Figure(
        name="benchmark/budgets",
        kind="lines",
        columns=curves,
        x="tokens",
        y=["accuracy"],
        section=section,
        title="Accuracy against the budget of tokens",
        caption="Each model may write so many tokens and no more. Bands are 95 % intervals over problems.",
        group="role",
        facet="task",
        log=["tokens"],
        words={"tokens": "tokens allowed"},
    )
    by_row: dict[tuple[str, str], dict[str, float | None]] = {}
    for finding in slopes:
        _, task, model, measure = finding.name.split("/")
        row = by_row.setdefault((task, model), {})
        row |= interval_columns(measure, (finding.value, finding.low, finding.high))
    names = list(dict.fromkeys(name for row in by_row.values() for name in row))
    if names:
        columns = {name: [row.get(name) for row in by_row.values()] for name in names}
        columns |= {"task": [task for task, _ in by_row], "model": [model.replace("_", " ") for _, model in by_row]}
        yield Figure(
            name="benchmark/slopes",
            kind="intervals",
            columns=columns,
            x="model",
            y=[name for name in names if not name.endswith(("_low", "_high"))],
            section=section,
            title="Slopes",
            facet="task",
            group="model",
            words={"slope_per_1000_tokens": "points per 1,000 tokens", "slope_per_doubling": "points per doubling"},
        )


def cut(response: Response, budget: int, tokenizer) -> Response:
    """The part of the response that a smaller budget leaves."""
    if len(response.ids) < budget or (len(response.ids) == budget and not response.finished):
        return response
    ids = response.ids[:budget]
    finished = response.finished and len(response.ids) < budget
    return response._replace(ids=ids, text=tokenizer.decode(ids), finished=finished)


def curve(task: str, role: str, right: NDArray, budgets: Sequence[int]) -> list[dict[str, object]]:
    """The accuracy of one model under each budget, from grades [budget, problem, sample]: rows of the table benchmark_scaling."""
    rows = []
    for budget, graded in zip(budgets, right, strict=True):
        accuracy = interval_columns("accuracy", share_by_problem(graded))
        rows.append({"task": task, "role": role, "tokens": budget, **accuracy, "problems": len(graded)})
    return rows


def reading(found: Found) -> Iterator[Finding]:
    """Yields for each model the share of responses in which no answer was found, which are wrong whatever they meant, and the share
    of right ones among the rest: what of an accuracy under chance is the form of the answers."""
    for (task, role), (_, solved) in found.items():
        where, read = f"benchmark/{task}/{role}", [one.grade.answer is not None for one in solved]
        meaning = "share of responses in which no answer was found, unfinished ones among them"
        yield Finding(f"{where}/unread", *share_of(solved, [not one for one in read]), meaning, over="problems")
        if any(read):
            right = rate_of(solved, [float(one.grade.correct) for one in solved], [float(one) for one in read])
            meaning = "share of right ones among the responses in which an answer was found"
            yield Finding(f"{where}/right_of_read", *right.bounded(least=0.0, most=1.0), meaning, over="problems")


def passes(found: Found) -> Iterator[Finding | Table | Figure]:
    """pass@k of both models for k from 1 to all samples, in doublings, and by how much they differ."""
    rows = []
    for task in dict.fromkeys(task for task, _ in found):
        right = {role: grades(found[task, role].solved) for role in ROLES}
        samples = len(right[BASE][0])
        for k in sorted({samples, *(2**n for n in range(samples.bit_length()))}):
            chances = {role: pass_at(right[role], k) for role in ROLES}
            meaning = f"pass@{k} from {samples} samples a problem, mean over problems"
            for role in ROLES:
                bounded = mean(chances[role])
                rows.append({"task": task, "role": role, "k": k, **interval_columns("pass_at", bounded)})
                yield Finding(f"benchmark/{task}/{role}/pass_at_{k}", *bounded, meaning, over="problems")
            apart = change(chances[BASE], chances[TUNED])
            yield Finding(
                f"benchmark/{task}/tuned_less_base/pass_at_{k}", *apart, f"{meaning}; tuned less base", over="problems"
            )
    table = Table.of("benchmark_pass_at", rows)
    yield table
    yield Figure(
        name="benchmark/pass_at",
        kind="lines",
        columns=table.columns,
        x="k",
        y=["pass_at"],
        section="Several samples a problem",
        title="pass@k: the share of problems that one of k samples solves",
        caption="Without bias from all samples of a problem. Bands are 95 % intervals over problems.",
        group="role",
        facet="task",
        log=["k"],
        words={"k": "samples", "pass_at": "pass@k"},
    )


def _findings(where: str, measured: BudgetCurve, what: str) -> Iterator[Finding]:
    for field, (name, meaning) in MEASURES.items():
        estimate: Interval | None = getattr(measured, field)
        if estimate is not None:
            yield Finding(f"{where}/{name}", *estimate, f"{meaning}{what}", over="problems")
