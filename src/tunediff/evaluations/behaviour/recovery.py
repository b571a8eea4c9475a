"""How much of what full fine-tuning changed the pair's tuned model, an adapter, recovers: (adapter - base) / (full - base)
of accuracy, of the tokens and of the hesitations a response.

The same problems to three models, each through its own chat template with its own prompt of the task; the full one is
given the tuned model's. A share depends on how the base was asked, so that every finding says it. Knows nothing of how the
tuned model was made. After arXiv 2511.06739 (a rank-1 LoRA against s1.1-32B: 73 to 90 % of the gain in accuracy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tunediff.benchmarks import Problem, Task
from tunediff.evaluations.behaviour.conditions import mostly_cut, side_by_side
from tunediff.evaluations.behaviour.recovered import (
    ACCURACY,
    MEASURES,
    Change,
    Share,
    check_resamples,
    columns,
    share,
    told,
)
from tunediff.evaluations.behaviour.solving import Condition, Solved, Solver, problems_of
from tunediff.evaluations.given import Needs, Trained
from tunediff.generation import Decoding, Engine
from tunediff.measures import wilson
from tunediff.models import ModelPair, ModelSource, PairError
from tunediff.shapes import ADAPTER, BASE, TUNED, Figure, Finding, Note, Refused, Table

FULL = "full"
WHO = (BASE, ADAPTER, FULL)
CHANGE = Change("recovery", *WHO, otherwise=", or ask the base otherwise")


class Recovery:
    """tasks         name -> benchmark                   problems     of each at most; null: all
    full          the fully fine-tuned model that the tuned one is measured against, brought in the tuned one's dtype
    resamples     of the bootstrap over problems
    hesitations   words that count as one, as regular expressions; None: the pair's own

    Raises Refused where `full` cannot be found.
    """

    needs = Needs.PAIR

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        full: ModelSource,
        decoding: Decoding,
        engine: Engine,
        problems: int | None = None,
        resamples: int = 2000,
        hesitations: Sequence[str] | None = None,
    ):
        check_resamples("recovery", resamples)
        try:
            full.config()
        except PairError as error:
            raise Refused(
                f"Cannot load '{full.path}', the fully fine-tuned model of recovery: name a Hub id or a local folder, "
                "evaluation.recovery.full.path=<folder>."
            ) from error
        self.tasks, self.full, self.decoding, self.engine = tasks, full, decoding, engine
        self.problems, self.resamples, self.hesitations = problems, resamples, hesitations

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        pair = trained.pair
        problems: dict[str, list[Problem]] = {}
        for name, task in self.tasks.items():
            problems[name], notes = problems_of(task, name, self.problems)
            yield from notes
        second, notes = self._second(pair, [problem.question for some in problems.values() for problem in some])
        yield from notes
        found = self._solved(trained, second, problems)
        by_task = {name: [found[name, who][1] for who in WHO] for name in self.tasks}
        yield from mostly_cut("recovery", found)
        yield from side_by_side("recovery", found)[1]
        rows = []
        for name, answers in by_task.items():
            how = self._how(name, len(problems[name]))
            yield from _accuracies(name, answers, how)
            for measure in MEASURES:
                measured = share(measure, answers, self.resamples)
                where = f"recovery/{name}" if measure == ACCURACY else f"recovery/{name}/{measure}"
                yield told(CHANGE, name, measured, where=f"{where}/recovered", how=how)
                rows.append(_row(name, measured, self.tasks[name].prompts[BASE], self.full.path))
        table = Table.of("recovery", rows)
        yield table
        yield figure(table.columns)

    def _second(self, pair: ModelPair, texts: Sequence[str]) -> tuple[ModelPair, list[Note]]:
        """The base with the full model in the tuned one's place, no weights yet. Raises Refused where they read different
        tokens, of which lengths are counted."""
        full = dataclasses.replace(self.full, dtype=pair.sources[TUNED].dtype)  # else rounding would be a difference
        second = ModelPair(
            pair.sources[BASE], full, tokenizer=pair.owner, align=pair.align, hesitations=pair.hesitations
        )
        try:
            notes = [f"recovery, base and {full.path}: {said}" for said in second.check_tokens(texts)]
        except PairError as error:
            raise Refused(
                f"{full.path} is no fully fine-tuned model of {pair.sources[BASE].path} (evaluation.recovery.full.path names "
                f"it): {error}"
            ) from error
        if full == pair.sources[TUNED]:
            notes.append(
                f"recovery: {full.path} is the pair's tuned model itself and recovers all; evaluation.recovery.full.path=... "
                "names another."
            )
        return second, [Note(said) for said in notes]

    def _solved(
        self, trained: Trained, second: ModelPair, problems: Mapping[str, Sequence[Problem]]
    ) -> dict[tuple[str, str], tuple[Condition, list[Solved]]]:
        """By task and model. The full model comes first, so that one that cannot be used is refused before the others have
        written for hours; while it is there the pair waits, and the base is not brought a second time."""
        full = Condition(FULL, "full fine-tuning", TUNED, reference=BASE)
        base, adapter = Condition(BASE, "base", BASE), Condition(ADAPTER, "adapter", TUNED, reference=BASE)
        device = trained.pair.device(TUNED)
        with trained.pair.set_aside():
            second.load(device, roles=[TUNED])
            try:
                theirs = self._answers(dataclasses.replace(trained, pair=second), problems, [full])
            finally:
                second.models.clear()
        # in its own pair it stood in the tuned model's place; from here on it stands beside it
        theirs = {key: (dataclasses.replace(full, role=FULL), solved) for key, (_, solved) in theirs.items()}
        found = theirs | self._answers(trained, problems, [base, adapter])
        return {(task, who): found[task, who] for task in problems for who in WHO}

    def _answers(
        self, trained: Trained, problems: Mapping[str, Sequence[Problem]], conditions: Sequence[Condition]
    ) -> dict[tuple[str, str], tuple[Condition, list[Solved]]]:
        solver = Solver(
            trained, "recovery", self.decoding, engine=self.engine, own_template=True, hesitations=self.hesitations
        )
        return {
            (name, condition.name): (condition, solved)
            for name, some in problems.items()
            for condition, solved in solver.solve(name, self.tasks[name], some, conditions)
        }

    def _how(self, name: str, count: int) -> str:
        """What every number depends on."""
        prompts = self.tasks[name].prompts
        return (
            f"{count} problems; the base was asked {prompts[BASE]!r}, adapter and full {prompts[TUNED]!r}; "
            f"full is {self.full.path}"
        )


def _accuracies(task: str, answers: Sequence[Sequence[Solved]], how: str) -> Iterator[Finding]:
    for who, solved in zip(WHO, answers, strict=True):
        right = sum(one.grade.correct for one in solved)
        ends = wilson(right, len(solved))
        meaning = f"share of problems graded right, Wilson interval; {how}"
        yield Finding(f"recovery/{task}/{ACCURACY}/{who}", right / len(solved), *ends, meaning)


def _row(task: str, found: Share, prompt: str, full: str) -> dict[str, object]:
    return {
        "task": task,
        "measure": MEASURES[found.measure],
        **dict(zip(WHO, found.means, strict=True)),
        **columns("recovered", found),
        "gone": found.recovered.gone,
        "resamples": found.recovered.draws,
        "base_asked": prompt,
        "full_model": full,
    }


def figure(columns: Mapping[str, list]) -> Figure:
    labels = [f"{measure}, {task}" for measure, task in zip(columns["measure"], columns["task"], strict=True)]
    return Figure(
        name="recovery/shares",
        kind="intervals",
        columns={
            "share of": labels,
            **{name: values for name, values in columns.items() if name not in ("measure", "task")},
        },
        x="share of",
        y=["recovered"],
        section="What the adapter recovers",
        title="Share of what full fine-tuning changed",
        caption="(adapter - base) / (full - base): 0 is the base, 1 the fully fine-tuned model. It depends on how the base was "
        "asked. Ranges are 95 % intervals, by a bootstrap over problems; a dash stands where nothing was there to recover, "
        "for so many resamples were without a gain.",
        words={"gone": "resamples without a gain", "base_asked": "the base was asked"},
    )
