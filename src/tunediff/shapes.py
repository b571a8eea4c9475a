"""The words every other file shares: axes, roles, segments, and the small tuples that pass between the floors.

Axes, as they are written in signatures:
    document  one row of text after the chat template          token   one position that is kept for a dictionary
    batch     documents of one forward pass                     width   the streams of a dictionary side by side
    position  places of a padded batch                          latent  one unit of a dictionary
    stream    one (model, hookpoint, layer)                     model   base first, then tuned
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol

from tunediff.terminal import printable

if TYPE_CHECKING:  # the command line imports this file and stays free of torch
    from torch import Tensor

VERSION = "0.1.0"  # of tunediff; pyproject.toml has it too

BASE, TUNED = "base", "tuned"
ROLES = (BASE, TUNED)
OTHER = {BASE: TUNED, TUNED: BASE}
# What may stand beside a pair (arXiv 2602.20904): the tuned model with the base's MLPs, and that with transcoder adapters.
HYBRID, ADAPTER = "hybrid", "adapter"
LORA = "lora"  # the hookpoint of all low-rank adapters of a model, whatever their layers
TRANSCODER = "transcoder"  # the hookpoint of the latents of one layer's transcoder adapter
Precision = Literal["float32", "bfloat16", "float16"]  # names of torch's types of numbers
DIFFERENCE = "difference"  # tuned - base at the same place, as one stream

# What part of a document a token stands in. "prefix" is the opening sentence of the thinking; "text" is a document
# without a prompt and an answer; "template" is what a chat template writes around what was said.
TEMPLATE = "template"
SEGMENTS = ("prompt", "prefix", "thinking", "answer", "text", TEMPLATE)
BLOCK = 2048  # tokens whose latents are computed at once


class Refused(ValueError):
    """A setting, file or model that cannot be used. The message is for the user: what, with the values, and the way out. The
    values may come with data: a terminal shows them and obeys nothing in them."""

    def __str__(self) -> str:
        return printable(super().__str__())


def path_in(folder: Path, name: str, what: str, ending: str = "") -> Path:
    """The file or folder of this name in a folder. Raises Refused, beginning with `what` is named, for a name that would be
    another place: one with a slash, '..', nothing."""
    if not is_file_name(name):
        raise Refused(
            f"{what} {name!r:.120}: it is the name of a file, so it has no slash and no sign that cannot be seen, is not '..', "
            "and is not longer than 180 letters."
        )
    return folder / f"{name}{ending}"


def is_file_name(name: Any) -> bool:
    """True for a string that is a name inside a folder, whatever folder that is."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\]", name):
        return False
    return name.isprintable() and len(name.encode()) <= 180


class Stopped(Refused):
    """A fault of the machine once something was begun, such as a full disk. The message is for the user."""


class Stream(NamedTuple):
    """One place that a dictionary reads: hidden vectors of one model at one hookpoint of one layer, or their difference."""

    role: str
    hookpoint: str
    layer: int
    width: int

    def __str__(self) -> str:
        place = f"{self.role}.{self.hookpoint}"
        return place if self.hookpoint == LORA else f"{place}.{self.layer}"

    @property
    def models(self) -> tuple[str, ...]:
        """The roles of the models that must run for it."""
        return ROLES if self.role == DIFFERENCE else (self.role,)


class Finding(NamedTuple):
    """A named number. `name` is a path such as "fidelity/explained_variance/base/thinking"; `low` and `high` bound
    the interval where one was computed, at 95 % unless `meaning` says otherwise, and `over` names the units of chance that
    it runs over, such as "documents" or "draws and documents": of what it says how another sample would differ. `meaning` is
    one sentence with the definition. A finding that belongs to what is said of a run first has two more words: `column` heads
    its column where runs stand side by side, `line` names it in the last line of a run, where `tuned` may follow `base`."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    meaning: str = ""
    column: str = ""
    line: str = ""
    over: str = ""


class Table(NamedTuple):
    """Columns of equal length, written to tables/<name>.parquet."""

    name: str
    columns: dict[str, list]

    @classmethod
    def of(cls, name: str, rows: Iterable[Mapping[str, Any]]) -> Table:
        """The table of rows that have the same columns; without columns where there is no row."""
        rows = list(rows)
        return cls(name, {column: [row[column] for row in rows] for column in rows[0]} if rows else {})

    def check(self) -> None:
        """Raises Refused for a name that is no file name, and for columns that have no names, are no lists of numbers or
        words, or are of unequal length."""
        if not isinstance(self.name, str) or len(self.name) > 100:
            raise Refused(f"Table {self.name!r:.80}: its name has to be a string of at most 100 letters.")
        wrong = not isinstance(self.columns, Mapping) or [name for name in self.columns if not isinstance(name, str)]
        wrong = wrong or [name for name, values in self.columns.items() if not isinstance(native(values), list | tuple)]
        if wrong:
            raise Refused(f"Table {self.name}: its columns are lists under names, name -> list.")
        if not is_file_name(self.name):
            raise Refused(
                f"Table {self.name!r}: it is a file of the run folder, so its name has no slash and is not '..'."
            )
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise Refused(f"Table {self.name}: its columns have unequal lengths, {lengths}.")


def lacking(one: Any, protocol: type) -> list[str]:
    """The members of a Protocol that an object lacks or leaves abstract, by name."""
    bases = [base for base in protocol.__mro__ if base not in (Protocol, Generic, object)]
    asked = {
        name for base in bases for name in (*inspect.get_annotations(base), *vars(base)) if not name.startswith("_")
    }
    abstract = (name for name in asked if getattr(getattr(type(one), name, None), "__isabstractmethod__", False))
    return sorted({*abstract, *(name for name in asked if not hasattr(one, name))})


def native(value: Any) -> Any:
    """The value as Python's own: the lists and numbers of what numpy and torch hold."""
    return value.tolist() if hasattr(value, "tolist") else value


