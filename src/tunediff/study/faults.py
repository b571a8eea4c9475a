"""Faults of the machine rather than of a study: a full disk, a used-up quota, a folder that is read only, too many open files,
no memory left. Each is said in a sentence, and the same line goes on once it is mended.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from tunediff.settings import unset
from tunediff.shapes import Stopped
from tunediff.training.memory import is_of_memory

log = logging.getLogger(__name__)

GOES_ON = "Then the same line goes on from what was saved."
CURES = {
    errno.ENOSPC: "Free some of it.",
    errno.EDQUOT: "Free some of it, or ask for more.",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f).",
    errno.EROFS: "Choose another folder, or have it mounted for writing.",
    errno.EACCES: "Choose another folder, or ask for permission.",
    errno.EPERM: "Choose another folder, or ask for permission.",
    errno.EMFILE: "Raise the limit (ulimit -n 4096).",
    errno.ENFILE: "Raise the limit (ulimit -n 4096).",
    errno.EIO: "Is the disk, or the server of the file system, in order?",
    errno.ESTALE: "Is the server of the file system in order?",
}
# Rust's, pyarrow's and Python's own spelling of a number of the system's
NUMBER = re.compile(r"(?:os error|errno|code:) ?(\d+)", re.IGNORECASE)
SHARED = "Give the container more (docker run --shm-size=1g), or set NCCL_SHM_DISABLE=1."
LESS = "Let fewer members share a device (launcher.pack=false), lower activations.buffer, logits_mb or optimizer.batch."


FILES = 24  # that a process has open, beside the locks of its members or the pipes to others


def check_open_files(what: str, more: int, instead: str) -> None:
    """Raises Stopped where a process may not have so many more files open than any; `instead` is another way than a higher
    limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit not in (resource.RLIM_INFINITY, -1) and limit < FILES + more:
        raise Stopped(
            f"{what} have up to {FILES + more} files open, and the limit is {limit}. Raise the limit (ulimit -n 4096), or {instead}. "
            "Then type the same line again."
        )


def number_of(error: BaseException) -> int | None:
    """The system's number of an error that a file could not be written with; None for another error."""
    if isinstance(error, OSError) and error.errno in CURES:
        return error.errno
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # which has no number of its own
        found = [int(number) for number in NUMBER.findall(str(error))]
        return next((number for number in found if number in CURES), None)
    return None


def in_words(error: Exception) -> Exception:
    """The sentence for a fault of the machine, as Stopped, and for a setting that is not there, as Refused; any other error as it
    is."""
    if isinstance(error, Stopped):
        return error
    if (refused := unset(error)) is not None:
        refused.__cause__ = error
        return refused
    if is_of_memory(error):
        said = f"Memory ran out. {LESS} Then type the same line again."
    elif isinstance(error, RuntimeError) and "/dev/shm" in str(error):  # of NCCL, the one that uses it
        said = f"The shared memory in /dev/shm is too small for processes that train together. {SHARED} {GOES_ON}"
    elif (number := number_of(error)) is not None:
        place = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        said = f"{os.strerror(number)}{place}. {CURES[number]} {GOES_ON}"
    else:
        return error
    stopped = Stopped(said)
    stopped.__cause__ = error
    return stopped


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Context, and decorator, that raises Stopped for a fault of the machine, and Refused for a setting that is not there."""
    try:
        yield
    except Exception as error:
        if (stopped := in_words(error)) is not error:
            raise stopped from error
        raise


@contextlib.contextmanager
def unwritten(folder: Path) -> Iterator[None]:
    """Context in which what cannot be written in a folder costs itself alone."""
    try:
        yield
    except OSError as error:
        log.warning("not written in %s: %s", folder, error)
