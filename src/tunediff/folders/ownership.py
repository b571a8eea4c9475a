"""owner.json of a folder that several hosts can write, made so that one process of all of them has it.

Locks of some file systems do not reach from one host to another. So owner.json is made exclusively, which one process alone can,
and whoever has it touches it every BEAT seconds. One of another host that lies there untouched for SETTLED seconds was left by a
process that was killed; until then nobody else begins. Not kept out is a process that was itself stopped for longer (SIGSTOP, a
laptop that slept): it finds the folder taken at its next `check_held`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunediff.files import opened
from tunediff.folders.manifest import read_json
from tunediff.shapes import Refused

log = logging.getLogger(__name__)

OWNER = "owner.json"
BEAT, SETTLED = 4.0, 13.0  # seconds
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # of a file system
KINDS = {"process": int, "host": str, "since": str, "born": str | None}
_touched: dict[Path, Mapping[str, Any]] = {}  # folders of this process, with what owner.json says of it
_gone: set[tuple[Any, ...]] = set()  # processes of other hosts that touch nothing any more


def owner_of(folder: Path) -> dict[str, Any]:
    """The content of owner.json; empty where it is not there or not as it was written."""
    return _owner_in(folder / OWNER)


def _owner_in(file: Path) -> dict[str, Any]:
    try:
        owner = read_json(file)
    except Refused:
        return {}
    return owner if all(isinstance(owner.get(name), kind) for name, kind in KINDS.items()) else {}


def claim(folder: Path, owner: Mapping[str, Any]) -> bool:
    """Makes owner.json and keeps it touched; False where there is one. Raises OSError."""
    made = folder / f"{OWNER}.{uuid.uuid4().hex[:8]}.partial"
    try:
        made.write_text(json.dumps(owner), encoding="utf-8")
        if not _put_first(made, folder / OWNER):
            return False
    finally:
        made.unlink(missing_ok=True)
    _touched[folder.resolve()] = owner
    _begin_to_touch()
    return True


def _put_first(made: Path, place: Path) -> bool:
    """Gives a file its name, unless there is one of that name; with all that it holds where the file system has hard links."""
    try:
        os.link(made, place)
    except FileExistsError:  # an answer of a server may be lost, and the question asked twice
        return made.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with open(place, "xb") as file:
                file.write(made.read_bytes())
        except FileExistsError:
            return False
    return True


def give_up(folder: Path, owner: Mapping[str, Any]) -> None:
    """Removes owner.json where it is still this process's, or nobody's."""
    _touched.pop(folder.resolve(), None)
    if owner_of(folder) in (owner, {}):
        (folder / OWNER).unlink(missing_ok=True)


def lives(folder: Path, owner: Mapping[str, Any]) -> bool:
    """True where owner.json is touched while it is looked at. A process that was seen to be gone once is not looked at again."""
    who, first = tuple(owner.get(name) for name in ("process", "host", "born")), _state(folder / OWNER)
    if who not in _gone:
        log.info("Looking for %g seconds whether process %s on %s still writes %s.", SETTLED, *who[:2], folder)
    until = time.monotonic() + (0.0 if who in _gone else SETTLED)
    while time.monotonic() < until:
        time.sleep(min(BEAT / 8, 0.2))
        if (now := _state(folder / OWNER)) != first:
            return now is not None
    _gone.add(who)
    return False


def clear_away(folder: Path, left: Mapping[str, Any]) -> None:
    """Removes owner.json of a process that is gone; one that came in its place meanwhile is put back."""
    away = folder / f"{OWNER}.{uuid.uuid4().hex[:8]}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder / OWNER, away)
        if _owner_in(away) not in (left, {}):
            with contextlib.suppress(OSError):
                _put_first(away, folder / OWNER)
        away.unlink()


def _state(file: Path) -> tuple[int, ...] | None:
    """Number, size and time of a file, asked of the server of its file system, which opening it does."""
    try:
        with opened(file) as content:
            found = os.fstat(content.fileno())
    except (OSError, Refused):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


_beating: list[threading.Thread] = []


def _begin_to_touch() -> None:
    if not any(thread.is_alive() for thread in _beating):
        _beating[:] = [threading.Thread(target=_touch, daemon=True, name="owner.json")]
        _beating[0].start()


def _touch() -> None:
    while True:
        time.sleep(BEAT)
        for folder, owner in list(_touched.items()):
            with contextlib.suppress(OSError):
                if owner_of(folder) == owner:
                    os.utime(folder / OWNER)
