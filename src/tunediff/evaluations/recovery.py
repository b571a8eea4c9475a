"""How much of what full fine-tuning changed the pair's tuned model, an adapter, recovers: (adapter - base) / (full - base)
of accuracy, of the tokens and of the hesitations a response.

The same problems to three models, each through its own chat template with its own prompt of the task; the full one is
given the tuned model's. A share depends on how the base was asked, so that every finding says it. Knows nothing of how the
tuned model was made. After arXiv 2511.06739 (a rank-1 LoRA against s1.1-32B: 73 to 90 % of the gain in accuracy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tunediff.benchmarks import Interval, Problem, Recovered, Task, recovery, wilson
from tunediff.evaluations.conditions import mean, mostly_cut, side_by_side
from tunediff.evaluations.solving import Condition, Solved, Solver, problems_of
from tunediff.evaluations.trained import Trained
from tunediff.generation import Decoding, Engine
from tunediff.models import ModelPair, ModelSource, PairError
from tunediff.shapes import BASE, TUNED, Finding, Note, Refused, Table

ADAPTER, FULL = "adapter", "full"
WHO = (BASE, ADAPTER, FULL)
ACCURACY = "accuracy"
MEASURES = {ACCURACY: "accuracy", "tokens": "tokens a response", "hesitations": "hesitations a response"}
FEWEST = 100  # resamples: two or three beyond each end of the interval


class Recovery:
    """tasks         name -> benchmark                   problems     of each at most; null: all
    full          the fully fine-tuned model that the tuned one is measured against, brought in the tuned one's dtype
    resamples     of the bootstrap over problems
    hesitations   words that count as one, as regular expressions; None: the pair's own

    Raises Refused where `full` cannot be found.
    """

    needs_dictionary = False

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
        if resamples < FEWEST:
            raise Refused(f"recovery.resamples={resamples} say little about an interval's ends: at least {FEWEST}.")
        try:
            full.config()
        except PairError as error:
            raise Refused(
                f"Cannot load '{full.path}', the fully fine-tuned model of recovery: name a Hub id or a local folder, "
                "evaluation.recovery.full.path=<folder>."
            ) from error
        self.tasks, self.full, self.decoding, self.engine = tasks, full, decoding, engine
        self.problems, self.resamples, self.hesitations = problems, resamples, hesitations

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
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
                means, measured = self._measured(measure, answers)
                yield told(name, measure, means, measured, how)
                rows.append(_row(name, measure, means, measured, self.tasks[name].prompts[BASE], self.full.path))
        yield Table("recovery", {key: [row[key] for row in rows] for key in rows[0]})

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

    def _measured(self, measure: str, answers: Sequence[Sequence[Solved]]) -> tuple[list[float], Recovered]:
        values = [[_value(measure, solved) for solved in of_one] for of_one in answers]
        return [mean(each) for each in values], recovery(*values, draws=self.resamples)

    def _how(self, name: str, count: int) -> str:
        """What every number depends on."""
        prompts = self.tasks[name].prompts
        return (
            f"{count} problems; the base was asked {prompts[BASE]!r}, adapter and full {prompts[TUNED]!r}; "
            f"full is {self.full.path}"
        )


def told(task: str, measure: str, means: Sequence[float], measured: Recovered, how: str) -> Finding | Note:
    """The share as a finding; a note in its place where nothing was there to recover."""
    spelled = "{:.1%}".format if measure == ACCURACY else "{:.4g}".format
    base, adapter, full = map(spelled, means)
    what, share = MEASURES[measure], _share(measure, measured)
    if measured.share is None:
        return Note(
            f"recovery, {task}: the {what} of base ({base}) and full ({full}) are not told apart: in {measured.gone:,} of "
            f"{measured.draws:,} resamples their difference is none or the other way, so that there is no share of it that the "
            f"adapter ({adapter}) could recover. Take more problems, or ask the base otherwise ({how})."
        )
    if share is None:
        return Note(
            f"recovery, {task}: full ({full}) solves fewer problems than base ({base}), in {measured.draws - measured.gone:,} "
            f"of {measured.draws:,} resamples; there is no gain that the adapter ({adapter}) could recover ({how})."
        )
    beyond = f", of which {measured.gone:,} without a difference stand beyond both ends" if measured.gone else ""
    meaning = (
        f"(adapter - base) / (full - base) of {what}: base {base}, adapter {adapter}, full {full}; paired bootstrap over "
        f"problems, {measured.draws:,} resamples{beyond}; {how}"
    )
    where = f"recovery/{task}" if measure == ACCURACY else f"recovery/{task}/{measure}"
    return Finding(f"{where}/recovered", *share, meaning)


def _share(measure: str, measured: Recovered) -> Interval | None:
    """Lengths and hesitations may change either way; of accuracy only a gain can be recovered."""
    return None if measure == ACCURACY and measured.change < 0 else measured.share


def _accuracies(task: str, answers: Sequence[Sequence[Solved]], how: str) -> Iterator[Finding]:
    for who, solved in zip(WHO, answers, strict=True):
        right = sum(one.grade.correct for one in solved)
        ends = wilson(right, len(solved))
        meaning = f"share of problems graded right, Wilson interval; {how}"
        yield Finding(f"recovery/{task}/{ACCURACY}/{who}", right / len(solved), *ends, meaning)


def _value(measure: str, solved: Solved) -> float:
    return float(solved.grade.correct if measure == ACCURACY else getattr(solved.behaviour, measure))


def _row(
    task: str, measure: str, means: Sequence[float], measured: Recovered, prompt: str, full: str
) -> dict[str, object]:
    share = _share(measure, measured) or (None, None, None)
    ends = dict(zip(("recovered", "recovered_low", "recovered_high"), share, strict=True))
    return {
        "task": task,
        "measure": MEASURES[measure],
        **dict(zip(WHO, means, strict=True)),
        **ends,
        "gone": measured.gone,
        "resamples": measured.draws,
        "base_asked": prompt,
        "full_model": full,
    }
