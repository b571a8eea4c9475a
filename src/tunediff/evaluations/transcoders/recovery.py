"""The share of fine-tuning's effect on behaviour that a transcoder adapter brings back: the same problems to the base, to the
hybrid that the adapter stands in, to the adapted model and to the tuned one (arXiv 2602.20904, section 4).

    recovered_of_hybrid   (adapter - hybrid) / (tuned - hybrid)      recovered_of_base   (adapter - base) / (tuned - base)

of accuracy, of the tokens and of the hesitations a response. All but the base are asked as the tuned model is, through its
chat template with its prompt of the task; intervals as in behaviour/recovered.py. Knows nothing of what the latents mean.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunediff.evaluations.behaviour import recovered
from tunediff.evaluations.behaviour.conditions import hesitations
from tunediff.evaluations.behaviour.recovered import ACCURACY, MEASURES, Change, share, told
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.given import Needs, Trained
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, BASE, HYBRID, TUNED, Figure, Finding, Note, Table

NAME = "adapter_recovery"
WHO = (BASE, HYBRID, ADAPTER, TUNED)
CONDITIONS = (
    Condition(BASE, "base", BASE),
    Condition(HYBRID, "tuned with the base's MLPs", HYBRID, reference=BASE, asked_as=TUNED),
    Condition(ADAPTER, "that with the adapter", ADAPTER, reference=HYBRID, asked_as=TUNED),
    Condition(TUNED, "tuned", TUNED, reference=HYBRID),
)
CHANGES = {
    "recovered_of_hybrid": Change(NAME, HYBRID, ADAPTER, TUNED),
    "recovered_of_base": Change(NAME, BASE, ADAPTER, TUNED, otherwise=", or ask the base otherwise"),
}

TITLES = {BASE: "base", HYBRID: "hybrid: tuned model, base MLPs", ADAPTER: "adapter", TUNED: "tuned"}
FIRST = (ACCURACY, "recovered_of_hybrid")  # what a run is told by


@dataclass(kw_only=True)
class AdapterRecovery(BehaviourEvaluation):
    name = NAME
    needs = Needs.ADAPTER
    own_template = True

    def times_asked(self, pair: ModelPair) -> int:
        return len(WHO)

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        trained.adapter(NAME)  # refuses another dictionary
        problems = yield from self.asked(trained)
        found = self.solved(trained, problems, CONDITIONS)
        yield from (_hesitations(name, condition, solved) for (name, _), (condition, solved) in found.items())
        yield from self.side_by_side(found)
        rows = []
        for name, task in self.tasks.items():
            answers = {who: found[name, who].solved for who in WHO}
            how = (
                f"{len(problems[name])} problems; the base was asked {task.prompts[BASE]!r}, hybrid, adapter and tuned "
                f"{task.prompts[TUNED]!r}"
            )
            for measure in MEASURES:
                rows.append((yield from self._shares(name, measure, answers, how)))
        table = Table.of(NAME, rows)
        yield table
        yield from figures(table.columns)

    def _shares(
        self, task: str, measure: str, answers: Mapping[str, Sequence[Solved]], how: str
    ) -> Generator[Finding | Note, None, dict[str, object]]:
        """Yields the recovered shares of both changes, and returns their row of the table."""
        means, ends = {}, {}
        for name, of in CHANGES.items():
            names = (of.below, of.between, of.above)
            measured = share(measure, [answers[who] for who in names])
            words = ("", "")
            if (measure, name) == FIRST:
                words = (f"accuracy rec., {task}", f"accuracy recovered on {task}")
            where = f"{NAME}/{task}/{measure}/{name}"
            yield told(of, task, measured, where=where, how=how, words=words)
            means |= dict(zip(names, measured.means, strict=True))
            ends |= recovered.columns(name, measured)
        return {"task": task, "measure": MEASURES[measure], **{who: means[who] for who in WHO}, **ends}


def _hesitations(task: str, condition: Condition, solved: Sequence[Solved]) -> Finding:
    """Findings of hesitations per response; side_by_side has those per 1,000 tokens."""
    where, meaning = f"{NAME}/{task}/{condition.name}", "hesitations a response"
    return Finding(f"{where}/hesitations_per_response", *hesitations(solved, a_response=True), meaning, over="problems")


def figures(columns: Mapping[str, list]) -> Iterator[Figure]:
    """Draws the four models on each task, and below them the shares."""
    section, words = "What the adapter recovers", {who: title for who, title in TITLES.items() if who != title}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for task in dict.fromkeys(columns["task"]):
        mine = [row for row in rows if row["task"] == task]
        of_models = {row["measure"]: [row[who] for who in WHO] for row in mine}
        yield Figure(
            name=f"{NAME}/{task}/models",
            kind="bars",
            columns={"model": [TITLES[who] for who in WHO], **of_models, "role": list(WHO)}
            | {"ruled": [who == TUNED for who in WHO]},
            x="model",
            y=list(of_models),
            section=section,
            title=f"Four models on {task}",
            caption="The hybrid is the tuned model with the MLPs of base; the adapter stands beside those. A share is (adapter - "
            "hybrid) / (tuned - hybrid), or the same from base: 1 is the tuned model. Ranges are 95 % intervals; a dash "
            "stands where nothing was there to recover.",
            group="role",
            rule="ruled",
        )
    yield recovered.shares_figure(
        columns,
        name=f"{NAME}/shares",
        y=list(CHANGES),
        section=section,
        title="Share of what fine-tuning changed, by the adapter",
        words=words
        | {"recovered_of_hybrid": "recovered, from the hybrid", "recovered_of_base": "recovered, from base"},
    )
