"""Faults of the machine rather than of a study: a full disk, a used-up quota, a folder that is read only, too many open files,
no memory left. Each is said in a sentence, and the same line goes on once it is mended.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tunediff.settings import unset
from tunediff.shapes import Stopped

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
LESS = "Let fewer members share a device (launcher.pack=false), lower activations.buffer, logits_mb or optimizer.batch."


def number_of(error: BaseException) -> int | None:
    """The system's number of an error that a file could not be written with; None for another error."""
    if isinstance(error, OSError) and error.errno in CURES:
        return error.errno
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # which has no number of its own
        found = [int(number) for number in NUMBER.findall(str(error))]
        return next((number for number in found if number in CURES), None)
    return None


def is_of_memory(error: BaseException) -> bool:
    """True where memory ran out, the device's or the machine's."""
    said = "can't allocate memory" in str(error) or "not enough memory" in str(error)  # torch's, on the CPU
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


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
