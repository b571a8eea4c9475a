"""Outputs and gold answers -> grades. What the rules settle costs microseconds; the rest goes to worker processes.

A worker is started with the first pair that needs algebra, has a limit on time for each output, and is replaced when it
breaks: such an output is graded `timed_out`, which is wrong but countable. It does not know which model wrote an output.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from tunediff.benchmarks import symbolic
from tunediff.benchmarks.answers import READ, Answer, read
from tunediff.benchmarks.equality import COMPARED, compare, is_word
from tunediff.benchmarks.notation import plain
from tunediff.shapes import Refused
from tunediff.text import LAYOUTS, Layout

TIMED_OUT = "timed_out"
KINDS = ("math", "boolean", "choice")
# "unfinished", "no_answer" and "timed_out" stand alone; every other rule of a Grade is "read/compared", as in "boxed/number".
RULES = READ | {f"/{name}": meaning for name, meaning in COMPARED.items()}
RULES[TIMED_OUT] = "the algebra took longer than allowed, or more memory"

STARTING = 120  # seconds for a worker to import sympy, on a busy machine


class Grade(NamedTuple):
    """`answer` is what was read from the output, None where there is none; `rule` names how it was read and
    compared."""

    correct: bool
    answer: str | None
    rule: str


class Question(NamedTuple):
    """One output to be graded, as Grader.grade takes them; plain tuples of the same order serve as well."""

    output: str
    gold: str
    kind: str = "math"
    finished: bool = True
    opened: str = ""
    layouts: Sequence[Layout] = LAYOUTS
    choices: Sequence[str] = ()


def grade(output: str, gold: str, *, tolerance: float | None = None, **asked: Any) -> Grade:
    """One output, in this process and without a limit on time: for a notebook. A Grader is for outputs nobody has
    seen. `asked` are kind, finished, opened, layouts and choices, as in Question."""
    question = _asked(Question(output, gold, **asked))
    return _graded(question, _read(question), tolerance, _here)


class Grader:
    """Grades many outputs, each with a limit on the time of its algebra.

    `seconds` are those of one output; `processes` is how many pairs are computed at a time.
    """

    def __init__(self, seconds: float = 5.0, processes: int = 2):
        if seconds <= 0 or processes < 1:
            raise Refused(
                f"A grader of {processes} processes and {seconds} seconds: ask for at least one, and for some time."
            )
        self.processes = processes
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(_Worker(seconds))

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *raised: object) -> None:
        while not self._idle.empty():
            self._idle.get().end()

    def grade(self, questions: Iterable[tuple[Any, ...]], *, tolerance: float | None = None) -> list[Grade]:
        """Grades in the order of the questions. `tolerance`: relative, for golds that were rounded."""
        asked = [_asked(Question(*question)) for question in questions]
        tried = [(question, _read(question), tolerance) for question in asked]
        settled = [_by_rules(*one) for one in tried]
        with ThreadPoolExecutor(self.processes) as threads:  # each waits for a process
            waiting = [
                threads.submit(self._by_worker, *one) for one, found in zip(tried, settled, strict=True) if not found
            ]
        rest = (future.result() for future in waiting)
        return [found or next(rest) for found in settled]

    def _by_worker(self, question: Question, answer: Answer, tolerance: float | None) -> Grade:
        worker = self._idle.get()
        try:
            worker.begin()
            return _graded(question, answer, tolerance, worker.same)
        except _TimedOut:
            worker.end()
            return Grade(False, answer.text, TIMED_OUT)
        finally:
            self._idle.put(worker)


class _NeedsAlgebra(Exception):
    pass


class _TimedOut(Exception):
    pass


def _asked(question: Question) -> Question:
    if question.kind not in KINDS:
        raise Refused(f'No answer is of the kind "{question.kind}": ask for one of {", ".join(KINDS)}.')
    gold = str(question.gold).strip()
    if not gold:
        raise Refused("A problem has no gold answer, so nothing can be graded against it: leave it out.")
    return question._replace(gold=gold)


def _read(question: Question) -> Answer:
    kind = "word" if question.kind == "math" and is_word(plain(question.gold)) else question.kind
    return read(
        question.output,
        kind=kind,
        finished=question.finished,
        opened=question.opened,
        layouts=question.layouts,
        choices=question.choices,
    )


def _graded(question: Question, answer: Answer, tolerance: float | None, algebra) -> Grade:
    if answer.text is None:
        return Grade(False, None, answer.rule)
    correct, rule = compare(answer.text, question.gold, kind=question.kind, tolerance=tolerance, symbolic=algebra)
    return Grade(correct, answer.text, f"{answer.rule}/{rule}")


def _by_rules(question: Question, answer: Answer, tolerance: float | None) -> Grade | None:
    """The grade that the rules alone give; None where algebra has to decide."""
    try:
        return _graded(question, answer, tolerance, _undecided)
    except _NeedsAlgebra:
        return None


def _undecided(answer: str, gold: str, tolerance: float | None) -> bool:
    raise _NeedsAlgebra


def _here(answer: str, gold: str, tolerance: float | None) -> bool:
    try:
        return symbolic.same(answer, gold, tolerance)
    except Exception:  # sympy raises whatever it likes; what it cannot read is not equal
        return False


class _Worker:
    """A process of symbolic.py and the time left for the output in hand. A script of its own imports neither the
    caller's main module nor torch, and inherits no threads."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.process: subprocess.Popen | None = None
        self.deadline = 0.0

    def begin(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.end()
            script = [sys.executable, "-P", str(Path(symbolic.__file__)), str(self.seconds)]
            self.process = subprocess.Popen(
                script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            if self._line(STARTING) != b"ready":
                self.end()
                raise Refused(f"A process that compares formulas did not start: try `{' '.join(script)}` in a shell.")
        self.deadline = time.monotonic() + self.seconds

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process and self.process.stdin and self.process.stdout
        return self.process.stdin, self.process.stdout

    def same(self, answer: str, gold: str, tolerance: float | None) -> bool:
        try:
            self._pipes[0].write(json.dumps([answer, gold, tolerance]).encode() + b"\n")
        except BrokenPipeError:
            raise _TimedOut from None
        verdict = json.loads(self._line(self.deadline - time.monotonic()) or "null")
        if verdict is None:
            raise _TimedOut
        return verdict

    def _line(self, seconds: float) -> bytes:
        """The next line of its output; empty where the time is up or the process is gone."""
        line, until, output = b"", time.monotonic() + seconds, self._pipes[1]
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([output], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(output.fileno(), 4096) if ready else b""
            if not piece:
                return b""
            line += piece
        return line.strip()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in self._pipes:
                pipe.close()
            self.process = None