FIGURE_KINDS = ("lines", "points", "bars", "intervals", "heat")
ENDS = ("low", "high")


class Figure(NamedTuple):
    """A picture of numbers, drawn by the page from columns of equal length. Columns <y>_low and <y>_high bound a number.

    lines, points     `y` over `x`, with bands: a drawing for each of the `y`, a line for each value of `group`
    bars, intervals   a row for each label in the column `x`, a panel for each of the `y`, with whiskers
    heat              cells at `x` across and `group` up, shaded by one of the `y`, which the reader chooses

    name      unique in a run, such as "steering_sweep/curves"     section  heading that it stands under on the page
    title     of the figure itself                                 caption  how it is read, and what its intervals are
    facet     a drawing for each value of this column              choices  columns of which the reader chooses one value
    control   true for rows that are paler, dashed or indented     rule     true for rows that others are held against
    log       columns with a logarithmic axis, where they span enough of it
    words     column -> how it is called on axes and above panels

    Columns that are named nowhere stand in the figure's table of numbers only.
    """

    name: str
    kind: str
    columns: Mapping[str, list]
    x: str
    y: Sequence[str]
    section: str
    title: str
    caption: str = ""
    group: str | None = None
    facet: str | None = None
    choices: Sequence[str] = ()
    control: str | None = None
    rule: str | None = None
    log: Sequence[str] = ()
    words: Mapping[str, str] = {}

    def check(self) -> None:
        """Raises Refused for a kind that is unknown, a word of another type, columns that are missing, of unequal length or
        of what is neither number, string, bool nor None, text where a number is drawn, and an interval with one end."""
        if self.kind not in FIGURE_KINDS:
            raise Refused(f"Figure {self.name}: there is no kind '{self.kind}'; choose of {', '.join(FIGURE_KINDS)}.")
        for word in ("name", "x", "section", "title", "caption", "group", "facet", "control", "rule"):
            value = getattr(self, word)
            if not isinstance(value, str) and (value is not None or self._field_defaults.get(word, "") is not None):
                raise Refused(f"Figure {self.name}: {word} is of type {type(value).__name__}, not a string.")
        if not isinstance(self.words, Mapping) or not all(isinstance(said, str) for said in self.words.values()):
            raise Refused(f"Figure {self.name}: words is no mapping of columns to strings; write words={{}} for none.")
        for word in ("choices", "log"):
            if not _names(getattr(self, word)):
                raise Refused(f"Figure {self.name}: {word} is no list of columns; write {word}=[] for none.")
        if not isinstance(self.columns, Mapping):
            raise Refused(f"Figure {self.name}: its columns are of type {type(self.columns).__name__}, not a mapping.")
        columns = {name: native(values) for name, values in self.columns.items()}
        for name, values in columns.items():
            if not isinstance(values, list | tuple):
                kind = type(values).__name__
                raise Refused(f"Figure {self.name}: its column {name} is of type {kind}, not a list or an array.")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise Refused(f"Figure {self.name}: its columns have unequal lengths, {lengths}.")
        if not _names(self.y) or not self.y:
            name = self.y if isinstance(self.y, str) and self.y else "value"
            raise Refused(f"Figure {self.name}: y={self.y!r} is no list of columns; write y=['{name}'].")
        named = [self.x, *self.y, *self.choices, *self.log, *(self.group, self.facet, self.control, self.rule)]
        missing = [name for name in dict.fromkeys(named) if name is not None and name not in lengths]
        if self.kind == "heat" and self.group is None:
            missing.append("group, the rows of a heat")
        if missing:
            raise Refused(f"Figure {self.name} names {', '.join(missing)}; its columns are {', '.join(lengths)}.")
        for name in self.y:
            if len([end for end in ENDS if f"{name}_{end}" in lengths]) == 1:
                raise Refused(f"Figure {self.name}: an interval of {name} has two ends, {name}_low and {name}_high.")
        numbers = {f"{name}{end}" for name in self.y for end in ("", "_low", "_high")}
        numbers |= {self.x} if self.kind in ("lines", "points") else set()
        for name, values in columns.items():
            for row, value in enumerate(map(native, values)):
                drawn = name in numbers and isinstance(value, bool | str)
                if drawn or not isinstance(value, bool | int | float | str | None):
                    place, kind = f"row {row} of its column {name}", type(value).__name__
                    why = "and only numbers and None are drawn" if drawn else "not a number, string, bool or None"
                    raise Refused(f"Figure {self.name}: {place} is of type {kind}, {why}.")


def _names(value: Any) -> bool:
    """True for a list of strings."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


class Note(NamedTuple):
    """A sentence that a reader of the findings must know, such as why a measure was not taken."""

    text: str


class Rows(NamedTuple):
    """Activations of kept tokens, in the models' own units.

    values   [token, width]       the streams side by side
    moments  [token, stream, 2]   mean and standard deviation of the token's own sequence, for sequence z-scores; else None
    """

    values: Tensor
    moments: Tensor | None = None

    def blocks(self, size: int = BLOCK) -> Iterator[Rows]:
        """The same rows, at most so many at a time, for what is wider than they are; of no row one block of none."""
        for first in range(0, max(len(self.values), 1), size):
            here = slice(first, first + size)
            yield Rows(self.values[here], None if self.moments is None else self.moments[here])


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """{"dictionary.sparsity.k": 12, ...}: every leaf of nested settings under its name on the command line."""
    if isinstance(node, Mapping) and node:
        return {name: leaf for key in node for name, leaf in flat(node[key], f"{path}.{key}" if path else key).items()}
    return {path: node}
