"""A task of a Slurm array: the work of one group, as submitit runs it.

A task may be told to go before it has begun. What is imported here is what Python has at hand, so that submitit can unpickle
the work and stand ready for the signal within moments; until it does, the signal waits.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# SIGUSR2 by itself ends a process that has no handler yet
HOLD = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); os.execv(sys.argv[1], sys.argv[1:])"


def python() -> str:
    """The command of a Python in which SIGUSR2 waits, begun by one that imports nothing before it sees to that."""
    return shlex.join([sys.executable, "-I", "-S", "-c", HOLD, sys.executable])


class Requeued(KeyboardInterrupt):
    """The signal at which a job was requeued: whoever works in it leaves as at Ctrl-C, and no evaluation is taken for one that
    ends the program."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Work:
    """The group of a folder. Requeued, it is the same work: the folder says how far it is."""

    def __init__(self, folder: str, trust: Sequence[str] = ()):
        self.folder, self.trust = folder, list(trust)

    def __call__(self) -> None:
        answered: Any = signal.getsignal(signal.SIGUSR2)  # by submitit, which requeues the job and ends the program

        def leave(number: int, frame) -> None:
            try:
                answered(number, frame)
            except SystemExit as left:
                raise Requeued(number) from left

        signal.signal(signal.SIGUSR2, leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        try:
            from tunediff.study.work import work, write_log

            write_log(Path(self.folder))
            failed = work(Path(self.folder), self.trust)
        except Requeued as left:
            sys.exit(128 + left.number)
        if failed:
            sys.exit(1)  # submitit would call a raised error COMPLETED

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Work(self.folder, self.trust))
