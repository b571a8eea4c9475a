"""How well each model of the pair solves benchmarks, and what a larger budget of tokens buys.

Each model is asked through its own chat template with its own prompt of the task. A budget below the largest cuts the same
response where it would have ended, which is the response that the model would have given under it; with `force` it is the
thinking that is ended there, and `decoding.conclusion` asks for an answer (s1, arXiv 2501.19393, section 3). Budgets are
of all tokens that a response may have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tunediff.benchmarks import Grader, Problem, Task
from tunediff.evaluations.behaviour.conditions import mostly_cut, side_by_side
from tunediff.evaluations.behaviour.solving import Condition, Solved, Solver, problems_of
from tunediff.evaluations.given import Needs, Trained
from tunediff.generation import Decoding, Engine, Response
from tunediff.measures import BudgetCurve, scaling, scaling_difference, wilson
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Table

MEANINGS = {
    "best": "largest accuracy over the budgets, chosen and measured on the same problems",
    "per_token": "slope of accuracy against the budget, percentage points a token",
    "per_1000_tokens": "slope of accuracy against the budget, percentage points per 1,000 tokens",
    "per_doubling": "slope of accuracy against log2 of the budget, percentage points a doubling",
    "area": "area under accuracy against log2 of the budget, as a share of the whole",
}
NAMES = {"best": "best_accuracy", "per_1000_tokens": "slope_per_1000_tokens", "per_doubling": "slope_per_doubling"}
NAMES |= {"per_token": "slope_per_token", "area": "area"}


class Benchmark:
    """tasks         name -> benchmark                     problems     of each at most; null: all
    decoding      how responses are written; its budget is the largest
    budgets       tokens of the smaller ones; empty: the one of `decoding` alone
    force         thinking is ended `answer_tokens` before the budget is spent
    hesitations   words that count as one, as regular expressions; None: the pair's own
    """

    needs = Needs.PAIR

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        decoding: Decoding,
        engine: Engine,
        problems: int | None = None,
        budgets: Sequence[int] = (),
        force: bool = False,
        answer_tokens: int = 32,
        hesitations: Sequence[str] | None = None,
    ):
        wrong = [budget for budget in budgets if not 0 < budget <= decoding.tokens]
        if wrong:
            raise Refused(
                f"benchmark.budgets has {wrong}: each is a number of tokens up to decoding.tokens={decoding.tokens}."
            )
        if force and not decoding.conclusion:
            raise Refused(
                "benchmark.force ends the thinking and asks for an answer: say with what, "
                "such as decoding.conclusion='Final Answer:'."
            )
        self.tasks, self.decoding, self.engine, self.problems = tasks, decoding, engine, problems
        self.budgets = sorted({*budgets, decoding.tokens})
        self.force, self.answer_tokens, self.hesitations = force, answer_tokens, hesitations

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        conditions = [Condition(BASE, "base", BASE), Condition(TUNED, "tuned", TUNED, reference=BASE)]
        found: dict[tuple[str, str], tuple[Condition, list[Solved]]] = {}
        curves: list[dict[str, object]] = []
        slopes: list[Finding] = []
        for name, task in self.tasks.items():
            problems, notes = problems_of(task, name, self.problems)
            yield from notes
            right: dict[str, list[list[bool]]] = {}
            for condition in conditions:
                by_budget, solved = self._by_budget(trained, name, task, problems, condition)
                found[name, condition.name] = (condition, solved)
                right[condition.role] = [list(answers) for answers in zip(*by_budget.values(), strict=True)]
                curves += curve(name, condition.role, right[condition.role], self.budgets)
            slopes += self._scaling(name, right)
        yield from slopes
        yield from mostly_cut("benchmark", found)
        findings, tables = side_by_side("benchmark", found)
        yield from findings
        yield from tables
        columns = {key: [row[key] for row in curves] for key in curves[0]}
        yield Table("benchmark_scaling", columns)
        yield from figures(columns, slopes)

    def _by_budget(
        self, trained: Trained, name: str, task: Task, problems: Sequence[Problem], condition: Condition
    ) -> tuple[dict[int, list[bool]], list[Solved]]:
        """The graded responses of each budget; how they are written is measured for the largest alone."""
        solver, found = self._solver(trained, self.decoding), {}
        with Grader() as grader:
            if not self.force:
                whole = solver.respond(name, problems, condition)
            for budget in self.budgets:
                if self.force:
                    forced = dataclasses.replace(
                        self.decoding, tokens=budget, think_at_most=max(0, budget - self.answer_tokens)
                    )
                    responses = self._solver(trained, forced).respond(name, problems, condition)
                else:
                    responses = [cut(one, budget, solver.tokenizer(condition.role)) for one in whole]
                found[budget] = solver.grades(task, problems, responses, grader)
            measured = solver.measured(problems, responses, found[budget], condition)
        return {budget: [grade.correct for grade in grades] for budget, grades in found.items()}, measured

    def _solver(self, trained: Trained, decoding: Decoding) -> Solver:
        return Solver(
            trained, "benchmark", decoding, engine=self.engine, own_template=True, hesitations=self.hesitations
        )

    def _scaling(self, name: str, right: Mapping[str, Sequence[Sequence[bool]]]) -> Iterator[Finding]:
        for role in ROLES:
            yield from _findings(f"benchmark/{name}/{role}", scaling(right[role], self.budgets), "")
        both = scaling_difference(right[BASE], right[TUNED], self.budgets)
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
        row |= {measure: finding.value, f"{measure}_low": finding.low, f"{measure}_high": finding.high}
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
    """The response that a smaller budget leaves."""
    if len(response.ids) < budget or (len(response.ids) == budget and not response.finished):
        return response
    ids = response.ids[:budget]
    finished = response.finished and len(response.ids) < budget
    return response._replace(ids=ids, text=tokenizer.decode(ids), finished=finished)


def curve(task: str, role: str, right: Sequence[Sequence[bool]], budgets: Sequence[int]) -> list[dict[str, object]]:
    rows = []
    for n, budget in enumerate(budgets):
        count, problems = sum(answers[n] for answers in right), len(right)
        low, high = wilson(count, problems)
        ends = {"accuracy_low": low, "accuracy_high": high, "problems": problems}
        rows.append({"task": task, "role": role, "tokens": budget, "accuracy": count / problems, **ends})
    return rows


def _findings(where: str, measured: BudgetCurve, what: str) -> Iterator[Finding]:
    for field, name in NAMES.items():
        estimate = getattr(measured, field)
        if estimate is not None:
            meaning = f"{MEANINGS[field]}{what}; bootstrap over problems"
            yield Finding(f"{where}/{name}", estimate.value, estimate.low, estimate.high, meaning)
