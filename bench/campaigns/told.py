"""The outcome of one case: what is done to it in time, and what it may not do meanwhile."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunediff.shapes import Refused

logging.getLogger().addHandler(logging.NullHandler())  # what is logged of a case is in its sentence
BAD = ("traceback", "hang", "silent", "lost", "ran code")


class Hang(BaseException):
    """The case took longer than it may."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Context that ends in Hang after so many seconds."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
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


def told(found: Iterable[dict[str, Any]], *, shown: int = 10) -> int:
    """Prints the number of cases of each kind and outcome, and the first bad ones; returns how many are bad. A case has `done`,
    which begins with its kind and a colon, `outcome` and `sentence`."""
    counts: Counter[tuple[str, str]] = Counter()
    bad = []
    for case in found:
        counts[case["done"].partition(":")[0], case["outcome"]] += 1
        if case["outcome"] in BAD:
            bad.append(case)
    print("| kind | outcome | cases |\n|---|---|---|")
    for (kind, became), count in sorted(counts.items()):
        print(f"| {kind} | {became} | {count:,} |")
    print(f"\n{counts.total():,} cases, {len(bad)} bad")
    for case in bad[:shown]:
        print(f"{case['outcome']}: {case['done'][:300]!r}: {case['sentence'][:300]!r}")
    return len(bad)


def main(cases: Callable[[int, int], Iterable[dict[str, Any]]], doc: str, *, count: int) -> None:
    """The command line of a campaign: --count cases of the draws of --seed; status 1 where one is bad."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.exit(1 if told(cases(asked.count, asked.seed)) else 0)
