"""The share of the effect of full fine-tuning that the pair's tuned model, a LoRA, recovers: (lora - base) / (full - base) of
accuracy, of the tokens and of the hesitations a response.

The same problems to three models, each through its own chat template with its own prompt of the task; the full one is
given the tuned model's. A share depends on how the base was asked, so that every finding says it. Knows nothing of how the
tuned model was made. After arXiv 2511.06739 (a rank-1 LoRA against s1.1-32B: 73 to 90 % of the gain in accuracy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tunediff.evaluations.behaviour import recovered
from tunediff.evaluations.behaviour.conditions import accuracy
from tunediff.evaluations.behaviour.recovered import ACCURACY, MEASURES, Change, Share, share, told
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found, Problems, decoded
from tunediff.evaluations.behaviour.solving import Answered, Condition, Solved
from tunediff.evaluations.given import Given, Needs
from tunediff.models import ModelPair, ModelSource, PairError, agree
from tunediff.shapes import BASE, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text

LORA, FULL = "lora", "full"
WHO = (BASE, LORA, FULL)
CHANGE = Change("recovery", *WHO, otherwise=", or ask the base otherwise")


@dataclasses.dataclass(kw_only=True)
class Recovery(BehaviourEvaluation):
    """full          the fully fine-tuned model that the tuned one is measured against, brought in the tuned one's dtype

    Raises Refused where `full` cannot be found.
    """

    full: ModelSource

    name = "recovery"
    needs = Needs.PAIR
    own_template = True
    many = False

    def __post_init__(self):
        try:
            self.full.config()
        except PairError as error:
            raise Refused(
                f"Cannot load '{self.full.path}', the fully fine-tuned model of recovery: name a Hub id or a local folder, "
                "evaluation.recovery.full.path=<folder>."
            ) from error

    def times_asked(self, pair: ModelPair) -> int:
        return len(WHO)

    def check(self, pair: ModelPair, text: Text) -> None:
        super().check(pair, text)
        self._second(pair, text)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        problems = yield from self.asked(given)
        second, notes = self._second(given.pair, given.text)
        yield from notes
        found = self.answers(given, second, problems)
        # its own findings say how the base was asked, and take the place of those side by side
        yield from (said for said in self.side_by_side(found) if not isinstance(said, Finding))
        rows = []
        for name in self.tasks:
            answers = [found[name, who].solved for who in WHO]
            how = self._how(name, len(problems[name]))
            yield from _accuracies(name, answers, how)
            for measure in MEASURES:
                measured = share(measure, answers)
                where = f"recovery/{name}" if measure == ACCURACY else f"recovery/{name}/{measure}"
                yield told(CHANGE, name, measured, where=f"{where}/recovered", how=how)
                rows.append(_row(name, measured, self.tasks[name].prompts[BASE], self.full.path))
        table = Table.of("recovery", rows)
        yield table
        yield figure(table.columns)

    def _second(self, pair: ModelPair, text: Text) -> tuple[ModelPair, list[Note]]:
        """The base with the full model in the tuned one's place, no weights yet. Raises Refused where they read different
        tokens, of which lengths are counted."""
        full = dataclasses.replace(self.full, dtype=pair.sources[TUNED].dtype)  # else rounding would be a difference
        second = ModelPair(
            pair.sources[BASE],
            full,
            tokenizer=pair.owner,
            align=pair.align,
            foreign=pair.foreign_policy,
            hesitations=pair.hesitations,
        )
        try:
            notes = [f"recovery, base and {full.path}: {said}" for said in agree(second, text).notes]
        except PairError as error:
            raise Refused(
                f"{full.path} is no fully fine-tuned model of {pair.sources[BASE].path} (evaluation.recovery.full.path names "
                f"it): {error}"
            ) from error
        if self.decoding.generation_config:
            notes.append(f"recovery: {decoded(FULL, full, self.decoding)}")
        if full == pair.sources[TUNED]:
            notes.append(
                f"recovery: {full.path} is the pair's tuned model itself and recovers all; evaluation.recovery.full.path=... "
                "names another."
            )
        return second, [Note(said) for said in notes]

    def answers(self, given: Given, second: ModelPair, problems: Problems) -> Found:
        """The responses of the three models. The full one comes first, so that one that cannot be used is refused before the
        others have written for hours; while it is there the pair waits, and the base is not brought a second time."""
        full = Condition(FULL, "full fine-tuning", TUNED, reference=BASE)
        base, lora = Condition(BASE, "base", BASE), Condition(LORA, "LoRA", TUNED, reference=BASE)
        device = given.pair.device(TUNED)
        with given.pair.set_aside():
            second.load(device, roles=[TUNED])
            try:
                theirs = self.solved(dataclasses.replace(given, pair=second), problems, [full])
            finally:
                second.models.clear()
        # in its own pair it stood in the tuned model's place; from here on it stands beside it
        beside = dataclasses.replace(full, role=FULL)
        found = {key: Answered(beside, solved) for key, (_, solved) in theirs.items()}
        found |= self.solved(given, problems, [base, lora])
        return {(task, who): found[task, who] for task in problems for who in WHO}

    def _how(self, name: str, count: int) -> str:
        """The words on what every number of a task depends on."""
        prompts = self.tasks[name].prompts
        return (
            f"{count} problems; the base was asked {prompts[BASE]!r}, lora and full {prompts[TUNED]!r}; "
            f"full is {self.full.path}"
        )


def _accuracies(task: str, answers: Sequence[Sequence[Solved]], how: str) -> Iterator[Finding]:
    for who, solved in zip(WHO, answers, strict=True):
        meaning = f"share of problems graded right, Wilson interval; {how}"
        yield Finding(f"recovery/{task}/{ACCURACY}/{who}", *accuracy(solved), meaning, over="problems")


def _row(task: str, found: Share, prompt: str, full: str) -> dict[str, object]:
    return {
        "task": task,
        "measure": MEASURES[found.measure],
        **dict(zip(WHO, found.means, strict=True)),
        **recovered.columns("recovered", found),
        "base_asked": prompt,
        "full_model": full,
    }


def figure(columns: Mapping[str, list]) -> Figure:
    return recovered.shares_figure(
        columns,
        name="recovery/shares",
        y=["recovered"],
        section="What the low-rank adapter recovers",
        title="Share of what full fine-tuning changed",
        caption="(lora - base) / (full - base): 0 is the base, 1 the fully fine-tuned model. It depends on how the base was "
        "asked. Ranges are 95 % intervals over problems; a dash stands where nothing was there to recover.",
        words={"base_asked": "the base was asked"},
    )
