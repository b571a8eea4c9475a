"""Run folders -> one table: in the terminal, as parquet, and as a page with the swept keys first.

Everything is read from the folders, so it may be asked while a sweep runs: a member without findings has its state.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow
import pyarrow.parquet

from tunediff import claims, folders
from tunediff.report.headline import columns_of
from tunediff.report.page import assemble, read_table, thinned
from tunediff.report.stability import add_stability
from tunediff.shapes import Refused, flat
from tunediff.terminal import printable

CURVES = (
    "explained_variance/pooled",
    "explained_variance/base",
    "explained_variance/tuned",
    "loss/reconstruction",
    "l0",
    "dead_fraction",
    "loss",
    "held_out_loss",
)
COMPARE_SCRIPTS = ("base.js", "plots.js", "whiskers.js", "figures.js", "claims.js", "compare.js")
UNREADABLE = "unreadable"
SHOWN = ("identity", "keys", "state", "step", "steps", "job", "error", "study", "metrics", "curves")
# what one names first of what differs
FIRST = (
    "model_pair",
    "model",
    "recipe",
    "text",
    "layer",
    "seed",
    "dictionary",
    "l1_schedule",
    "optimizer",
    "budget.tokens",
    "budget.latents",
)


def members_under(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One record per study with its folder, keys, state, findings and curves. Raises Refused where there is no study."""
    for place in places:
        if not Path(place).is_dir():
            raise Refused(f"No run under {place}: there is no such folder.")
    found = [path for place in places for path in Path(place).rglob("identity.json") if not _has_no_findings(path)]
    named = [path.parent for path in found] + [Path(place) for place in places if study_of(Path(place)) != Path(place)]
    runs = sorted({run.resolve(): run for run in reversed(named)}.values())  # spelled in two ways it is one run
    for sweep in {run.parent for run in runs}:
        _words(sweep)  # refused before a table lacks its keys
    if not runs:
        if not places:
            raise Refused("Name run or sweep folders: python compare.py <run or sweep> ...")
        raise Refused(f"No run under {', '.join(map(str, places))}.")
    members = [_member(run) for run in runs]
    _leave_out_shared(members)
    for member, keys in zip(members, _swept_keys(members), strict=True):
        member["keys"] = {**keys, "layer": _layers(keys["layer"], member["study"])} if "layer" in keys else keys
    add_stability(members)
    return sorted(members, key=lambda member: [_order(value) for value in member["keys"].values()])


def study_of(folder: Path) -> Path:
    """The folder of the study that was measured again in this one, on_<n>_tokens; any other folder is its own."""
    again = re.fullmatch(r"on_\d+_tokens", folder.name) and not (folder / "identity.json").exists()
    return folder.parent if again and (folder.parent / "identity.json").exists() else folder


def _has_no_findings(identity: Path) -> bool:
    """True for the folder of a fine-tune, whose settings have a recipe, that asks for no evaluation."""
    try:
        settings = folders.read_json(identity).get("settings", {})
        return "recipe" in settings and not settings.get("evaluation")
    except Refused:
        return False  # its row says why


def _words(sweep: Path) -> dict[str, list[str]]:
    """The overrides that tell the members of a sweep apart, by identity; none where the folder holds no sweep."""
    path = sweep / "sweep.json"
    with folders.as_written(path):
        words = {m["identity"]: m["words"] for m in folders.read_json(path).get("members", [])}
        if not all(isinstance(word, str) for some in words.values() for word in some):
            raise ValueError("its members have no words")
    return words


def _leave_out_shared(members: Sequence[dict[str, Any]]) -> None:
    """Takes the words out that all fine-tunes of a folder were typed with: they tell none from another."""
    together: dict[Path, list[dict[str, Any]]] = {}
    for member in members:
        together.setdefault(Path(member["folder"]).parent, []).append(member)
    for home, some in together.items():
        if (home / "sweep.json").exists():  # whose words tell its members apart already
            continue
        shared = set.intersection(*({*member["words"]} for member in some))
        for member in some:
            member["words"] = [word for word in member["words"] if word not in shared]


