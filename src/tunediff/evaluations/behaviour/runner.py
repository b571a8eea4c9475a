"""Tasks are put to models under several conditions: which problems, how responses are written, and what a reader is told of the
graded answers whatever the conditions were. Each evaluation of behaviour adds its conditions and what it alone asks of the
answers.

Findings are <evaluation>/<task>/<condition>/<measure>; the tables are <evaluation>_conditions, a row a condition, and
<evaluation>_outputs, a row a response.
"""

# Annotations are evaluated here: settings are checked against these types in every class that inherits them, whose own
# modules do not import the names.

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from tunediff.benchmarks import Grade, Grader, Problem, Task, behaviour
from tunediff.evaluations.behaviour.conditions import MEANINGS, meaning, row
from tunediff.evaluations.behaviour.solving import Answered, Condition, KeptResponses, Solved, digest, in_turn
from tunediff.evaluations.given import Given, Work
from tunediff.generation import NOT_FOLLOWED, OWN, Asked, Decoding, Engine, Response, ask, generate, surprise
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import ADAPTER, BASE, OTHER, TUNED, Finding, Note, Refused, Stream, Table, path_in
from tunediff.text import Layout, Text

Found = dict[tuple[str, str], Answered]  # (task, condition) -> its responses
Graded = list[tuple[Problem, Response, Grade]]
Problems = Mapping[str, Sequence[Problem]]  # by task


