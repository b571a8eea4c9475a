"""The outcome of one case: what is done to it in time, and what it may not do meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunediff.shapes import Refused

BAD = ("traceback", "hang", "silent", "ran code")


class Hang(BaseException):
    """The case took longer than it may."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Context that ends in Hang after so many seconds."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """Notes every process that is started, every address that is called and every file that is written outside of `inside`,
    by Python's own audit events (PEP 578); a hook stays, so there is one for a process."""

    def __init__(self, inside: Path):
        self.inside, self.seen, self.on = str(inside.resolve()), [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "os.fork"):
            self.seen.append(f"{event} {given[0]!r:.60}")
        if event == "open" and isinstance(given[0], str) and isinstance(given[1], str) and set(given[1]) & set("wax+"):
            place = os.path.abspath(given[0])
            if not place.startswith((self.inside, "/dev/")):
                self.seen.append(f"writes {place:.80}")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False


def outcome(case: Callable[[], Any], *, seconds: int = 30, watch: Watch | None = None) -> tuple[str, str]:
    """The outcome of a case and its sentence: refused, done, traceback, hang, or ran code."""
    with watch.listening() if watch else contextlib.nullcontext():
        try:
            with limited(seconds):
                case()
            said = "done", ""
        except Refused as refusal:
            said = "refused", str(refusal)
        except Hang:
            said = "hang", f"longer than {seconds} s"
        except SystemExit as left:
            said = ("refused", "") if left.code == 2 else ("traceback", f"exit {left.code}")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = (
                "traceback",
                f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})",
            )
    if watch and watch.seen:
        return "ran code", "; ".join(watch.seen[:3])
    return said


def table(cases: Iterable[dict], *, shown: int = 10) -> int:
    """Prints how many cases had each outcome and the first bad ones; the number of bad ones."""
    counts: Counter[str] = Counter()
    bad = []
    for case in cases:
        counts[case["outcome"]] += 1
        if case["outcome"] in BAD:
            bad.append(case)
            print(f"  {case['outcome']}: {case['case']!s:.200} | {case['said']:.200}", flush=True) if len(
                bad
            ) <= shown else None
    print(f"{sum(counts.values()):,} cases: " + ", ".join(f"{count:,} {name}" for name, count in counts.most_common()))
    return len(bad)
