"""The run folder: what lies in it, who writes it, and how it becomes whole.

    config.yaml  identity.json  state.json  dictionary/  findings.json  figures.json  tables/*.parquet  report.html  run.log
    lock         latent_cache/ where it was asked for

The folder is the interface between commands. Every file is written to a temporary name, flushed and renamed, so a
reader never sees half of one. `lock` is held by the one process that writes; the system lets go of it when that
process dies, whichever way.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pyarrow
import pyarrow.parquet

from tunediff.shapes import Figure, Finding, Note, Refused, Table, native

FINISHED, FAILED, RUNNING, EVALUATING, WAITING = "finished", "failed", "training", "evaluating", "waiting"
INTERRUPTED, CANCELLED = "interrupted", "cancelled"
LOGS = {".hydra", "run.log", "evaluate.log", "multirun.yaml"}  # laid down before any line of a study is run
SAID = {"config.yaml", "identity.json", "state.json", "lock", "owner.json"}  # of a run before it begins


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with the temporary name of a file, which is flushed and takes the place of `path` once it is whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Raises Refused where it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"Cannot make the folder {path}: {error.strerror}. Choose another place or ask for permission."
        ) from error
    if not os.access(path, os.W_OK):
        raise Refused(f"No permission to write in {path}. Choose another place or ask for permission.")
    return path


@contextlib.contextmanager
def unless_refused(folder: Path) -> Iterator[None]:
    """Context in which what is refused before anything was trained leaves no folder that looks like a run: what Hydra
    laid there and what was said of the run go. A folder in which anything else stood before, or stands after, is left
    as it is."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    try:
        yield
    except Refused:
        left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        began = "step" in read_json(folder / "state.json")
        stands_here = Path.cwd().is_relative_to(folder.resolve())
        if left <= LOGS | SAID and found <= LOGS and not began and folder.is_dir() and not stands_here:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # the day's folder, and multirun: the first that holds something stays
                for above in itertools.islice(folder.resolve().parents, 2):
                    if not Path.cwd().is_relative_to(above):
                        above.rmdir()
        raise


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Context in which no other process writes this folder, on this machine or another that shares the file system.
    Raises Refused, saying who does."""
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=2)  # who only asks whether it is held, holds it for a moment
    except filelock.Timeout as error:
        owner = read_json(folder / "owner.json")
        who = f"process {owner['process']} on {owner['host']}, since {owner['since']}" if owner else "another process"
        raise Refused(f"{what} {folder} is being written by {who}.") from error
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": clock()}
        write_atomically(folder / "owner.json", json.dumps(owner))
        yield
    finally:
        (folder / "owner.json").unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """True while a living process writes this folder."""
    if not (folder / "lock").exists():
        return False
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


def clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def read_json(path: Path) -> dict[str, Any]:
    """The content of the file; empty where it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


# -- how far a run is ------------------------------------------------------------------------------------------------


def state_of(folder: Path) -> dict[str, Any]:
    """state.json. A run that says it is being trained, but that nobody holds, was interrupted."""
    state = read_json(folder / "state.json")
    if state.get("state") in (RUNNING, EVALUATING) and not is_held(folder):
        state["state"] = INTERRUPTED
    return state


def say(folder: Path, **changes: Any) -> None:
    """Changes entries of state.json; None removes one."""
    state = {**read_json(folder / "state.json"), **changes, "updated": clock()}
    kept = {key: value for key, value in state.items() if value is not None}
    write_atomically(folder / "state.json", json.dumps(kept, indent=1))


def note_end(folder: Path, status: int) -> None:
    """The process of a run ended with this status: one that was killed could not say so itself."""
    if state_of(folder).get("state") not in (FINISHED, FAILED):
        say(folder, state=INTERRUPTED, error=f"its process ended with status {status}")


def is_finished(folder: Path, identity: str) -> bool:
    """True where this very run ended well here; its folder's name says nothing."""
    state = read_json(folder / "state.json")
    return state.get("state") == FINISHED and state.get("identity") == identity


# -- what was found --------------------------------------------------------------------------------------------------


def clear(folder: Path) -> None:
    """Takes away what an earlier study left in a folder that is used again: its findings are not this one's."""
    files = (folder / name for name in ("findings.json", "figures.json", "report.html"))
    for left in (*files, *(folder / "tables").glob("*.parquet")):
        left.unlink(missing_ok=True)
    for left in (folder / "latent_cache", folder / "outputs", *folder.glob("on_*_tokens")):
        shutil.rmtree(left, ignore_errors=True)


def write_table(folder: Path, table: Table) -> None:
    """tables/<name>.parquet. An earlier table of that name with as many rows keeps its other columns."""
    _write_table(_place(folder, table), _joined(folder, table))


def _place(folder: Path, table: Table) -> Path:
    return folder / "tables" / f"{table.name}.parquet"


def _joined(folder: Path, table: Table) -> pyarrow.Table:
    """The table with the other columns of an earlier one that has as many rows. Raises Refused where it has no file name
    or its columns are of unequal length."""
    table.check()
    place, columns = _place(folder, table), table.columns
    if place.exists():
        before = pyarrow.parquet.read_table(place).to_pydict()
        rows, rows_before = (len(next(iter(some.values()), ())) for some in (columns, before))
        if rows == rows_before:
            columns = {**before, **columns}
    try:
        return pyarrow.table({name: native(values) for name, values in columns.items()})
    except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
        raise Refused(f"Table {table.name}: it cannot be kept: {str(error).splitlines()[0]}") from error


def _write_table(place: Path, table: pyarrow.Table) -> None:
    place.parent.mkdir(exist_ok=True)
    with replacing(place) as partial:
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
    old = read_json(path) or {"findings": [], "notes": []}
    found_by, noted_by = old.get("found_by", {}), {note: old.get("noted_by", {}).get(note) for note in old["notes"]}
    findings = {finding["name"]: finding for finding in old["findings"]}
    withdrawn = {name for name in findings if by is not None and found_by.get(name) == by}
    noted_by = {note: who for note, who in noted_by.items() if who is None or who != by}
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
            noted_by[item.text] = by
    joined = {_place(folder, table): _joined(folder, table) for table in map(Table, tables, tables.values())}
    findings = {name: finding for name, finding in findings.items() if name not in withdrawn}
    found_by = {name: who for name, who in found_by.items() if name in findings}
    content = {**described, "findings": list(findings.values()), "notes": list(noted_by)}
    content |= {"found_by": found_by, "noted_by": noted_by}
    written = json.dumps(_valid(content), indent=1, allow_nan=False)
    drawn = json.dumps(_valid({"figures": list(figures.values())}), allow_nan=False)
    for place, table in joined.items():
        _write_table(place, table)
    if figures or (folder / "figures.json").exists():
        write_atomically(folder / "figures.json", drawn)
    write_atomically(path, written)
    return findings


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
    return read_json(folder / "figures.json").get("figures", [])
