"""Rows of a benchmark -> problems: what each model is asked, and the answer that counts as right.

Knows columns and prompts; neither a model, nor how an answer is found in a response and compared with the gold one.
"""

from __future__ import annotations

import decimal
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunediff.benchmarks.choices import LETTERS, Choices, listed, same
from tunediff.benchmarks.grading import KINDS
from tunediff.shapes import ROLES, Refused
from tunediff.text import read_files
from tunediff.text.patterns import compiled
from tunediff.text.rows import HALF, Placed

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
MISTAKABLE = re.compile(r"(?<![A-Za-z}^_])\{([A-Za-z_]\w*)\}")  # in \boxed{yes} or x_{n} the braces are LaTeX's


class TaskError(Refused):
    """A benchmark that cannot be used; the message says why and what to do."""


class Problem(NamedTuple):
    """One problem: the right answer as text, and the user's message for the model of each role. Of multiple choice `gold` is a
    letter and `choices` are in the order that is asked. Where it is asked several times, `sample` counts from 0."""

    id: str
    question: str
    gold: str
    prompts: dict[str, str]
    choices: tuple[str, ...] = ()
    sample: int = 0


class Task:
    """A benchmark: its problems, how each model is asked, how answers are compared.

    rows        a function without arguments that gives the rows anew         file   local files that are read instead
    question    column of the question; of several names, the first that a row has
    answer      column of the right answer: text, a number, a truth value (yes or no) or a list of these
    id          column of the id; rows without it are counted from 0
    final       regular expression: its group 1 in the answer is the gold answer; None: the whole answer
    kind        one of KINDS                                                   tolerance   relative; None: exact
    choices     columns of the wrong answers, for multiple choice; the gold answer is then the letter of the right one
    prompts     role -> the user's message; {question}, {choices} or any other column in braces is filled in
    keep        which problems; None: all                                      problems    the first so many; None: all
    tokens      budget of a response to one of them, thinking included; None: to be named by whoever asks
    few         problems that are enough where they are solved under many conditions; None: all
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
        *,
        question: str | Sequence[str],
        answer: str,
        prompts: Mapping[str, str],
        id: str | None = None,
        final: str | None = None,
        kind: str = "math",
        tolerance: float | None = None,
        choices: Choices | None = None,
        keep: Callable[[Problem], bool] | None = None,
        problems: int | None = None,
        tokens: int | None = None,
        few: int | None = None,
        file: str | Sequence[str] | None = None,
    ):
        if file is not None:
            rows = functools.partial(read_files, file)
        if rows is None:
            raise TaskError("A task has neither rows nor a file: name one of them.")
        self.rows = rows
        self.question = [question] if isinstance(question, str) else list(question)
        self.answer, self.id, self.kind, self.tolerance = answer, id, kind, tolerance
        self.prompts, self.keep, self.limit = dict(prompts), keep, problems
        self.choices, self.tokens, self.few = choices, tokens, few
        if kind not in KINDS:
            raise TaskError(f"kind={kind}: the kinds of answers are {', '.join(KINDS)}.")
        if choices is not None and (kind != "choice" or not 1 <= len(choices.incorrect) < len(LETTERS)):
            raise TaskError(
                f"choices has {len(choices.incorrect)} columns and kind={kind}: multiple choice is of kind=choice, with 1 to "
                f"{len(LETTERS) - 1} columns of wrong answers."
            )
        if tolerance is not None and not tolerance >= 0:
            raise TaskError(f"tolerance={tolerance}: it is a relative error, so 0 or more, or null for exact answers.")
        for name, value in (("problems", problems), ("few", few)):
            if value is not None and value < 1:
                raise TaskError(f"{name}={value}: at least 1, or null for all.")
        if tokens is not None and tokens < 1:
            raise TaskError(f"tokens={tokens}: at least 1 token of a response.")
        self._check_prompts()
        try:
            self.final = None if final is None else compiled(final, of="final")
        except Refused as refusal:
            raise TaskError(str(refusal)) from refusal
        if self.final is not None and self.final.groups < 1:
            raise TaskError(f"final={final!r} has no group: put the part that is the answer in parentheses.")

    def _check_prompts(self) -> None:
        if sorted(self.prompts) != sorted(ROLES):
            raise TaskError(f"prompts has {sorted(self.prompts)}; it needs one prompt for each of {', '.join(ROLES)}.")
        for role, prompt in self.prompts.items():
            names = PLACEHOLDER.findall(prompt)
            if not {"question", *self.question} & set(names):
                raise TaskError(
                    f"prompts.{role}={prompt!r} does not hold {{question}}: the model would not be told it."
                )
            for name in (self.answer, *(self.choices.incorrect if self.choices else ())):
                if name in names:
                    which = "right" if name == self.answer else "wrong"
                    raise TaskError(
                        f"prompts.{role}={prompt!r} holds {{{name}}}, the column of the {which} answers: it would give them away."
                    )
            if self.choices and "choices" not in names:
                raise TaskError(
                    f"prompts.{role}={prompt!r} does not hold {{choices}}: the model would not be told them."
                )

    def problems(self) -> list[Problem]:
        """The problems in the order of the rows, the same at every call."""
        return list(self._read[0])

    @property
    def left_out(self) -> int:
        """Rows that were passed over because their answer is empty or stands among the wrong ones."""
        return self._read[1]

    @functools.cached_property
    def _read(self) -> tuple[list[Problem], int]:
        empty, number = 0, -1
        found: dict[str, Problem] = {}
        for number, row in enumerate(self.rows()):
            try:
                problem = self._problem(row, number)
            except TaskError as error:
                raise TaskError(f"{row.place}: {error}" if isinstance(row, Placed) else str(error)) from error
            if problem is None:
                empty += 1
                continue
            if self.keep is not None and not self.keep(problem):
                continue
            if problem.id in found:
                where = f"{row.place}: " if isinstance(row, Placed) else ""
                raise TaskError(
                    f"{where}Two problems have the {self.id} {problem.id!r}: name another column, or id=null to count the rows."
                )
            found[problem.id] = problem
            if len(found) == self.limit:
                break
        else:
            self._check_count(len(found), number + 1, empty)
        return list(found.values()), empty

    def _check_count(self, found: int, rows: int, empty: int) -> None:
        if rows == 0:
            raise TaskError("The benchmark is empty: its file or data set has no rows.")
        if found < (self.limit or 1):
            wanted = "at least 1 is needed" if self.limit is None else f"problems={self.limit} are wanted"
            raise TaskError(
                f"Of {rows} rows {empty} have no answer and {found} pass, but {wanted}: lower problems, loosen keep, or "
                "give more rows."
            )

    def _gold(self, row: Mapping[str, Any], number: int) -> str:
        answer = _answer(row, self.answer, number, "answer")
        if not answer or self.final is None:
            return answer
        match = self.final.search(answer)
        if match is None:
            raise TaskError(
                f"The answer of row {number} has no match of final={self.final.expression!r}: it ends {answer[-60:]!r}. Mend "
                "final, or set it to null where the column holds the bare answer."
            )
        return (match[1] or "").strip()

    def _wrong(self, row: Mapping[str, Any], number: int) -> list[str]:
        columns = self.choices.incorrect if self.choices else ()
        found = [_answer(row, name, number, "choices.incorrect") for name in columns]
        return [text for text in found if text]

    def _problem(self, row: Mapping[str, Any], number: int) -> Problem | None:
        """The problem of a row; None where its answer is empty or stands among the wrong ones."""
        gold, wrong = self._gold(row, number), self._wrong(row, number)
        if not gold or (self.choices and (not wrong or any(same(gold, one) for one in wrong))):
            return None
        question = _column(row, self.question, number, "question")
        if not isinstance(question, str | None):
            raise TaskError(f"The question of row {number} is {question!r:.60}, and text belongs there.")
        question = (question or "").strip()
        if not question:
            raise TaskError(f"The question of row {number} is empty.")
        named = row.get(self.id) if self.id is not None else None
        if not isinstance(named, str | int | float | None):
            raise TaskError(f"The {self.id} of row {number} is {named!r:.60}, and a name or a number belongs there.")
        name, columns, choices = str(number if named is None else named), {**row, "question": question}, ()
        asked = question
        if self.choices is not None:
            gold, choices = self.choices.shuffled(gold, wrong, name)
            columns["choices"] = listed(choices)
            asked = f"{question}\n\n{listed(choices)}"
        prompts = {role: _filled(prompt, columns, number) for role, prompt in self.prompts.items()}
        for what, said in (
            ("id", name),
            ("question", asked),
            ("answer", gold),
            *(("prompt", p) for p in prompts.values()),
        ):
            if half := HALF.search(said):
                raise TaskError(f"The {what} of row {number} holds half a character ({half[0]!r}): repair the file.")
        return Problem(name, asked, gold, prompts, choices)


@dataclass(frozen=True)
class ManyNumbers:
    """Keeps word problems by how many numbers the question holds, and how large the right answer is."""

    min_numbers: int = 4
    min_abs_answer: float = 100

    def __call__(self, problem: Problem) -> bool:
        try:
            size = abs(float(problem.gold.replace(",", "").strip("$ ")))
        except ValueError as error:
            raise TaskError(
                f"The answer {problem.gold!r} of problem {problem.id} is not a number, so it has no size to be kept by: "
                "use this filter on numeric answers only."
            ) from error
        return size >= self.min_abs_answer and len(NUMBER.findall(problem.question)) >= self.min_numbers


# -- one row ---------------------------------------------------------------------------------------------------------


def spelled(answer: Any) -> str:
    """An answer of a data set as text: 27.0 is 27, true is yes, a list is its entries with commas; nothing is ''."""
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        return ""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    if isinstance(answer, list | tuple):
        return ", ".join(filter(None, map(spelled, answer)))
    return str(answer).strip()


def _answer(row: Any, name: str, number: int, setting: str) -> str:
    """An answer in a column as text. Raises TaskError for what is no text, number, truth value or list of these."""
    value = _column(row, [name], number, setting)
    for one in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(one, str | int | float | decimal.Decimal | None):
            raise TaskError(
                f"The {setting} of row {number} is {one!r:.60}, and text, a number, a truth value or a list of these belongs "
                f"in its column '{name}'."
            )
    return spelled(value)


def _column(row: Any, names: Sequence[str], number: int, setting: str) -> Any:
    if not isinstance(row, Mapping):
        raise TaskError(f"Row {number} is {type(row).__name__}, not a record with columns.")
    for name in names:
        if name in row:
            return row[name]
    raise TaskError(
        f"Row {number} has no column {' or '.join(map(repr, names))} for the {setting}; its columns are "
        f"{', '.join(map(str, row))}. Name the right one with task.<name>.{setting}=<column>."
    )


def _filled(prompt: str, columns: Mapping[str, Any], number: int) -> str:
    """The template filled in one pass, so that braces inside a question stay as they are."""
    unknown = [name for name in MISTAKABLE.findall(prompt) if name not in columns]
    if unknown:
        raise TaskError(
            f"The prompt {prompt!r} asks for {{{unknown[0]}}}, which row {number} does not have; its columns are "
            f"{', '.join(map(str, columns))}."
        )
    for name in {*PLACEHOLDER.findall(prompt)} & columns.keys():
        if not isinstance(columns[name], str | int | float | decimal.Decimal):
            raise TaskError(
                f"The prompt {prompt!r} asks for {{{name}}}, which is {columns[name]!r:.60} in row {number}: text or a number "
                "belongs there."
            )
    return PLACEHOLDER.sub(lambda m: str(columns[m[1]]).strip() if m[1] in columns else m[0], prompt)
