"""Conditions that problems are solved under, graded responses, and the files that keep responses.

A condition is one model under some edits, asked in one way. Every response is kept as it comes, in the run folder, so that
an evaluation that was interrupted goes on with the problems that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunediff.benchmarks import Behaviour, Grade, Problem
from tunediff.edits import Edit
from tunediff.folders import begin_growing, read_bytes, replacing
from tunediff.generation import Asked, Decoding, Response
from tunediff.shapes import path_in

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Condition:
    """name, title   a path such as zero/delta, and words          role       the model that writes
    edits         edits of the model's activations                control    true for a baseline without the edit asked about
    reference     name of the condition that it is compared with; None: with none
    asked_as      role of the model whose prompt of the task is given; None: its own
    alongside     the other model's own unedited responses stand beside it, for patches from the same generation
    decoding      how responses are written; None: as under the other conditions of the evaluation
    drawn         of a random control the edits of every draw, in place of `edits`: the draws answer the problems in turn
    """

    name: str
    title: str
    role: str
    edits: tuple[Edit, ...] = ()
    control: bool = False
    reference: str | None = None
    asked_as: str | None = None
    alongside: bool = False
    decoding: Decoding | None = None
    drawn: tuple[tuple[Edit, ...], ...] = ()

    @property
    def acting(self) -> tuple[Edit, ...]:
        """The edits; of a random control those of its first draw."""
        return self.drawn[0] if self.drawn else self.edits


class Solved(NamedTuple):
    """One problem under one condition; `nats` is the sum of -log p of its tokens under the unedited model, `draw` the number
    of the random draw that answered it."""

    problem: Problem
    response: Response
    grade: Grade
    behaviour: Behaviour
    nats: float
    draw: int | None = None


class Answered(NamedTuple):
    """A condition with its graded responses, in the order of the problems."""

    condition: Condition
    solved: list[Solved]


def in_turn(problems: int, draws: int) -> list[range]:
    """The places of the problems that each of so many random draws answers. All draws together answer every problem once, so
    that they cost what one would: how much draws differ is known from their number, and each new one says more of that than
    further problems under the same. A draw with its problems is one unit of chance."""
    return [range(draw, problems, draws) for draw in range(min(draws, problems))]


def asked_differently(problems: Iterable[Problem]) -> bool:
    """True for a task with another prompt for one model than for the other."""
    return any(len(set(problem.prompts.values())) > 1 for problem in problems)


class KeptLines:
    """The file <run folder>/outputs/<name>.jsonl with an entry a line, each known by the value that its column `key` has;
    without a folder nothing is kept. Lines that are not as they were written, by their own checksum, are taken out of the
    file: what a killed process left of its last one, without a word, and others, so that what stood there is made anew."""

    def __init__(self, folder: Path | None, name: str, *, key: str = "key"):
        self.path, self.key = None if folder is None else path_in(folder / "outputs", name, "Outputs", ".jsonl"), key
        self.known: dict[str, dict[str, Any]] = {}
        self.grows = False
        if self.path is not None and self.path.exists():
            *lines, cut = read_bytes(self.path).split(b"\n")
            read = [_entry(line, key, name) for line in lines]
            self.known = {entry.pop(key): entry for entry in read if entry is not None}
            if bad := [n for n, entry in enumerate(read, 1) if entry is None]:
                some = f"line {bad[0]:,}" + (f" and {len(bad) - 1:,} more" if len(bad) > 1 else "")
                log.warning("%s: %s is not as it was written, and is made anew", self.path, some)
            if bad or cut:
                with replacing(self.path) as partial:
                    whole = (line for line, entry in zip(lines, read, strict=True) if entry is not None)
                    partial.write_bytes(b"".join(line + b"\n" for line in whole))

    def write(self, key: str, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(exist_ok=True)
        if not self.grows:
            begin_growing(self.path)
            self.grows = True
        line = json.dumps(_sealed({self.key: key, **entry}, self.path.stem)).encode() + b"\n"
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:  # a full disk takes what it has room for
                file.truncate(end)
                raise


def _sealed(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An entry with the checksum of its other columns and of the name of its file, which says what it answers."""
    return {**entry, "sha256": hashlib.sha256(json.dumps([name, entry], sort_keys=True).encode()).hexdigest()[:16]}


def _entry(line: bytes, key: str, name: str) -> dict[str, Any] | None:
    """The entry of a line without its checksum; None where it is not as it was written."""
    try:
        entry = json.loads(line.decode())
        said = entry.pop("sha256")
        return entry if key in entry and _sealed(entry, name)["sha256"] == said else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


class KeptResponses:
    """The file of one condition's responses, a line each."""

    def __init__(self, folder: Path | None, name: str, task: str, stands_for: str):
        self.lines = KeptLines(folder, f"{name}-{task}-{stands_for}")

    def read(self, asked: Asked) -> Response | None:
        entry = self.lines.known.get(digest([asked.name, asked.ids]))
        if entry is None:
            return None
        return Response(**{**entry, "touched": tuple(entry["touched"]), "change": tuple(entry["change"])})

    def write(self, asked: Asked, response: Response) -> None:
        self.lines.write(digest([asked.name, asked.ids]), response._asdict())


def digest(parts: Any) -> str:
    """A digest of plain values, tensors, modules and dataclasses of these."""
    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            state.update(str(value.dtype).encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
        elif isinstance(value, torch.nn.Module):
            add(dict(value.state_dict()))
        elif dataclasses.is_dataclass(value):
            state.update(type(value).__qualname__.encode())
            add({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        elif isinstance(value, Mapping):
            for key, one in value.items():
                add(str(key))
                add(one)
        elif isinstance(value, list | tuple):
            state.update(b"[")
            for one in value:
                add(one)
        else:
            state.update(repr(value).encode() + b";")

    add(parts)
    return state.hexdigest()[:16]
