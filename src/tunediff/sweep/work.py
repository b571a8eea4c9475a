"""One group in one process: python -m tunediff.sweep.work <group folder>

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
from pathlib import Path

from tunediff import folders
from tunediff.run import Run, read_config, train
from tunediff.shapes import Refused

log = logging.getLogger(__name__)


def rank_here() -> int:
    """Before torch.distributed knows."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


class Work:
    """The group of a folder, as submitit runs it. Requeued, it is the same work: the folder says how far it is."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self) -> None:
        if work(Path(self.folder)):
            sys.exit(1)  # submitit would call a raised error COMPLETED

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(Work(self.folder))


def work(folder: Path) -> int:
    """Trains the group; returns how many of its members failed."""
    content = folders.read_json(folder / "group.json")
    write_log(folder)
    runs = []
    with contextlib.ExitStack() as locks:
        for place in map(Path, content["members"]):
            run = Run(read_config(place), place)
            try:
                if rank_here() == 0:
                    locks.enter_context(folders.held(place, "The run"))
            except Refused as refusal:
                log.warning("left out: %s", refusal)
                continue
            if not folders.is_finished(place, run.identity):
                runs.append(run)
                if rank_here() == 0:
                    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
                    task = os.environ.get("SLURM_ARRAY_TASK_ID")
                    job = f"{job}_{task}" if job and task else job
                    folders.say(
                        place,
                        state=folders.RUNNING,
                        started=folders.clock(),
                        log=os.path.relpath(folder / "run.log", place),
                        job=job,
                        error=None,
                    )
        try:
            if runs:
                resume_from = content["resume_from"]
                resume_from = Path(resume_from) if resume_from and Path(resume_from).exists() else None
                train(runs, folder / "checkpoints", resume_from=resume_from)
        except Exception as error:  # of the group: every member that has not ended shares it
            if not isinstance(error, Refused):
                log.error("%s", traceback.format_exc())
            for run in runs:
                if run.error is None and not folders.is_finished(run.folder, run.identity):
                    run.fail(error)
    failed = [run for run in runs if run.error is not None]
    for run in failed:
        log.error("failed: %s: %s", run.folder, run.error)
    return len(failed)


def write_log(folder: Path) -> None:
    """Lines to the terminal and to the group's run.log; other ranks only speak of trouble."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if rank_here() == 0:
        handlers.append(logging.FileHandler(folder / "run.log"))
    logging.basicConfig(
        level=logging.INFO if rank_here() == 0 else logging.WARNING, format="%(message)s", handlers=handlers, force=True
    )


def end_with_parent() -> None:
    """Nobody wants the result of a launcher that was killed, and whoever starts it again must not meet its child."""

    def watch() -> None:
        while os.read(0, 1):  # empty once the other end is gone
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if "--with-parent" in sys.argv:
        end_with_parent()
    sys.exit(1 if work(Path(sys.argv[1])) else 0)
