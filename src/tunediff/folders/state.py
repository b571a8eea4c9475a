"""A run folder: who holds it, and how far its run is."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from tunediff.folders.manifest import MANIFEST, as_written, read_json, write_atomically, write_sealed
from tunediff.folders.ownership import claim, clear_away, give_up, lives, owner_of
from tunediff.shapes import Refused

log = logging.getLogger(__name__)

FINISHED, FAILED, RUNNING, EVALUATING, WAITING = "finished", "failed", "training", "evaluating", "waiting"
INTERRUPTED, CANCELLED = "interrupted", "cancelled"
LOGS = {".hydra", "run.log", "evaluate.log", "multirun.yaml"}  # laid down before any line of a study is run
SOFT = "lock.soft"
SAID = {"config.yaml", "identity.json", "state.json", "lock", SOFT, "owner.json", MANIFEST}  # of a run before it begins


def refuse_links(folder: Path) -> None:
    """Raises Refused for a run folder in which something leads to another place: what is written there would be written
    elsewhere. The log of its job may."""
    found = (
        [path for path in folder.iterdir() if path.is_symlink() or path.name not in OF_LOGGERS]
        if folder.is_dir()
        else []
    )
    for path in (path for top in found for path in (top, *top.rglob("*"))):
        if path.is_symlink() and path.name != "job.log" and not path.resolve().is_relative_to(folder.resolve()):
            raise Refused(
                f"{path} is a link to {os.readlink(path)}, and nothing is written through one: copy the folder whole."
            )


OF_LOGGERS = ("wandb", "tensorboard", "csv")  # which link as they like, and are not written once a run has ended
_made: list[Path] = []  # folders that this process made, the innermost last


def make_folder(path: Path) -> Path:
    """Raises Refused where it cannot be made or written to."""
    missing = [place for place in (path.resolve(), *path.resolve().parents) if not place.exists()]
    _made.extend(reversed(missing))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_made(path)
        raise Refused(
            f"Cannot make the folder {path}: {error.strerror}. Choose another place or ask for permission."
        ) from error
    if not os.access(path, os.W_OK):
        raise Refused(f"No permission to write in {path}. Choose another place or ask for permission.")
    return path


def remove_made(folder: Path) -> None:
    """Removes a folder and those around it that were made for it by this process, from the inside, as far as they are empty
    but for Hydra's list of a sweep."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if place not in _made:
            return
        with contextlib.suppress(OSError):
            if {path.name for path in place.iterdir()} - {"multirun.yaml"}:
                return
            shutil.rmtree(place)


@contextlib.contextmanager
def unless_refused(folder: Path) -> Iterator[None]:
    """Context in which what is refused before anything was trained leaves no folder that looks like a run: what Hydra
    laid there and what was said of the run go, and the folders that were made for it. A folder in which anything else stood
    before, or stands after, is left as it is."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    try:
        yield
    except Refused:
        left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        stands_here = Path.cwd().is_relative_to(folder.resolve())
        began = "step" in read_json(folder / "state.json")
        if left <= LOGS | SAID and found <= LOGS and not began and folder.is_dir() and not stands_here:
            shutil.rmtree(folder)
            remove_made(folder.resolve().parent)
        raise


WAIT = 2.0  # seconds for a lock: who only asks whether a folder is held, holds it for a moment
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # of a file system, or its server
_mine: dict[Path, dict[str, Any]] = {}  # folders that this process holds, with what owner.json says of it


class Taken(Refused):
    """Raised where another process writes the folder that this one held: nothing more is written there."""


@contextlib.contextmanager
def locked(folder: Path, *, seconds: float = -1) -> Iterator[filelock.BaseFileLock]:
    """Context with the lock of a folder, which is waited for so long, or without end. Where the file system has no locks a
    file stands for it that one process alone can make, and that one which is killed leaves behind. Raises filelock.Timeout, and
    Refused for a lock that is no file."""
    for place in (folder / "lock", folder / "owner.json"):
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise Refused(
                f"{place} is a link, a folder or a pipe where a file belongs that says who writes here: remove it."
            )
    lock: filelock.BaseFileLock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=seconds)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        lock = filelock.SoftFileLock(folder / SOFT)
        lock.acquire(timeout=seconds)
    try:
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Context in which no other process writes this folder, on this machine or another that shares the file system.
    Raises Refused, saying who does.

    A lock may be lost: its file removed, or a server of the file system that keeps none. So a living process that owner.json
    names counts as well, of this machine by its number, of another by its touch (ownership.py), and whoever holds the folder
    compares owner.json as it goes (`check_held`)."""
    home = folder.resolve()
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(folder, seconds=WAIT))
        except filelock.Timeout as error:
            raise Refused(f"{what} {folder} is being written by {_owner_in_words(folder)}") from error
        soft = isinstance(lock, filelock.SoftFileLock)  # which keeps other hosts out as well
        if soft:
            log.warning("The file system of %s has no locks: %s keeps other processes out instead.", folder, SOFT)
        process = os.getpid()
        owner = {"process": process, "host": socket.gethostname(), "since": clock(), "born": born(process)}
        begun = time.monotonic()
        while not claim(folder, owner):
            left = owner_of(folder)
            if _is_owned(folder):  # one that ends lets go of its lock a moment before it is gone
                if time.monotonic() - begun > WAIT:
                    raise Refused(
                        f"{what} {folder} is being written by {_owner_in_words(folder)} Its lock was removed."
                    )
                time.sleep(0.05)
            elif not soft and left.get("host", owner["host"]) != owner["host"] and lives(folder, left):
                raise Refused(
                    f"{what} {folder} is being written by {_owner_in_words(folder)} Locks do not reach that far."
                )
            else:
                clear_away(folder, left)
        _mine[home] = owner
        try:
            yield
        finally:
            del _mine[home]
            give_up(folder, owner)


