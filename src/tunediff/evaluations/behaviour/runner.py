"""Tasks are put to models under several conditions: which problems, how responses are written, and what a reader is told of the
graded answers whatever the conditions were. Each evaluation of behaviour adds its conditions and what it alone asks of the
answers.

Findings are <evaluation>/<task>/<condition>/<measure>; the tables are <evaluation>_conditions, a row a condition, and
<evaluation>_outputs, a row a response.
"""

# Annotations are evaluated here: settings are checked against these types in every class that inherits them, whose own
# modules do not import the names.

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tunediff.benchmarks import Problem, Task
from tunediff.evaluations.behaviour.conditions import MEANINGS, row
from tunediff.evaluations.behaviour.solving import Answered, Condition, Solver
from tunediff.evaluations.given import Given
from tunediff.generation import Decoding, Engine
from tunediff.shapes import Finding, Note, Refused, Table

Found = dict[tuple[str, str], Answered]  # (task, condition) -> its responses
Problems = Mapping[str, Sequence[Problem]]  # by task


@dataclass(kw_only=True)
class BehaviourEvaluation:
    """tasks         name -> benchmark                     problems     at most so many of each task; None: all
    decoding      how responses are written             engine       what writes them
    hesitations   words that count as one, as regular expressions; None: the pair's own

    `name` is that of the findings, the tables and the kept responses. With `own_template` each model is asked through its
    own tokenizer and chat template, else both are through the pair's.
    """

    tasks: Mapping[str, Task]
    problems: int | None
    decoding: Decoding
    engine: Engine
    hesitations: Sequence[str] | None = None

    name: ClassVar[str]
    own_template: ClassVar[bool] = False

    def asked(self) -> Generator[Note, None, dict[str, list[Problem]]]:
        """Returns the first so many problems of each task; yields what a reader must know of those that were left out.
        Raises Refused for a task without any."""
        found = {}
        for name, task in self.tasks.items():
            found[name] = task.problems()[: self.problems]
            if not found[name]:
                raise Refused(f"task {name} has no problem: look at its filter, or raise problems={self.problems}.")
            if task.left_out:
                yield Note(f"{name}: {task.left_out} problems without an answer were left out")
        return found

    def solver(self, given: Given) -> Solver:
        hesitations = given.pair.hesitations if self.hesitations is None else self.hesitations
        return Solver(given, self.name, self.decoding, self.engine, self.own_template, tuple(hesitations))

    def solved(self, given: Given, problems: Problems, conditions: Sequence[Condition]) -> Found:
        """The graded responses to every problem under every condition, one task after the other."""
        solver = self.solver(given)
        return {
            (task, answered.condition.name): answered
            for task, some in problems.items()
            for answered in solver.solve(task, self.tasks[task], some, conditions)
        }

    def side_by_side(self, found: Found) -> Iterator[Finding | Note | Table]:
        """The conditions compared, with the notes that their numbers cannot be read without."""
        yield from never_touched(self.name, found)
        yield from mostly_cut(self.name, found)
        rows = []
        for (task, key), (condition, solved) in found.items():
            reference = found.get((task, condition.reference)) if condition.reference else None
            columns = {"task": task, **row(condition, solved, None if reference is None else reference.solved)}
            rows.append(columns)
            for measure, meaning in MEANINGS.items():
                if columns[measure] is not None:
                    low, high = columns.get(f"{measure}_low"), columns.get(f"{measure}_high")
                    meaning = meaning.format(reference=condition.reference)
                    yield Finding(f"{self.name}/{task}/{key}/{measure}", columns[measure], low, high, meaning)
        for kind, made in (("conditions", rows), ("outputs", outputs(found))):
            yield Table.of(f"{self.name}_{kind}", made)


def never_touched(name: str, found: Found) -> Iterator[Note]:
    """Names the gates behind which no edit changed a token: they never opened, or nothing it acts on was active."""
    idle: dict[tuple[str, str], list[str]] = {}
    for (task, key), (condition, solved) in found.items():
        if condition.edits and not any(sum(one.response.touched) for one in solved):
            idle.setdefault((task, condition.edits[0].gate.described), []).append(key)
    for (task, gate), keys in idle.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        yield Note(
            f"{name}, {task}: the edit of {keys[0]}{more} touched no position of any response; the gate is {gate}."
        )


def mostly_cut(name: str, found: Found) -> Iterator[Note]:
    """Names the conditions under which the budget ended more than half of the responses: accuracies then tell of the budget."""
    for (task, key), (_, solved) in found.items():
        cut = 1 - sum(one.response.finished for one in solved) / len(solved)
        if cut > 0.5:
            yield Note(
                f"{name}, {task}: under {key} {cut:.0%} of the responses were cut by the budget, and count as wrong or as "
                "what they had said by then: raise decoding.tokens."
            )


def outputs(found: Found) -> list[dict[str, object]]:
    """Every response with its grade: the rows of <evaluation>_outputs."""
    return [
        {
            "task": task,
            "problem": one.problem.id,
            "question": one.problem.question,
            "gold": one.problem.gold,
            "condition": key,
            "response": one.response.text,
            "answer": one.grade.answer,
            "rule": one.grade.rule,
            "correct": one.grade.correct,
            "finished": one.response.finished,
            "tokens": one.behaviour.tokens,
            "hesitations": one.behaviour.hesitations,
            "repetition": one.behaviour.repetition,
            "nll": one.nats / one.behaviour.tokens if one.behaviour.tokens else None,
            "touched": sum(one.response.touched),
        }
        for (task, key), (_, solved) in found.items()
        for one in solved
    ]
