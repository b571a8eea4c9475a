"""Findings -> what is said of a run first: the last line in the terminal, and its columns beside other runs.

Which findings belong there, and by which words, is said by whoever found them; what a number means stands in its finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunediff.shapes import ROLES


def line_of(findings: Mapping[str, Mapping[str, Any]]) -> str:
    """The line of a run: its findings with a word for it that have a value. What both models have is named once."""
    lines = {name: f["line"] for name, f in findings.items() if f.get("line") and f.get("value") is not None}
    said, before = [], ""
    for name, (measure, model) in _together(lines).items():
        named = model if model and measure == before else lines[name]
        said.append(f"{named} {findings[name]['value']:.4g}")
        before = measure
    return ", ".join(said)


def columns_of(members: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Finding -> head of its column, of the columns that somebody has. One of both models together is left out where all
    that have it have one of each model as well."""
    found = {name: head for member in members for name, head in member["columns"].items()}
    names = {head: name for name, head in found.items()}
    for head, name in names.items():
        each = [names.get(f"{head} {role}") for role in ROLES]
        if all(one in member["metrics"] for one in each for member in members if name in member["metrics"]):
            del found[name]
    return {name: found[name] for name in _together(found)}


def _together(words: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Name -> measure and model of its words, no model where these name none; what is measured of both models stands
    together, where the first of them stood."""
    groups: dict[Any, dict[str, tuple[str, str]]] = {}
    for name, said in words.items():
        measure, _, model = said.rpartition(" ")
        whole, parted = (measure, (measure, model)) if model in ROLES else ((name,), (said, ""))
        groups.setdefault(whole, {})[name] = parted
    return {name: parted for group in groups.values() for name, parted in group.items()}
