"""The findings of a run, or of runs side by side -> the verdicts on what they claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunediff.claims.claim import CONTRADICTED, REPRODUCED, UNDERPOWERED, Claim, is_number
from tunediff.claims.verdict import Look, Number, Verdict, judge
from tunediff.shapes import Finding, Table

AS_NUMBERS = {REPRODUCED: 1, UNDERPOWERED: 0, CONTRADICTED: -1}  # for what plots numbers alone
ENDS = ("lowest", "highest")  # members of a sweep by a numeric key


def of_run(
    claims: Mapping[str, Claim], findings: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[Verdict]:
    """Judges the claims of a run by its findings, but for those that compare members of a sweep."""

    def look(asked: Any) -> Number | str:
        found = findings.get(asked)
        if found is None or found.get("value") is None:
            return f"no number {asked} was found here"
        return Number(found["value"], found.get("low"), found.get("high"), found.get("over", ""))

    return [judge(name, claim, [look], settings) for name, claim in claims.items() if not claim.of_a_sweep]


def found_in(verdicts: Sequence[Verdict]) -> Iterator[Finding | Table]:
    """Yields two findings for each verdict, its effect where there is a number and its word as one, and the table `claims`."""
    for verdict in verdicts:
        said = "1 reproduced, 0 underpowered, -1 contradicted, no value where it is not applicable"
        meaning = f"{verdict.word}: {verdict.claim.says} ({said})"
        yield Finding(f"claims/{verdict.name}/verdict", AS_NUMBERS.get(verdict.word), meaning=meaning)
        if verdict.effect is not None:
            effect = verdict.effect
            meaning = f"{verdict.word}: {verdict.claim.says} ({verdict.claim.source}); {verdict.why}"
            over = effect.over or ("examples" if effect.low is not None else "")
            yield Finding(f"claims/{verdict.name}/effect", effect.value, effect.low, effect.high, meaning, over=over)
    yield Table.of("claims", [verdict.row() for verdict in verdicts])


def in_words(verdicts: Sequence[Verdict]) -> str:
    """The verdicts for a terminal, a line each; empty without any."""
    return "\n".join(f"{one.word:14}  {one.name}{f' ({one.of})' if one.of else ''}: {one.why}" for one in verdicts)


def of_members(members: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Judges the claims of runs side by side. Members are records with `claims`, `keys` (key -> value that tells them apart),
    `metrics` (finding -> [value, low, high, over]), `settings`, and the `sweep` they belong to. Seeds are repeats of one another."""
    verdicts: list[Verdict] = []
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        groups.setdefault(str(member.get("sweep", "")), []).append(member)
    for sweep, group in groups.items():
        differ = {
            key
            for one in group
            for key in one["keys"]
            if any(other["keys"].get(key) != one["keys"][key] for other in group)
        }
        group = [
            {**member, "keys": {key: member["keys"].get(key) for key in member["keys"] if key in differ}}
            for member in group
        ]
        said = {(name, claim.digest): claim for member in group for name, claim in member["claims"].items()}
        for (name, _), claim in said.items():
            mine = [m for m in group if name in m["claims"] and m["claims"][name].digest == claim.digest]
            parts = {"": mine} if claim.of_a_sweep else _apart(mine)
            for of, some in parts.items():
                seeds: dict[str, list[Mapping[str, Any]]] = {}
                for member in some:
                    seeds.setdefault(str(_seed(member)), []).append(member)
                looks = [_look_among(each) for each in seeds.values()]
                verdicts.append(replace(judge(name, claim, looks, some[0]["settings"], of), sweep=sweep))
    return verdicts


def _seed(member: Mapping[str, Any]) -> Any:
    return tuple((key, value) for key, value in member["keys"].items() if key.rpartition(".")[2] == "seed")


def _apart(members: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Members by all of their keys but the seeds."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        keys = [f"{k}={v}" for k, v in member["keys"].items() if k.rpartition(".")[2] != "seed" and v is not None]
        parts.setdefault(" ".join(keys), []).append(member)
    return parts


def _look_among(members: Sequence[Mapping[str, Any]]) -> Look:
    def look(asked: Any) -> Number | str:
        name, where = (asked["finding"], asked.get("where") or {}) if isinstance(asked, Mapping) else (asked, {})
        some = list(members)
        for key, value in where.items():
            there = [member["keys"].get(key) for member in some]
            if value in ENDS:
                numbers = [one for one in there if is_number(one)]
                if not numbers:
                    return f"no member has a number as its {key}"
                value = max(numbers) if value == "highest" else min(numbers)
            some = [member for member, one in zip(some, there, strict=True) if one == value]
        told = " ".join(f"{key}={value}" for key, value in where.items())
        if len(some) != 1:
            return f"{len(some)} members are {told or 'there'}, and one is asked for"
        found = some[0]["metrics"].get(name)
        if found is None or found[0] is None:
            return f"no number {name} was found{' with ' + told if told else ''}"
        return Number(found[0], *found[1:3], *(found[3:4] or [""]))

    return look