def _order(value: Any) -> tuple:
    """Sorting key: numbers by size, before words."""
    return (0, value, "") if _is_number(value) else (1, 0, _cell(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _member(run: Path) -> dict[str, Any]:
    """The record of a run. Where a file is not as it was written, the sentence stands in it instead of what was found."""
    try:
        return _read(run)
    except Refused as refusal:
        known = {"folder": str(run), "identity": run.name, "words": _words(run.parent).get(run.name, [])}
        nothing: dict[str, Any] = {name: {} for name in ("settings", "study", "columns", "metrics", "curves", "claims")}
        return {
            **known,
            **nothing,
            **dict.fromkeys(("step", "steps", "job")),
            "state": UNREADABLE,
            "error": str(refusal),
        }


def _read(run: Path) -> dict[str, Any]:
    study, found = study_of(run), folders.findings_of(run)
    stands_for, state, words = folders.read_json(study / "identity.json"), folders.state_of(study), _words(study.parent)
    with folders.as_written(study / "identity.json"):
        settings = flat(stands_for["settings"])
        if study != run:
            settings["budget.evaluation_tokens"] = int(run.name.split("_")[1])
        if not isinstance(stands_for["identity"], str):
            raise ValueError("its identity is no string")
    with folders.as_written(study / "state.json"):
        if state.get("identity", stands_for["identity"]) != stands_for["identity"]:
            raise ValueError("it is of another run")
    with folders.as_written(study / "tables" / "training.parquet"):
        curves = thinned(read_table(study, "training"), 120) or {}
    return {
        "folder": str(run),
        "identity": stands_for["identity"],
        "settings": settings,
        "words": words.get(stands_for["identity"]) or state.get("words", []),  # a fine-tune has its own
        "claims": claims.kept_in(study)[0],
        "sweep": str(study.parent),
        **{name: state.get(name) for name in ("step", "job", "error")},
        "state": state.get("state", folders.FINISHED if (run / "findings.json").exists() else folders.WAITING),
        "steps": state.get("steps") or state.get("step"),
        "study": found.get("study", {}),
        "columns": {f["name"]: f["column"] for f in found["findings"] if f.get("column")},
        "metrics": {
            f["name"]: [f["value"], f.get("low"), f.get("high"), *([f["over"]] if f.get("over") else [])]
            for f in found["findings"]
        },
        "curves": {name: curves[name] for name in ("tokens", *CURVES) if name in curves},
    }


def _judged(members: Sequence[dict[str, Any]], home: Path) -> list[claims.Verdict]:
    """The verdicts on the claims of all; those of several sweeps are told apart by their folders, as seen from `home`."""
    found = claims.of_members(members)
    if len({verdict.sweep for verdict in found}) < 2:
        return found
    return [
        replace(one, of=" ".join(filter(None, (os.path.relpath(Path(one.sweep).resolve(), home.resolve()), one.of))))
        for one in found
    ]


def _swept_keys(members: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The keys that tell the members apart: those that were swept, as they were typed; then, only where two members would
    look the same, the settings in which they differ."""
    typed = list(dict.fromkeys(_split(word)[0] for member in members for word in member["words"]))
    settings = [{**member["settings"], **dict(map(_split, member["words"]))} for member in members]
    rows = [{key: some.get(key) for key in typed} for some in settings]
    alike: dict[str, list[dict[str, Any]]] = {}
    for row, some, member in zip(rows, settings, members, strict=True):
        if member["state"] == UNREADABLE:
            continue  # it differs in what could not be read
        alike.setdefault(json.dumps(row, sort_keys=True), []).append(some)
    extra: set[str] = set()
    for group in alike.values():
        names = {name for some in group for name in some}.difference(typed)
        extra |= {name for name in names if len({json.dumps(some.get(name)) for some in group}) > 1}
    told = [[some.get(key) for some in settings] for key in {*typed, *extra} if not key.startswith("evaluation.")]
    # an evaluation that follows another setting, such as the trait of the text, says nothing more
    extra = {n for n in extra if not n.startswith("evaluation.") or [some.get(n) for some in settings] not in told}
    shown = sorted(extra, key=lambda name: (_standing(name), name.count("."), name))[:6]
    return [{key: some.get(key) for key in (*typed, *shown)} for some in settings]


def _layers(asked: Any, study: dict[str, Any]) -> Any:
    """The layer that a study read, or the list of them, where a relative depth may have been asked for; what was asked as long
    as that is not known, and where it is all."""
    read = str(study.get("layer", ""))
    if not re.fullmatch(r"\d+(,\d+)*", read):
        return asked
    numbers = [int(number) for number in read.split(",")]
    return numbers if isinstance(asked, list) else numbers[0]


def _told(members: Sequence[dict[str, Any]], name: str) -> list[str]:
    """The distinct entries that the studies have under a name."""
    return list(dict.fromkeys(str(m["study"][name]) for m in members if m["study"].get(name) is not None))


def _standing(name: str) -> int:
    """Place of a setting in FIRST; after all of them where it is none."""
    return next((n for n, part in enumerate(FIRST) if name == part or name.startswith(f"{part}.")), len(FIRST))


def _split(word: str) -> tuple[str, Any]:
    key, _, value = word.lstrip("+").partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def in_words(members: Sequence[dict[str, Any]]) -> str:
    """The table in words for a terminal, and below it the models, where all compare the same, and the runs that failed, and
    why."""
    keys = list(members[0]["keys"])
    metrics, pairs = columns_of(members), _told(members, "model_pair")
    several = ["models"] if len(pairs) > 1 else []
    rows = [[*keys, *several, "state", *metrics.values(), "run"]]
    for member in members:
        values = [member["metrics"].get(name, [None])[0] for name in metrics]
        state = member["state"]
        if state not in (folders.FINISHED, folders.FAILED) and member["step"] is not None:
            state += f" {member['step']:,}/{member['steps']:,}"
        if member["job"] and state.startswith(folders.WAITING):
            state += f", job {member['job']}"
        cells = [_cell(member["keys"][key]) for key in keys]
        cells += [_cell(member["study"].get("model_pair")) for _ in several]
        numbers = ["-" if value is None else f"{value:.4g}" for value in values]
        rows.append([*cells, state, *numbers, os.path.relpath(member["folder"])])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(pairs) == 1:
        layers = [] if "layer" in keys else [f"layer {layer}" for layer in _told(members, "layer")]
        lines.append(f"models: {', '.join(pairs + layers)}")
    if verdicts := _judged(members, Path.cwd()):
        lines.append(claims.in_words(verdicts))
    for member in members:
        if member["error"]:
            lines.append(f"{os.path.relpath(member['folder'])}: {member['error']}")
    return printable("\n".join(lines))


def _cell(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def write_comparison(members: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Writes compare.parquet, with one row per member and a column for every key and finding, and compare.html; returns the
    path of the page."""
    names = list(dict.fromkeys(name for member in members for name in member["metrics"]))
    study = [member["study"] for member in members]
    columns: dict[str, list] = {
        **{name: [member[name] for member in members] for name in ("identity", "folder", "state", "error")},
        "models": [some.get("model_pair") for some in study],
        "layer": [some.get("layer") for some in study],
        **{key: _alike([member["keys"][key] for member in members]) for key in members[0]["keys"]},
        **{name: [member["metrics"].get(name, [None])[0] for member in members] for name in names},
    }
    with folders.put(folder / "compare.parquet") as partial:
        pyarrow.parquet.write_table(pyarrow.table(columns), partial)
    verdicts = [verdict.row() for verdict in _judged(members, folder)]
    if verdicts:
        with folders.put(folder / "claims.parquet") as partial:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(verdicts), partial)
    shown = []
    for member in members:
        run = Path(member["folder"])
        log = run / ("job.log" if (run / "job.log").exists() else "run.log")
        links = {"page": _link(run / "report.html", folder), "log": _link(log, folder)}
        shown.append({key: member[key] for key in SHOWN} | links)
    payload = {
        "members": shown,
        "folder": folder.resolve().name,
        "headline": columns_of(members),
        "claims": verdicts,
        "asked": folders.clock(),
    }
    page = assemble(payload, title=f"tunediff: {len(members)} runs", scripts=COMPARE_SCRIPTS)
    folders.write_atomically(folder / "compare.html", page)
    return folder / "compare.html"


def _alike(values: list) -> list:
    """Values of one type: as they are if all are numbers, else as words."""
    kind = float if all(value is None or _is_number(value) for value in values) else _cell
    return [None if value is None else kind(value) for value in values]


def _link(target: Path, folder: Path) -> str | None:
    return quote(os.path.relpath(target, folder)) if target.exists() else None  # a name is no address: javascript:
