"""Rows that cannot be read -> a refusal that names the place of the first, or a count of those that are left out.

What is wrong with a row is said by whoever reads it, as a TextError; here it gets its place. Knows no column.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tunediff.text.rows import BadRow, Placed, TextError

log = logging.getLogger(__name__)

BAD_ROWS = ("refuse", "skip")
HOPELESS = 1_000  # bad rows before any good one, behind which no further is looked at

Made = TypeVar("Made")


class Hopeless(TextError):
    """A text that is not read on, whatever reads it."""


class Soundness:
    """The rows of a text that were found bad, and what becomes of them.

    policy   refuse, or skip: they are left out and counted
    begun    true once a training reads, whose text was looked at: what is bad is left out under either policy, so that no
             hours of it end at a row
    """

    def __init__(self, policy: str):
        if policy not in BAD_ROWS:
            raise TextError(f"text.bad_rows={policy}: choose {', '.join(BAD_ROWS)}.")
        self.policy, self.begun = policy, False
        self._places: set[str] = set()
        self._first, self._met_good = "", False

    def bad(self, error: TextError, place: str) -> None:
        """Counts a row, once for each place. Raises Hopeless where bad rows are refused, and where there was no good one
        among the first HOPELESS."""
        if isinstance(error, Hopeless):
            raise error
        said = _with_place(error, place)
        if self.policy == "refuse" and not self.begun:
            raise Hopeless(f"{said} Or leave such rows out and count them: text.bad_rows=skip.") from error
        if place in self._places:
            return
        self._places.add(place)
        if not self._first:
            self._first = said
            log.warning("left out, as any such row that follows: %s", said)
        if len(self._places) >= HOPELESS and not self._met_good:
            raise Hopeless(f"None of the first {HOPELESS:,} rows can be read. {self._first}") from error

    def good(self) -> None:
        """One row was read to its end."""
        self._met_good = True

    def told(self) -> list[str]:
        """A sentence with the number of rows that were left out so far; none where there are none."""
        if not self._places:
            return []
        one = len(self._places) == 1
        rows = "1 row that cannot be read was" if one else f"{len(self._places):,} rows that cannot be read were"
        return [f"{rows} left out (text.bad_rows={self.policy}). {'It' if one else 'The first'}: {self._first}"]

    def each(self, rows: Iterable[Mapping[str, Any]], read: Callable[[Any], Made]) -> Iterator[tuple[Any, Made]]:
        """Rows with what is read of each, without those of which it cannot be."""
        for row in rows:
            try:
                made = read(row)
            except TextError as error:
                self.bad(error, place_of(row))
                continue
            self.good()
            yield row, made

    def through(
        self,
        rows: Iterable[Any],
        steps: Iterable[Callable[[Iterable[Any]], Iterable[Any]]],
    ) -> Iterator[Placed]:
        """Rows through the steps, each with its place. Behind a row that a step refuses the steps begin anew."""
        steps, source = list(steps), Source(rows, self)
        while True:
            prepared: Iterable[Any] = source
            for step in steps:
                prepared = step(prepared)
            try:
                for row in prepared:
                    if not isinstance(row, Mapping):
                        raise TextError(
                            f"A row is {row!r:.60} behind text.prepare, and a row with columns belongs there."
                        )
                    yield Placed(row, source.place)
                return
            except TextError as error:
                self.bad(error, source.place)


class Source(Iterator[Mapping[str, Any]]):
    """The rows of a data set, of which `place` names the last that was given."""

    def __init__(self, rows: Iterable[Any], soundness: Soundness):
        self._rows, self._soundness = iter(rows), soundness
        self._number, self.place = 0, "The first row"

    def __next__(self) -> Mapping[str, Any]:
        while True:
            self._number += 1
            try:
                row = next(self._rows)
            except BadRow as error:
                self._soundness.bad(error, error.place)
                continue
            except TextError as error:  # of a file as a whole
                raise Hopeless(str(error)) from error
            self.place = place_of(row, f"Row {self._number:,} of the text")
            if isinstance(row, Mapping):
                return row
            self._soundness.bad(
                TextError(f"A row is {row!r:.60}, and an object with columns belongs there."), self.place
            )


def place_of(row: Any, otherwise: str = "A row of the text") -> str:
    return getattr(row, "place", otherwise)


def _with_place(error: TextError, place: str) -> str:
    """The sentence of an error, which begins with the place of the row."""
    said = str(error)
    if isinstance(error, BadRow) or said.startswith(place):
        return said
    return f"{place}: {said[0].lower()}{said[1:]}"
