"""Text that came with data -> what a terminal shows of it and does not obey: escape sequences, line ends that go back over a
line, marks that turn the direction of writing.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import tqdm

# control characters but tab and line feed; marks of direction; separators of lines; halves of surrogate pairs
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with each character that a terminal would obey written as a string of Python has it, such as \\x1b."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Record(logging.LogRecord):
    """A line of a log: what its arguments hold is shown."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def guard() -> None:
    """Makes whatever this process logs from here on, and an error that ends it, printable. A log that cannot be written, as
    on a full disk, is no reason for more lines, and the time that bars tell is not that of a clock which may be set."""
    tqdm.std.time = tqdm._monitor.time = time.monotonic  # type: ignore[attr-defined]
    logging.raiseExceptions = False
    logging.setLogRecordFactory(Record)
    sys.excepthook, threading.excepthook = _ended, _thread_ended


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Context, and decorator, out of which errors come with printable words, whoever reports them."""
    try:
        yield
    except Exception as error:
        each: BaseException | None = error
        seen: list[BaseException] = []  # a chain may come back to where it began
        while each is not None and each not in seen:
            seen.append(each)
            each.args = tuple(printable(word) if isinstance(word, str) else word for word in each.args)
            each = each.__cause__ or each.__context__
        raise


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    import traceback

    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """A library's thread that could not write is said in a line: whoever waits for it is told as well."""
    if isinstance(ended.exc_value, OSError):
        sys.stderr.write(printable(f"{ended.thread.name if ended.thread else 'a thread'}: {ended.exc_value}\n"))
    else:
        threading.__excepthook__(ended)