def check_held(folder: Path) -> None:
    """Raises Taken where this process held the folder, or one above it, and another process took it, which a lost lock allows."""
    here = folder.resolve()
    home = next((place for place in (here, *here.parents) if place in _mine), None)
    if home is None or (owner := owner_of(home)) == _mine[home]:
        return
    if owner:
        raise Taken(
            f"{home} is written by {_owner_in_words(home)} It was this process's own, and its lock was lost or removed: this "
            "one stops and leaves the folder to that one."
        )
    if not claim(home, _mine[home]) and not owner_of(home):  # it was removed, and nobody came, or it says nothing
        write_atomically(home / "owner.json", json.dumps(_mine[home]))


def _owner_in_words(folder: Path) -> str:
    owner = owner_of(folder)
    who = "another process."
    with contextlib.suppress(LookupError):
        who = f"process {owner['process']} on {owner['host']}, since {owner['since']}."
    if (folder / SOFT).exists():
        who += f" The file system has no locks: if that process has ended, remove {folder / SOFT}."
    return who


def _is_owned(folder: Path) -> bool:
    """True where owner.json names a process of this machine that lives."""
    owner = owner_of(folder)
    there, process = owner.get("born"), owner.get("process")
    return there is not None and owner.get("host") == socket.gethostname() and born(process) == there


def born(process: Any) -> str | None:
    """Boot of this machine and ticks from there to the start of a process, which no later one of its number shares; None where
    no such process lives, or the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        said = (
            Path(f"/proc/{int(process)}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if said[0] in "ZX" else f"{boot} {said[19]}"
    except (OSError, LookupError, ValueError, TypeError, OverflowError):
        return None


def is_held(folder: Path) -> bool:
    """True while a living process writes this folder."""
    if (folder / "lock").exists():
        try:
            with locked(folder, seconds=0):
                pass
        except filelock.Timeout:
            return True
    return _is_owned(folder)


def clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


# -- how far a run is ------------------------------------------------------------------------------------------------


# the types of what state.json says
SAYS = {name: str for name in ("state", "identity", "error", "log", "job", "started", "updated")}
SAYS |= {"step": int, "steps": int, "value": int | float}


def read_state(folder: Path) -> dict[str, Any]:
    """state.json as it was written last. Raises Refused where it says nothing that a run says."""
    path = folder / "state.json"
    state = read_json(path)
    with as_written(path):
        if state and not {"state", "identity"} & state.keys():
            raise ValueError("it says nothing of a run")
        for name, value in state.items():
            if value is not None and not isinstance(value, SAYS.get(name, object)):
                raise ValueError(f"its {name} is of type {type(value).__name__}")
    return state


def state_of(folder: Path) -> dict[str, Any]:
    """state.json. A run that says it is being trained, but that nobody holds, was interrupted."""
    state = read_state(folder)
    if state.get("state") in (RUNNING, EVALUATING) and not is_held(folder):
        state["state"] = INTERRUPTED
    return state


def say(folder: Path, **changes: Any) -> None:
    """Changes entries of state.json; None removes one."""
    state = {**read_state(folder), **changes, "updated": clock()}
    write_sealed(folder / "state.json", {key: value for key, value in state.items() if value is not None})


def note_end(folder: Path, ending: str) -> None:
    """The process of a run ended, in these words: one that was killed could not say so itself."""
    if state_of(folder).get("state") not in (FINISHED, FAILED):
        say(folder, state=INTERRUPTED, error=ending)


def is_finished(folder: Path, identity: str) -> bool:
    """True where this very run ended well here; its folder's name says nothing."""
    state = read_state(folder)
    return state.get("state") == FINISHED and state.get("identity") == identity