@dataclass(kw_only=True)
class BehaviourEvaluation:
    """tasks         name -> benchmark                     problems     at most so many of each task; None: all, or with `many`
    decoding      how responses are written                          conditions as many as the task says are enough
    engine        what writes them
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
    many: ClassVar[bool] = True

    # task -> tokens of a response, once problems were chosen
    allowed: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self, pair: ModelPair, text: Text) -> None:
        """Raises Refused, before a weight is loaded, for a task without a problem, and for responses longer than a model has
        positions for."""
        for name in self.tasks or {}:
            path_in(Path("outputs"), f"{self.name}-{name}", f"evaluation.{self.name}.tasks, as a name of files")
            self._budget(Given(pair, text, 0), name, self._problems(name))

    def times_asked(self, pair: ModelPair) -> int:
        """Number of responses to each problem, at most."""
        return 2

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Every problem under every condition, each response as long as it may be; without the tokens of the prompts."""
        tasks, set_to = self.tasks or {}, self.decoding.tokens
        tokens = sum(len(self._problems(name)) * (set_to or task.tokens or 0) for name, task in tasks.items())
        return Work(written=tokens * self.times_asked(pair), together=getattr(self.engine, "batch", 1))

    def asked(self, given: Given) -> Generator[Note, None, dict[str, list[Problem]]]:
        """Returns the problems of each task; yields what a reader must know of those that were left out, of budgets that the
        models have no room for, and of how the models' own files have them decoded. Raises Refused as check does."""
        found = {}
        for role in (BASE, TUNED) if self.decoding.generation_config else ():
            yield Note(f"{self.name}: {decoded(role, given.pair.source(role), self.decoding)}")
        for name, task in self.tasks.items():
            found[name] = self._problems(name)
            self.allowed[name], said = self._budget(given, name, found[name])
            yield from map(Note, said)
            if task.left_out:
                what = "one right choice" if task.choices else "an answer"
                yield Note(f"{name}: {task.left_out} problems without {what} were left out")
        return found

    def _problems(self, name: str) -> list[Problem]:
        task = self.tasks[name]
        found = task.problems()[: task.few if self.problems is None and self.many else self.problems]
        if not found:
            raise Refused(f"task {name} has no problem: look at its filter, or raise problems={self.problems}.")
        return found

    def _budget(self, given: Given, name: str, problems: Sequence[Problem]) -> tuple[int, list[str]]:
        """Tokens of a response to a task: as set, else the task's, of which no more than both models have positions for
        behind the longest prompt; and what is to be said of it."""
        pair, setting, rooms = given.pair, f"evaluation.{self.name}.decoding.tokens", []
        for role in (BASE, TUNED):
            tokenizer, prompts = self.tokenizer(pair, role), {one for p in problems for one in p.prompts.values()}
            longest = max(len(one.ids) for one in ask([("", p) for p in prompts], tokenizer, given.text.manner))
            positions = pair.configs[role].max_position_embeddings
            who = f"the {positions:,} positions of {pair.source(role).path}"
            rooms.append((positions - longest, longest, who))
        room, longest, who = min(rooms)
        wanted = self.decoding.tokens if self.decoding.tokens is not None else self.tasks[name].tokens
        if wanted is None:
            raise Refused(f"task {name} names no budget of a response: set {setting}, or task.{name}.tokens.")
        if room < 1 or (self.decoding.tokens is not None and wanted > room):
            raise Refused(
                f"A prompt of {longest:,} tokens of {name} and {setting}={wanted} are more than {who}: "
                + (f"set {setting} to at most {room}." if room > 0 else "leave the task out.")
            )
        if wanted <= room:
            return wanted, []
        return room, [
            f"{self.name}, {name}: responses have at most {room:,} tokens in place of the task's {wanted:,}, for the longest "
            f"prompt has {longest:,} of {who}."
        ]

    def solved(self, given: Given, problems: Problems, conditions: Sequence[Condition]) -> Found:
        """The graded responses to every problem under every condition, one task after the other."""
        found = {}
        with Grader() as grader:
            for task, some in problems.items():
                for condition in conditions:
                    responses = self.respond(given, task, some, condition)
                    answers = self.graded(task, some, responses, grader, given.pair.layouts)
                    measured = self.measured(given, condition, answers, draws=len(condition.drawn))
                    found[task, condition.name] = Answered(condition, measured)
        return found

    def respond(self, given: Given, task: str, problems: Sequence[Problem], condition: Condition) -> list[Response]:
        """The responses under a condition, in the order of the problems; problems whose response is kept are not asked again."""
        if condition.drawn:
            found = {}
            for edits, places in zip(condition.drawn, in_turn(len(problems), len(condition.drawn)), strict=False):
                one, some = replace(condition, edits=edits, drawn=()), [problems[place] for place in places]
                found |= zip(places, self.respond(given, task, some, one), strict=True)
            return [found[place] for place in range(len(problems))]
        alongside = None
        if condition.alongside:
            whose, other = condition.asked_as or condition.role, OTHER[condition.role]
            plain = Condition(f"{other} beside {condition.role}", "", other, asked_as=whose)
            alongside = self.respond(given, task, problems, plain)
        asked, decoding = self.prompts(given, condition, problems, task), self.decoding_of(given.pair, condition, task)
        kept = KeptResponses(given.folder, self.name, task, self._stands_for(given.pair, condition, decoding))
        known = ((place, kept.read(one)) for place, one in enumerate(asked))
        found = {place: response for place, response in known if response is not None}
        missing = [place for place in range(len(asked)) if place not in found]
        if missing:
            some = [asked[place] for place in missing]
            written = generate(
                given.pair,
                condition.role,
                some,
                decoding,
                engine=self.engine,
                edits=condition.edits,
                tokenizer=self.tokenizer(given.pair, condition.role),
                alongside=None if alongside is None else [alongside[place] for place in missing],
                title=f"{self.name} {task}: {condition.name}",
                keep=lambda n, response: kept.write(some[n], response),
            )
            found |= dict(zip(missing, written, strict=True))
        return [found[place] for place in range(len(asked))]

    def graded(
        self,
        task: str,
        problems: Sequence[Problem],
        responses: Sequence[Response],
        grader: Grader,
        layouts: Sequence[Layout],
    ) -> Graded:
        of = self.tasks[task]
        questions = [
            (response.text, problem.gold, of.kind, response.finished, response.opened, layouts, problem.choices)
            for problem, response in zip(problems, responses, strict=True)
        ]
        return list(zip(problems, responses, grader.grade(questions, tolerance=of.tolerance), strict=True))

    def measured(self, given: Given, condition: Condition, answers: Graded, *, draws: int = 0) -> list[Solved]:
        """Measures how the responses are written, and how probable the unedited model finds them. With `draws` they are those
        of so many random draws in turn."""
        patterns = given.pair.hesitations if self.hesitations is None else self.hesitations
        responses, tokenizer = [one for _, one, _ in answers], self.tokenizer(given.pair, condition.role)
        prompts = self.prompts(given, condition, [problem for problem, _, _ in answers])
        nats = surprise(given.pair, condition.role, prompts, responses, tokenizer=tokenizer, logits_mb=given.logits_mb)
        layouts = given.pair.layouts
        wrote = [behaviour(r.text, r.ids, patterns=patterns, opened=r.opened, layouts=layouts) for r in responses]
        made = [Solved(*one, style, nat) for one, style, nat in zip(answers, wrote, nats, strict=True)]
        return [one._replace(draw=place % draws) for place, one in enumerate(made)] if draws else made

    def tokenizer(self, pair: ModelPair, role: str) -> Any:
        return pair.tokenizer_of(role) if self.own_template else pair.tokenizers[pair.entry(role)]

    def prompts(self, given: Given, condition: Condition, problems: Sequence[Problem], task: str = "") -> list[Asked]:
        whose = condition.asked_as or condition.role
        again = [f"\nsample {problem.sample}" if problem.sample else "" for problem in problems]
        named = [
            (f"{task} {problem.id}{sample}", problem.prompts[whose])
            for problem, sample in zip(problems, again, strict=True)
        ]
        return ask(named, self.tokenizer(given.pair, condition.role), given.text.manner)

    def decoding_of(self, pair: ModelPair, condition: Condition, task: str = "") -> Decoding:
        """The decoding of a condition, with the budget of its task; on request by the model's own generation_config.json."""
        named = pair.source(condition.role).generation_config if self.decoding.generation_config else {}
        found = (condition.decoding or self.decoding).of_model(named)
        return replace(found, tokens=self.allowed.get(task)) if found.tokens is None else found

    def _stands_for(self, pair: ModelPair, condition: Condition, decoding: Decoding) -> str:
        """A digest of all that decides a response beside its prompt and its batch."""
        sources = [pair.sources[role] for role in (BASE, TUNED)]
        named = [condition.role, *(f"{source} {source.files()}" for source in sources), repr(decoding)]
        named.append(type(self.engine).__name__)
        if condition.role not in (BASE, TUNED):  # it stands beside them, with an adapter or without
            beside = [pair.adapter_on, pair.adapter] if condition.role == ADAPTER else []
            named.append(digest(beside))
        named += [str(self.own_template), str(condition.asked_as), str(condition.alongside)]
        return digest([*named, *condition.edits])

    def side_by_side(self, found: Found) -> Iterator[Finding | Note | Table]:
        """The conditions compared, with the notes that their numbers cannot be read without."""
        yield from never_touched(self.name, found)
        yield from mostly_cut(self.name, found)
        rows = []
        for (task, key), (condition, solved) in found.items():
            reference = found.get((task, condition.reference)) if condition.reference else None
            columns = {"task": task, **row(condition, solved, None if reference is None else reference.solved)}
            rows.append(columns)
            for measure in MEANINGS:
                if columns[measure] is not None:
                    low, high = columns.get(f"{measure}_low"), columns.get(f"{measure}_high")
                    words = meaning(measure, columns["samples"], condition.reference, columns["draws"])
                    over = "draws and problems" if columns["draws"] else "problems"
                    yield Finding(f"{self.name}/{task}/{key}/{measure}", columns[measure], low, high, words, over=over)
        for kind, made in (("conditions", rows), ("outputs", outputs(found))):
            yield Table.of(f"{self.name}_{kind}", made)


