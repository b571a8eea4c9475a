"""One group in one process: python -m tunediff.study.work <folder of a group, or of a run>

The process may stand anywhere: a child of the launcher, a rank of torchrun, a task of a Slurm array. All it needs is
in the folder. It ends with status 1 when a member failed, so that whoever started it knows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tunediff import folders, processes
from tunediff.shapes import Refused
from tunediff.study.faults import check_open_files, in_words, unwritten
from tunediff.study.parts import read_config
from tunediff.study.run import Run
from tunediff.study.train import train
from tunediff.study.trainer import say_interrupted
from tunediff.terminal import guard
from tunediff.training import latest_checkpoint, names_in

log = logging.getLogger(__name__)


def rank_here() -> int:
    """The rank of this process, before torch.distributed knows it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def work(folder: Path, trust: Sequence[str] = ()) -> int:
    """Trains the group; returns how many of its members failed. `trust` is the launcher's."""
    content = folders.read_json(folder / "group.json") or {"members": [folder], "resume_from": None}
    with folders.as_written(folder / "group.json"):
        resume_from = Path(content["resume_from"]) if content["resume_from"] else None
        places = [Path(place) for place in content["members"]]
    saved = latest_checkpoint(folder / "checkpoints") or (resume_from if resume_from and resume_from.exists() else None)
    known = None if saved is None else names_in(saved)
    runs, failed = [], 0
    try:
        if len(places) > 1:
            check_open_files(
                f"{len(places)} members in one process",
                len(places),
                "give each a process of its own (launcher.pack=false)",
            )
    except Refused as refusal:
        for place in places if rank_here() == 0 else ():
            note_failure(place, refusal)
        log.error("failed: %s", refusal)
        return len(places)
    with contextlib.ExitStack() as locks:
        for place in places:
            try:
                run = read_run(place, trust)
                if folders.is_finished(place, run.identity):
                    continue
            except Exception as error:  # the others go on
                log.error("failed: %s: %s", place, error)
                note_failure(place, error)
                failed += 1
                continue
            if known is not None and run.identity not in known:
                failed += 1  # before this process was requeued; typed again, the line gives it a group of its own
                continue
            if rank_here() == 0:
                try:
                    locks.enter_context(folders.held(place, "The run"))
                except Refused as refusal:
                    log.warning("left out: %s", refusal)
                    continue
                except OSError as error:
                    log.error("failed: %s: %s", place, error)
                    note_failure(place, in_words(error))
                    failed += 1
                    continue
                log_path = os.path.relpath(folder / "run.log", place)
                now = folders.clock()
                by = {"job": job_here(), "launcher": os.environ.get(processes.LAUNCHER)}
                folders.say(place, state=folders.RUNNING, started=now, log=log_path, error=None, **by)
            runs.append(run)
        try:
            if runs:
                train(runs, folder / "checkpoints", resume_from=saved)
        except (KeyboardInterrupt, SystemExit) as left:
            for run in runs if rank_here() == 0 else ():
                say_interrupted(run.folder, left)
            raise
        except Exception as error:  # of the group: every member that has not ended shares it
            if not isinstance(in_words(error), Refused):
                log.error("%s", traceback.format_exc())
            for run in runs:
                if run.error is None and not folders.is_finished(run.folder, run.identity):
                    run.fail(error)
    for run in runs:
        if run.error is not None:
            log.error("failed: %s: %s", run.folder, run.error)
            failed += 1
    return failed


def read_run(place: Path, trust: Sequence[str] = ()) -> Run:
    """The run of a folder. Raises Refused where its config cannot be read or is not the one that the folder stands for."""
    try:
        run = Run(read_config(place, trust), place)
        folders.read_json(place / "state.json")
        meant = folders.read_json(place / "identity.json").get("identity")
    except Refused:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise Refused(f"{place} cannot be read: {said}. Remove it and type the same line again.") from error
    if meant not in (None, run.identity):
        raise Refused(
            f"{place / 'config.yaml'} is of run {run.identity}, and the folder is of run {meant}: it was changed. Remove the "
            "folder and type the same line again."
        )
    return run


def note_failure(place: Path, error: Exception) -> None:
    """Writes into the state of a run, which may itself be what cannot be read, that it failed, as far as its folder can be
    written. One that is finished stays so."""
    said = {"state": folders.FAILED, "error": str(error)}
    with unwritten(place):
        try:
            if folders.read_state(place).get("state") != folders.FINISHED:
                folders.say(place, **said)
        except ValueError:
            (place / "state.json").unlink(missing_ok=True)
            folders.say(place, **said)


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


if __name__ == "__main__":
    processes.end_with_launcher()
    trusted = [word.removeprefix("--trust=") for word in sys.argv[2:] if word.startswith("--trust=")]
    with processes.answering():
        write_log(Path(sys.argv[1]))
        try:
            failed = work(Path(sys.argv[1]), trusted)
        except KeyboardInterrupt as left:
            sys.exit(processes.status_of(left))
    sys.exit(1 if failed else 0)
