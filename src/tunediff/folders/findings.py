"""The findings of a run: findings.json, figures.json and tables/*.parquet, written and read."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tunediff.folders.manifest import MANIFEST, as_written, changing, put, read_bytes, read_json
from tunediff.shapes import Figure, Finding, Note, Refused, Table, native

log = logging.getLogger(__name__)


def clear(folder: Path) -> None:
    """Takes away what an earlier study left in a folder that is used again: its findings are not this one's."""
    files = (folder / name for name in (MANIFEST, "findings.json", "figures.json", "report.html"))
    for left in (*files, *(folder / "tables").glob("*.parquet")):
        left.unlink(missing_ok=True)
    for left in (folder / "latent_cache", folder / "outputs", *folder.glob("on_*_tokens")):
        shutil.rmtree(left, ignore_errors=True)


def write_table(folder: Path, table: Table) -> None:
    """tables/<name>.parquet. An earlier table of that name with as many rows keeps its other columns; one that is not as it
    was written is replaced."""
    place = _place(folder, table)
    try:
        before = _columns(place)
    except Refused as refusal:
        log.warning("%s It is written anew.", refusal)
        before = {}
    with changing(place):
        _write_table(place, _joined(table, before))


def read_table(path: Path, columns: list[str] | None = None) -> pyarrow.Table:
    """A parquet file of a run folder, or these columns of it. Raises Refused for one that is not as it was written."""
    content = read_bytes(path)
    with as_written(path):
        try:
            return pyarrow.parquet.read_table(pyarrow.BufferReader(content), columns=columns)
        except (pyarrow.ArrowException, MemoryError) as error:
            raise ValueError(f"it is no parquet file that can be read: {error}") from error


def columns_in(path: Path) -> list[str]:
    """Names of the columns of a parquet file; none where there is no such file."""
    if not path.exists():
        return []
    content = read_bytes(path)
    with as_written(path):
        try:
            return pyarrow.parquet.read_schema(pyarrow.BufferReader(content)).names
        except (pyarrow.ArrowException, MemoryError) as error:
            raise ValueError(f"it is no parquet file that can be read: {error}") from error


def _place(folder: Path, table: Table) -> Path:
    return folder / "tables" / f"{table.name}.parquet"


def _columns(place: Path) -> dict[str, list]:
    """The columns of an earlier table; none where there is none."""
    return read_table(place).to_pydict() if place.exists() else {}


def _joined(table: Table, before: Mapping[str, list]) -> pyarrow.Table:
    """The table with the other columns of an earlier one that has as many rows. Raises Refused where it has no file name
    or its columns are of unequal length."""
    table.check()
    columns = table.columns
    if before:
        rows, rows_before = (len(next(iter(some.values()), ())) for some in (columns, before))
        if rows == rows_before:
            columns = {**before, **columns}
    try:
        return pyarrow.table({name: native(values) for name, values in columns.items()})
    except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
        raise Refused(f"Table {table.name}: it cannot be kept: {str(error).splitlines()[0]}") from error


def _write_table(place: Path, table: pyarrow.Table) -> None:
    place.parent.mkdir(exist_ok=True)
    with put(place) as partial:
        pyarrow.parquet.write_table(table, partial)