def decoded(who: str, source: ModelSource, decoding: Decoding) -> str:
    """The words on how a model's own file has it decoded."""
    named = source.generation_config
    own = [f"{name} {getattr(decoding.of_model(named), name)}" for name in OWN]
    left = [f"{name} {named[name]}" for name, none in NOT_FOLLOWED.items() if named.get(name) not in (None, none)]
    more = f"; what it says of {', '.join(left)} is not followed" if left else ""
    return f"{who} is decoded by its generation_config.json: {', '.join(own)}{more}."


def never_touched(name: str, found: Found) -> Iterator[Note]:
    """Names the gates behind which no edit changed a token: they never opened, or nothing it acts on was active."""
    idle: dict[tuple[str, str], list[str]] = {}
    for (task, key), (condition, solved) in found.items():
        if condition.acting and not any(sum(one.response.touched) for one in solved):
            idle.setdefault((task, condition.acting[0].gate.described), []).append(key)
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
                f"what they had said by then: raise evaluation.{name}.decoding.tokens."
            )


def outputs(found: Found) -> list[dict[str, object]]:
    """Every response with its grade: the rows of <evaluation>_outputs."""
    several = any(one.problem.sample for _, solved in found.values() for one in solved)
    return [
        {
            "task": task,
            "problem": one.problem.id,
            **({"sample": one.problem.sample} if several else {}),
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
