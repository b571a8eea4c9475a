"""One group in one process: python -m tunediff.study.work <folder of a group, or of a run>

The process may stand anywhere: a child of the launcher, a rank of torchrun, a task of a Slurm array. All it needs is
in the folder. It ends with status 1 when a member failed, so that whoever started it knows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from tunediff import folders
from tunediff.shapes import Refused
from tunediff.study.parts import read_config
from tunediff.study.run import Run
from tunediff.study.train import train
from tunediff.terminal import guard
from tunediff.training import latest_checkpoint, names_in

log = logging.getLogger(__name__)


def rank_here() -> int:
    """The rank of this process, before torch.distributed knows it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


class Work:
    """The group of a folder, as submitit runs it. Requeued, it is the same work: the folder says how far it is."""

    def __init__(self, folder: str, trust: Sequence[str] = ()):
        self.folder, self.trust = folder, list(trust)

    def __call__(self) -> None:
        write_log(Path(self.folder))
        if work(Path(self.folder), self.trust):
            sys.exit(1)  # submitit would call a raised error COMPLETED

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(Work(self.folder, self.trust))


def work(folder: Path, trust: Sequence[str] = ()) -> int:
    """Trains the group; returns how many of its members failed. `trust` is the launcher's."""
    content = folders.read_json(folder / "group.json") or {"members": [folder], "resume_from": None}
    with folders.as_written(folder / "group.json"):
        resume_from = Path(content["resume_from"]) if content["resume_from"] else None
        places = [Path(place) for place in content["members"]]
    saved = latest_checkpoint(folder / "checkpoints") or (resume_from if resume_from and resume_from.exists() else None)
    runs, failed = [], 0
    with contextlib.ExitStack() as locks:
        for place in places:
            run = Run(read_config(place, trust), place)
            if folders.is_finished(place, run.identity):
                continue
            if saved is not None and run.identity not in names_in(saved):
                failed += 1  # before this process was requeued; typed again, the line gives it a group of its own
                continue
            if rank_here() == 0:
                try:
                    locks.enter_context(folders.held(place, "The run"))
                except Refused as refusal:
                    log.warning("left out: %s", refusal)
                    continue
                log_path = os.path.relpath(folder / "run.log", place)
                now = folders.clock()
                folders.say(place, state=folders.RUNNING, started=now, log=log_path, job=job_here(), error=None)
            runs.append(run)
        try:
            if runs:
                train(runs, folder / "checkpoints", resume_from=saved)
        except Exception as error:  # of the group: every member that has not ended shares it
            if not isinstance(error, Refused):
                log.error("%s", traceback.format_exc())
            for run in runs:
                if run.error is None and not folders.is_finished(run.folder, run.identity):
                    run.fail(error)
    for run in runs:
        if run.error is not None:
            log.error("failed: %s: %s", run.folder, run.error)
            failed += 1
    return failed


def job_here() -> str | None:
    """The Slurm job that this process belongs to, as squeue spells it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def write_log(folder: Path) -> None:
    """Sets up logging to the terminal and to the group's run.log; other ranks log warnings only."""
    guard()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if rank_here() == 0:
        handlers.append(logging.FileHandler(folder / "run.log"))
    logging.basicConfig(
        level=logging.INFO if rank_here() == 0 else logging.WARNING, format="%(message)s", handlers=handlers, force=True
    )


def end_with_parent() -> None:
    """Ends this process with its parent, so that a launcher that was killed leaves no child to meet when it is restarted."""

    def watch() -> None:
        while os.read(0, 1):  # empty once the other end is gone
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if "--with-parent" in sys.argv:
        end_with_parent()
    write_log(Path(sys.argv[1]))
    trusted = [word.removeprefix("--trust=") for word in sys.argv[2:] if word.startswith("--trust=")]
    sys.exit(1 if work(Path(sys.argv[1]), trusted) else 0)
