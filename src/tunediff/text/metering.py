"""A charge to the budget of a conversation for whatever its template makes or goes over, before it is made.

Knows Python's values, and nothing of templates but the names of their filters.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

SECONDS = 10.0  # for one conversation
ROOM = 2_000_000  # characters and items that any template may make
TIMES = 50  # and as many more for each character of the conversation
BITS = 10_000  # of a whole number
# filters whose work does not grow with what is within their argument
SHALLOW = frozenset("attr count d default first items last length list map reject rejectattr select selectattr".split())


class Exceeded(SecurityError):
    """A template that takes more time or room than any needs."""


class Meter:
    """The budget of one conversation."""

    def __init__(self, room: int):
        self.room, self.until = room, time.monotonic() + SECONDS

    def check(self, much: int) -> None:
        """Raises Exceeded where so much is more than is left."""
        if much > self.room:
            raise Exceeded("it makes more text than a conversation needs")

    def charge(self, much: int) -> None:
        self.check(much)
        self.room -= much
        if time.monotonic() > self.until:
            raise Exceeded(f"it takes more than {SECONDS:g} seconds")


METER: contextvars.ContextVar[Meter] = contextvars.ContextVar("meter")


@contextlib.contextmanager
def counting(room: int) -> Iterator[None]:
    before = METER.set(Meter(room))
    try:
        yield
    finally:
        METER.reset(before)


def charge(value: Any, much: int = 1) -> Any:
    """The value, charged for; an iterator is charged item by item."""
    meter = METER.get()
    if isinstance(value, Iterator):
        return _each(value, much)
    meter.charge(much + size(value, meter.room))
    return value


def _each(items: Iterable[Any], much: int) -> Iterator[Any]:
    for item in items:
        charge(item, much)
        yield item


def size(value: Any, room: int) -> int:
    """Characters and items of a value, and of all within it as often as it is there; counting ends above `room`."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 8
    if isinstance(value, dict):
        return _sizes((part for pair in value.items() for part in pair), room)
    if isinstance(value, list | tuple | set | frozenset):
        return _sizes(value, room)
    if isinstance(value, Namespace):
        return size(object.__getattribute__(value, "_Namespace__attrs"), room)
    return 0


def _sizes(parts: Iterable[Any], room: int) -> int:
    total = 0
    for part in parts:
        total += 1 + size(part, room - total)
        if total > room:
            raise Exceeded("it makes more text than a conversation needs")
    return total


# -- what is charged before it is made -------------------------------------------------------------------------------


def foresee(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a filter or method of this name. Raises Exceeded where they ask for too much."""
    meter = METER.get()
    given = [*arguments, *named.values()]
    for one in given if name not in SHALLOW else ():
        size(one, meter.room)
    if name == "join":
        separator, items = (arguments[1] if len(arguments) > 1 else named.get("d", "")), given[0]
        items = list(items) if isinstance(items, Iterator) else items
        if hasattr(items, "__len__"):
            meter.check(size(items, meter.room) + len(items) * len(str(separator)))
        return (items, *arguments[1:])
    if name == "replace" and len(given) > 2:
        text, old, new = (str(one) for one in given[:3])
        meter.check(len(text) + text.count(old) * len(new))
    elif name == "format" and isinstance(arguments[0], str):
        check_format(arguments[0], given[1:])
    elif name == "indent":
        width = next((one for one in given[1:] if not isinstance(one, bool)), 4)
        meter.check((1 + str(arguments[0]).count("\n")) * (width if isinstance(width, int) else len(str(width))))
    elif name == "tojson":
        indent, separators = named.get("indent"), named.get("separators")
        wide = indent if isinstance(indent, int) else len(indent or "")
        each = 8 + max(wide, 0) * _depth(arguments[0]) + size(separators, meter.room)
        meter.check(size(arguments[0], meter.room) * each)
    elif name == "round" and any(isinstance(one, int) and one > 100 for one in given[1:]):
        raise Exceeded("it rounds to more than 100 digits")
    elif name == "sum" and any(not isinstance(one, int | float | str) for one in given[1:]):
        raise SecurityError("it sums what are no numbers")
    return arguments


def check_format(text: str, given: Iterable[Any]) -> None:
    meter = METER.get()
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{", text):
        raise SecurityError("it computes the width of what it writes")
    widths = sum(int(digits[:9]) for digits in re.findall(r"\d+", text))
    meter.check(len(text) + widths + (text.count("%") + text.count("{")) * size(list(given), meter.room))


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(_depth, parts), default=0)
