"""Labels that a row brings with it, by whoever annotated it -> spans of the rendered text.

spans    (field, first character, one past the last, label) of what a field holds
pieces   {label, text} of the thinking in order, each looked for word for word
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from tunediff.text.rows import HALF, TextError

LONGEST_LABEL = 200  # characters
FIELDS = ("prompt", "thinking", "answer", "text")  # that a span can lie in
SPAN = f"[field, first character, one past the last, label], with a field of {', '.join(FIELDS)}"
PIECE = "{label, text}, each a string or null"


def refuse_rotten_labels(row: Mapping[str, Any]) -> None:
    """Raises TextError for spans and pieces that are none of theirs."""
    for span in _listed(row, "spans", SPAN):
        if not isinstance(span, Sequence) or isinstance(span, str) or len(span) != 4:
            _refuse("spans", span, SPAN)
        field, first, last, label = span
        if field not in FIELDS or type(first) is not int or type(last) is not int or not isinstance(label, str):
            _refuse("spans", span, SPAN)
        _refuse_half(label, "spans")
        if not 0 <= first <= last:
            _refuse("spans", span, f"{SPAN}, that begins at 0 or later and ends behind its beginning")
    for piece in _listed(row, "pieces", PIECE):
        if not isinstance(piece, Mapping) or not all(
            isinstance(piece.get(key) or "", str) for key in ("label", "text")
        ):
            _refuse("pieces", piece, PIECE)
        _refuse_half(piece.get("label") or "", "pieces")


def _refuse_half(label: str, name: str) -> None:
    """Raises TextError for a label that no table and no page can hold."""
    if len(label) > LONGEST_LABEL:
        raise TextError(
            f"A row has a label of {len(label):,} characters among its {name}: give at most {LONGEST_LABEL}."
        )
    if half := HALF.search(label):
        raise TextError(f"A row has half a character ({half[0]!r}) in a label of its {name}: repair the file.")


def _listed(row: Mapping[str, Any], name: str, each: str) -> Iterable[Any]:
    """The entries of one of the two columns, which may be null."""
    entries = row.get(name)
    if entries is None:
        return ()
    if not isinstance(entries, list | tuple):
        _refuse(name, entries, f"a list of {each}")
    return entries


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    raise TextError(
        f"A row has {value!r:.80} where its {name} are read from, and {wanted}, belongs there. Name another column with "
        f"text.fields.{name}=<column>, or read no such labels with ~text.fields.{name}."
    )


def annotated(row: Mapping[str, Any], fields: Mapping[str, tuple[int, int]]) -> list[tuple[int, int, str]]:
    """The row's labels as spans (first character, one past the last, label) of the text in which each field begins at a
    character and has a length; those of a field that the row does not have are left out. Raises TextError for a span that
    ends beyond its field."""
    for span in row.get("spans") or ():
        if span[0] in fields and span[2] > fields[span[0]][1]:
            _refuse("spans", span, f"{SPAN}, that ends within its {span[0]} of {fields[span[0]][1]:,} characters")
    spans = [*(row.get("spans") or ()), *_found(row.get("thinking") or "", row.get("pieces") or ())]
    return [
        (fields[field][0] + first, fields[field][0] + last, name)
        for field, first, last, name in spans
        if field in fields
    ]


def _found(thinking: str, pieces: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int, str]]:
    """Spans of labelled pieces of the thinking, each looked for after the one before; what is not there word for word
    is left out. What was found carries the label `annotated` as well, so that tokens nobody looked at can be left
    aside."""
    spans, here = [], 0
    for piece in pieces:
        words = (piece.get("text") or "").strip()
        first = thinking.find(words, here) if words else -1
        if first >= 0:
            here = first + len(words)
            spans += [("thinking", first, here, name) for name in (piece.get("label"), "annotated") if name]
    return spans
