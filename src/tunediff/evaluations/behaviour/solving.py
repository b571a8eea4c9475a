"""Problems x conditions -> graded responses: what a model does under edits, and what it does without.

A condition is one model under some edits, asked in one way. Every response is kept as it comes, in the run folder, so that
an evaluation that was interrupted goes on with the problems that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunediff.benchmarks import Behaviour, Grade, Grader, Problem, Task, behaviour
from tunediff.edits import Edit
from tunediff.evaluations.given import Given
from tunediff.generation import Asked, Decoding, Engine, Response, ask, generate, surprise
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, BASE, OTHER, TUNED


@dataclasses.dataclass(frozen=True)
class Condition:
    """name, title   a path such as zero/delta, and words          role       the model that writes
    edits         edits of the model's activations                control    true for a baseline without the edit asked about
    reference     name of the condition that it is compared with; None: with none
    asked_as      role of the model whose prompt of the task is given; None: its own
    alongside     the other model's own unedited responses stand beside it, for patches from the same generation
    """

    name: str
    title: str
    role: str
    edits: tuple[Edit, ...] = ()
    control: bool = False
    reference: str | None = None
    asked_as: str | None = None
    alongside: bool = False


class Solved(NamedTuple):
    """One problem under one condition; `nats` is the sum of -log p of its tokens under the unedited model."""

    problem: Problem
    response: Response
    grade: Grade
    behaviour: Behaviour
    nats: float


class Answered(NamedTuple):
    """A condition with its graded responses, in the order of the problems."""

    condition: Condition
    solved: list[Solved]


@dataclasses.dataclass(frozen=True)
class Solver:
    """name            name of the evaluation, under which responses are kept
    own_template    each model is asked through its own tokenizer and template; else both are through the pair's
    hesitations     words that count as one, as regular expressions
    """

    given: Given
    name: str
    decoding: Decoding
    engine: Engine
    own_template: bool
    hesitations: tuple[str, ...]

    @property
    def pair(self) -> ModelPair:
        return self.given.pair

    def tokenizer(self, role: str) -> Any:
        return self.pair.tokenizer_of(role) if self.own_template else self.pair.tokenizers[self.pair.entry(role)]

    def respond(self, task: str, problems: Sequence[Problem], condition: Condition) -> list[Response]:
        """The responses under a condition, in the order of the problems; problems whose response is kept are not asked again."""
        tokenizer, alongside = self.tokenizer(condition.role), None
        whose = condition.asked_as or condition.role
        if condition.alongside:
            other = OTHER[condition.role]
            plain = Condition(f"{other} beside {condition.role}", "", other, asked_as=whose)
            alongside = self.respond(task, problems, plain)
        asked = ask(
            [(f"{task} {problem.id}", problem.prompts[whose]) for problem in problems],
            tokenizer,
            self.given.text.system,
        )
        kept = KeptResponses(self.given.folder, self.name, task, self._stands_for(condition))
        known = ((place, kept.read(one)) for place, one in enumerate(asked))
        found = {place: response for place, response in known if response is not None}
        missing = [place for place in range(len(asked)) if place not in found]
        if missing:
            some = [asked[place] for place in missing]
            written = generate(
                self.pair,
                condition.role,
                some,
                self.decoding,
                engine=self.engine,
                edits=condition.edits,
                tokenizer=tokenizer,
                alongside=None if alongside is None else [alongside[place] for place in missing],
                title=f"{self.name} {task}: {condition.name}",
                keep=lambda n, response: kept.write(some[n], response),
            )
            found |= dict(zip(missing, written, strict=True))
        return [found[place] for place in range(len(asked))]

    def solve(
        self, task: str, of: Task, problems: Sequence[Problem], conditions: Iterable[Condition]
    ) -> Iterator[Answered]:
        """Yields each condition with its graded responses, one after the other."""
        with Grader() as grader:
            for condition in conditions:
                responses = self.respond(task, problems, condition)
                grades = self.grades(of, problems, responses, grader)
                yield Answered(condition, self.measured(problems, responses, grades, condition))

    def grades(
        self, of: Task, problems: Sequence[Problem], responses: Sequence[Response], grader: Grader
    ) -> list[Grade]:
        questions = [
            (response.text, problem.gold, of.kind, response.finished, response.opened)
            for problem, response in zip(problems, responses, strict=True)
        ]
        return grader.grade(questions, tolerance=of.tolerance)

    def measured(
        self,
        problems: Sequence[Problem],
        responses: Sequence[Response],
        grades: Sequence[Grade],
        condition: Condition,
    ) -> list[Solved]:
        """Measures how the responses are written, and how probable the unedited model finds them."""
        tokenizer, whose = self.tokenizer(condition.role), condition.asked_as or condition.role
        prompts = ask([(problem.id, problem.prompts[whose]) for problem in problems], tokenizer, self.given.text.system)
        nats = surprise(self.pair, condition.role, prompts, responses, tokenizer=tokenizer)
        wrote = [behaviour(r.text, r.ids, patterns=self.hesitations, opened=r.opened) for r in responses]
        return [Solved(*parts) for parts in zip(problems, responses, grades, wrote, nats, strict=True)]

    def _stands_for(self, condition: Condition) -> str:
        """A digest of all that decides a response beside its prompt and its batch."""
        sources = [self.pair.sources[role] for role in (BASE, TUNED)]
        named = [condition.role, *(f"{source} {source.files()}" for source in sources), repr(self.decoding)]
        named.append(type(self.engine).__name__)
        if condition.role not in (BASE, TUNED):  # it stands beside them, with an adapter or without
            beside = [self.pair.adapter_on, self.pair.adapter] if condition.role == ADAPTER else []
            named.append(digest(beside))
        named += [str(self.own_template), str(condition.asked_as), str(condition.alongside)]
        return digest([*named, *condition.edits])


def asked_differently(problems: Iterable[Problem]) -> bool:
    """True for a task with another prompt for one model than for the other."""
    return any(len(set(problem.prompts.values())) > 1 for problem in problems)


class KeptResponses:
    """The file of one condition's responses in <run folder>/outputs, a line each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, name: str, task: str, stands_for: str):
        self.path = None if folder is None else folder / "outputs" / f"{name}-{task}-{stands_for}.jsonl"
        self.known: dict[str, Response] = {}
        for line in whole_lines(self.path) if self.path is not None else []:
            entry = json.loads(line)
            key = entry.pop("key")
            self.known[key] = Response(
                **{**entry, "touched": tuple(entry["touched"]), "change": tuple(entry["change"])}
            )

    def read(self, asked: Asked) -> Response | None:
        return self.known.get(digest([asked.name, asked.ids]))

    def write(self, asked: Asked, response: Response) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": digest([asked.name, asked.ids]), **response._asdict()}) + "\n")


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is written line by line; what a killed process left of its last line is cut off the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()


def digest(parts: Any) -> str:
    """A digest of plain values, tensors, modules and dataclasses of these."""
    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            state.update(str(value.dtype).encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
        elif isinstance(value, torch.nn.Module):
            add(dict(value.state_dict()))
        elif dataclasses.is_dataclass(value):
            state.update(type(value).__qualname__.encode())
            add({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        elif isinstance(value, Mapping):
            for key, one in value.items():
                add(str(key))
                add(one)
        elif isinstance(value, list | tuple):
            state.update(b"[")
            for one in value:
                add(one)
        else:
            state.update(repr(value).encode() + b";")

    add(parts)
    return state.hexdigest()[:16]