def write_findings(
    folder: Path,
    found: Iterable[Finding | Table | Figure | Note],
    described: Mapping[str, Any],
    *,
    by: str | None = None,
) -> dict[str, dict]:
    """findings.json, figures.json and tables/*.parquet. What an earlier call left stays: tables, which join their columns
    with those of the same name, and findings, figures and notes unless they are `by` the same. Raises Refused for a
    figure that cannot be drawn, one of two that share a name, and a table or finding that cannot be kept, before anything
    is written. What is not a finite number is null in the JSON."""
    path = folder / "findings.json"
    old = findings_of(folder)
    found_by, noted_by = old.get("found_by", {}), _noted_by(old)
    findings = {finding["name"]: finding for finding in old["findings"]}
    withdrawn = {name for name in findings if by is not None and found_by.get(name) == by}
    noted_by = {note: [one for one in who if by is None or one != by] for note, who in noted_by.items()}
    noted_by = {note: who for note, who in noted_by.items() if who}
    figures = {f["name"]: f for f in figures_of(folder) if by is None or f["by"] != by}
    tables: dict[str, dict[str, list]] = {}
    named: set[str] = set()
    for item in found:
        if isinstance(item, Finding):
            findings[item.name], found_by[item.name] = _told(item), by
            withdrawn.discard(item.name)
        elif isinstance(item, Table):
            item.check()
            tables[item.name] = {**tables.get(item.name, {}), **item.columns}
        elif isinstance(item, Figure):
            item.check()
            if item.name in named:
                raise Refused(f"Figure {item.name}: two figures have this name, and each needs one of its own.")
            named.add(item.name)
            figures[item.name] = {**item._asdict(), "by": by}
        elif not isinstance(item.text, str):
            raise Refused(f"Note {item.text!r}: it has to be a string.")
        else:
            said_by = [one for one in noted_by.get(item.text, []) if one is not None]
            noted_by[item.text] = list(dict.fromkeys([*said_by, by]))
    named_tables = {_place(folder, table): table for table in map(Table, tables, tables.values())}
    joined = {place: _joined(table, _columns(place)) for place, table in named_tables.items()}
    findings = {name: finding for name, finding in findings.items() if name not in withdrawn}
    found_by = {name: who for name, who in found_by.items() if name in findings}
    content = {**described, "findings": list(findings.values()), "notes": list(noted_by)}
    content |= {"found_by": found_by, "noted_by": noted_by}
    written = json.dumps(_valid(content), indent=1, allow_nan=False)
    drawn = json.dumps(_valid({"figures": list(figures.values())}), allow_nan=False)
    drawings = folder / "figures.json"
    texts = {drawings: drawn} if figures or drawings.exists() else {}
    with changing(*joined, drawings, path):
        for place, table in joined.items():
            _write_table(place, table)
        for place, text in {**texts, path: written}.items():
            with put(place) as partial:
                partial.write_text(text, encoding="utf-8")
    return findings


def _noted_by(old: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Note -> the evaluations that said so: a note stands until the last of them no longer does. [None] where a folder does
    not say whose it is."""
    said = {note: old.get("noted_by", {}).get(note) for note in old["notes"]}
    return {note: list(who) if isinstance(who, list) else [who] for note, who in said.items()}


def findings_of(folder: Path) -> dict[str, Any]:
    """findings.json, with lists of `findings` and `notes`, empty where it does not exist. Raises Refused where it is not
    as it was written."""
    path = folder / "findings.json"
    found = {"findings": [], "notes": [], **read_json(path)}
    with as_written(path):
        for finding in found["findings"]:
            Finding(**finding)
            if not isinstance(finding["name"], str) or not all(
                isinstance(finding[name], int | float | None) for name in ("value", "low", "high")
            ):
                raise ValueError(f"its finding {finding['name']} is none")
        if not all(isinstance(note, str) for note in found["notes"]):
            raise ValueError("its notes are no sentences")
        for name in ("found_by", "noted_by", "study", "commits"):
            if not isinstance(found.get(name, {}), dict):
                raise ValueError(f"its {name} is of type {type(found[name]).__name__}")
    return found


def _told(finding: Finding) -> dict[str, Any]:
    """Its entry in findings.json: the words of the headline, and what an interval is over, only where there is one."""
    entry = {name: _valid(value) for name, value in finding._asdict().items()}
    for name in ("name", "meaning", "column", "line", "over"):
        if not isinstance(entry[name], str) or not finding.name:
            raise Refused(f"Finding {finding.name!r}: its {name} is {entry[name]!r}, and has to be a string.")
    for name in ("value", "low", "high"):
        if not isinstance(entry[name], int | float | None):
            raise Refused(f"Finding {finding.name}: its {name} is of type {type(entry[name]).__name__}, not a number.")
    if entry["low"] is None:
        entry["over"] = ""
    return {name: value for name, value in entry.items() if value or name not in ("column", "line", "over")}


def _valid(value: Any) -> Any:
    """The value for JSON, which has no NaN and no arrays: what is not a finite number is null."""
    value = native(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _valid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(inner) for inner in value]
    return value


def figures_of(folder: Path) -> list[dict[str, Any]]:
    """The figures of a run as they were written, in their order, each with the evaluation that it is `by`."""
    path = folder / "figures.json"
    figures = read_json(path).get("figures", [])
    with as_written(path):
        for figure in figures:  # one that cannot be drawn leaves the others whole
            if not isinstance(figure["name"], str) or not isinstance(figure["by"], str | None):
                raise ValueError("a figure has no name")
    return figures
