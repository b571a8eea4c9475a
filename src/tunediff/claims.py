"""Published claims -> verdicts: what somebody reported, held against what a run found.

A claim is of one number, its effect: a finding, less another one or a number that it is held against. Its interval decides, as in
tests of minimal effects and of equivalence (Lakens, Scheel and Isager 2018, AMPPS 1:259), by one rule:

    above   the effect is larger than `least`            reproduced     the whole interval lies where the claim says
    below   it is smaller than -`least`                  contradicted   the whole interval lies elsewhere
    near    it is within `least` of `expected`           underpowered   it reaches into both, or there is none

Not applicable is a claim whose finding is not there, whose models or budget are not those it was made of (`only`), or whose control
does not hold: whatever its number, it then says nothing. What is claimed has a digest, which is written before anything is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tunediff.shapes import Finding, Refused, Table

REPRODUCED, CONTRADICTED, UNDERPOWERED, NOT_APPLICABLE = "reproduced", "contradicted", "underpowered", "not applicable"
VERDICTS = (REPRODUCED, CONTRADICTED, UNDERPOWERED, NOT_APPLICABLE)
AS_NUMBERS = {REPRODUCED: 1, UNDERPOWERED: 0, CONTRADICTED: -1}  # for what plots numbers alone
RELATIONS = ("above", "below", "near")
# how much a published value bears: in the source's own table or text, read off a figure, in its public code, told by somebody
# else, worked out from others, or said here of what the field holds
TRUSTS = ("table", "text", "figure", "code", "second_hand", "derived", "field")
ENDS = ("lowest", "highest")  # members of a sweep by a numeric key
WORDS = ("says", "source", "published", "trust", "relation", "elsewhere")  # what a claim has as words
Look = Callable[[Any], "Number | str"]  # a finding, or {finding, where} -> its number, or why there is none


@dataclass(frozen=True)
class Number:
    """A number with its 95 % interval, where it has one, and what that is over."""

    value: float
    low: float | None = None
    high: float | None = None
    over: str = ""

    def less(self, other: Number) -> Number:
        """The difference. Its interval takes both as independent, which is too wide for two conditions of the same problems."""
        value = self.value - other.value
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Number(value)
        low = value - math.hypot(self.value - self.low, other.high - other.value)
        high = value + math.hypot(self.high - self.value, other.value - other.low)
        return Number(value, low, high, self.over)


@dataclass(frozen=True)
class Condition:
    """A number that has to lie somewhere. `finding` and `against` name findings, or of a sweep {finding: ..., where: {key: value}};
    `against` may be a number. `least` is in units of the finding."""

    says: str
    finding: Any
    against: Any = 0.0
    relation: str = "above"
    least: float = 0.0
    expected: float | None = None


@dataclass(frozen=True)
class Claim(Condition):
    """A published result, and what would count as the same here.

    source     title, year or arXiv number, and section       published  the value as its source writes it
    trust      of TRUSTS                                      control    name -> Condition that has to hold besides
    only       setting -> the value or values that it was reported of; the claim is asked of no others
    elsewhere  why it cannot be asked of others
    learnt     verdict -> a paragraph; no part of the claim's digest
    """

    source: str = ""
    published: str = ""
    trust: str = "text"
    control: Mapping[str, Condition] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: str = ""
    learnt: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve digits that stand for all that decides the verdict."""
        said = {name: value for name, value in asdict(self).items() if name != "learnt"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def of_a_sweep(self) -> bool:
        """True where it compares members of a sweep."""
        asked = [one for part in (self, *self.control.values()) for one in (part.finding, part.against)]
        return any(isinstance(one, Mapping) for one in asked)


@dataclass(frozen=True)
class Verdict:
    """One claim, judged: the word of VERDICTS, the effect with its interval where there is one, and why."""

    name: str
    claim: Claim
    word: str
    why: str
    effect: Number | None = None
    held: Mapping[str, str] = field(default_factory=dict)  # control -> holds, fails, or why it is not told
    of: str = ""  # the members of a sweep
    sweep: str = ""  # the folder of its runs, where several are compared

    def row(self) -> dict[str, Any]:
        """Its row of the table `claims`."""
        claim, effect, known = self.claim, self.effect, _known(self.claim)
        ends = [end + known if math.isfinite(end) else None for end in _bounds(claim)]
        return {
            "claim": self.name,
            "says": claim.says,
            "source": claim.source,
            "trust": claim.trust,
            "published": claim.published,
            "asked": asked_in_words(claim),
            "asked_low": ends[0],
            "asked_high": ends[1],
            "expected": claim.expected if claim.expected is None else claim.expected + known,
            "effect": None if effect is None else effect.value + known,
            "low": None if effect is None or effect.low is None else effect.low + known,
            "high": None if effect is None or effect.high is None else effect.high + known,
            "over": "" if effect is None else effect.over,
            "verdict": self.word,
            "why": self.why,
            "control": "; ".join(f"{name}: {said}" for name, said in self.held.items()),
            "learnt": claim.learnt.get(self.word, ""),
            "of": self.of,
            "digest": claim.digest,
        }


# -- from settings ---------------------------------------------------------------------------------------------------


def claims_in(settings: Mapping[str, Any] | None) -> dict[str, Claim]:
    """The claims of a config by name. Raises Refused for a key that no claim has and for a value of another kind."""
    if not isinstance(settings or {}, Mapping):
        raise Refused(
            f"claims={settings!s:.60} is one value, where claims by name belong: claims.<name>.says=... and so on."
        )
    return {str(name): _claim(str(name), node) for name, node in (settings or {}).items() if node is not None}


def _claim(name: str, node: Any) -> Claim:
    place = f"claims.{name}"
    given = _checked(place, node, Claim)
    control = given.get("control") or {}
    if not isinstance(control, Mapping):
        raise Refused(f"{place}.control: a name for each condition, name: {{says: ..., finding: ...}}.")
    for name in ("only", "learnt"):
        if not isinstance(given.get(name, {}), Mapping):
            raise Refused(f"{place}.{name}={given[name]!r:.60}: it is a mapping, of settings or of verdicts.")
    inner = {str(key): _condition(f"{place}.control.{key}", one) for key, one in control.items() if one is not None}
    claim = Claim(**{**given, "control": inner})
    _sound(place, claim)
    if claim.trust not in TRUSTS:
        raise Refused(f"{place}.trust={claim.trust}: choose of {', '.join(TRUSTS)}.")
    if wrong := [word for word in claim.learnt if word not in VERDICTS]:
        raise Refused(f"{place}.learnt.{wrong[0]}: it stands under a verdict, of {', '.join(VERDICTS)}.")
    if not claim.source:
        raise Refused(f"{place}: it says no source. Name title, year or number, and section.")
    return claim


def _condition(place: str, node: Any) -> Condition:
    condition = Condition(**_checked(place, node, Condition))
    _sound(place, condition)
    return condition


def _checked(place: str, node: Any, kind: type) -> dict[str, Any]:
    known = {one.name for one in fields(kind)}
    if not isinstance(node, Mapping):
        raise Refused(f"{place}: it is no mapping, and has to say at least `says`, `source` and `finding`.")
    if wrong := [key for key in node if key not in known]:
        raise Refused(f"{place}.{wrong[0]}: a claim has no such word; it has {', '.join(sorted(known))}.")
    if node.get("expected") is not None and not node.get("relation"):
        raise Refused(
            f"{place}.expected={node['expected']}: relation=near asks for that number; above or below for `least` alone."
        )
    if missing := [key for key in ("says", "finding") if not node.get(key)]:
        raise Refused(f"{place}: it does not say `{missing[0]}`.")
    given = {str(key): value for key, value in node.items() if value is not None}
    if isinstance(number := given.get("published"), int | float):
        given["published"] = str(number)
    if wrong := [key for key in WORDS if not isinstance(given.get(key, ""), str)]:
        raise Refused(
            f"{place}.{wrong[0]}={given[wrong[0]]!r:.60}: it is a sentence, in quotes where YAML reads another thing."
        )
    return given


def _sound(place: str, condition: Condition) -> None:
    if condition.relation not in RELATIONS:
        raise Refused(f"{place}.relation={condition.relation}: choose of {', '.join(RELATIONS)}.")
    for name in ("least", "expected"):
        value = getattr(condition, name)
        if value is not None and not _is_number(value):
            raise Refused(f"{place}.{name}={value!r}: it is a number, in units of the finding.")
    if condition.least < 0:
        raise Refused(f"{place}.least={condition.least}: the smallest effect that counts is at least 0.")
    if condition.relation == "near" and condition.expected is None:
        raise Refused(f"{place}: near what? It has to say `expected`.")
    if condition.relation == "near" and not condition.least:
        raise Refused(f"{place}: how near? It has to say `least`, above 0.")
    for name in ("finding", "against"):
        one = getattr(condition, name)
        if isinstance(one, Mapping) and ({*one} - {"finding", "where"} or not isinstance(one.get("finding"), str)):
            raise Refused(f"{place}.{name}: of a sweep it is {{finding: <name>, where: {{key: value}}}}.")
        if isinstance(one, Mapping) and not isinstance(one.get("where") or {}, Mapping):
            raise Refused(f"{place}.{name}.where={one['where']!r:.60}: it is {{key: value}}, a key of the sweep.")
        if not isinstance(one, str | Mapping) and (name == "finding" or not _is_number(one)):
            raise Refused(
                f"{place}.{name}={one!r}: it is the name of a finding{'' if name == 'finding' else ', or a number'}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written(claims: Mapping[str, Claim], before: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The content of claims.json, written before a run measures anything: each claim with its digest and the time at which it
    was first written. One that reads otherwise in the file `before` is marked as changed since."""
    known, content = before.get("claims", {}), {}
    for name, claim in claims.items():
        said = json.loads(json.dumps(asdict(claim)))
        old = known.get(name, {})
        earlier = [one for one in (*old.get("earlier", []), old.get("digest")) if one not in (None, claim.digest)]
        since = old.get("written", now) if old.get("digest") == claim.digest else now
        content[name] = {**said, "digest": claim.digest, "written": since, "earlier": list(dict.fromkeys(earlier))}
    return {"claims": content}


def read(content: Mapping[str, Any]) -> dict[str, Claim]:
    """The claims of a claims.json. Raises Refused for one whose digest is not its own."""
    marks = ("digest", "written", "earlier")
    nodes = {
        name: {k: v for k, v in node.items() if k not in marks} for name, node in content.get("claims", {}).items()
    }
    claims = claims_in(nodes)
    for name, claim in claims.items():
        if claim.digest != content["claims"][name].get("digest"):
            raise Refused(f"claims.json: {name} is not as it was written before the run measured anything.")
    return claims


# -- the verdict -----------------------------------------------------------------------------------------------------


def judge(name: str, claim: Claim, looks: Sequence[Look], settings: Mapping[str, Any], of: str = "") -> Verdict:
    """Judges one claim by the findings of each seed: one number with its interval, or the mean of several seeds with Student's."""
    if unlike := next(_unlike(claim.only, settings), None):
        why = f"{unlike}{': ' + claim.elsewhere if claim.elsewhere else ''}"
        return Verdict(name, claim, NOT_APPLICABLE, why, of=of)
    effect = _effect(claim, looks)
    if isinstance(effect, str):
        return Verdict(name, claim, NOT_APPLICABLE, effect, of=of)
    word, why = _placed(claim, effect)
    held = {}
    for control, condition in claim.control.items():
        found = _effect(condition, looks)
        placed = (UNDERPOWERED, found) if isinstance(found, str) else _placed(condition, found)
        held[control] = {REPRODUCED: "holds", CONTRADICTED: "fails"}.get(placed[0], "is not told")
        held[control] += f" ({placed[1]})"
        if placed[0] == CONTRADICTED:
            word = NOT_APPLICABLE
            why = f"the control '{condition.says}' fails, so that the number says nothing; {why}"
        elif placed[0] == UNDERPOWERED and word in (REPRODUCED, CONTRADICTED):
            word, why = UNDERPOWERED, f"whether '{condition.says}' is not told: {placed[1]}"
    return Verdict(name, claim, word, why, effect, held, of)


def _unlike(only: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in only.items():
        allowed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if settings.get(key) not in allowed:
            yield f"reported of {key}={', '.join(map(str, allowed))}, and here it is {settings.get(key)}"


def _effect(condition: Condition, looks: Sequence[Look]) -> Number | str:
    found = []
    for look in looks:
        first = look(condition.finding)
        against = condition.against
        exact = float(against) if isinstance(against, int | float) else None
        second = look(against) if exact is None else Number(exact, exact, exact)
        for one in (first, second):
            if isinstance(one, str):
                return one
        assert isinstance(first, Number) and isinstance(second, Number)
        if not math.isfinite(first.value - second.value):
            return f"{condition.finding} less {condition.against} is no number"
        found.append(first.less(second))
    return found[0] if len(found) == 1 else over_seeds([one.value for one in found])


def over_seeds(values: Sequence[float]) -> Number:
    """The mean of at least two seeds with its 95 % interval, Student's t. Seeds that are all alike have none: a count that
    happened to be 0 three times is not 0 for sure."""
    if len({*values}) == 1:
        return Number(values[0], over=f"{len(values)} seeds, all alike")
    from scipy.stats import t as student  # which takes its time, and a command line is read without it

    middle = statistics.fmean(values)
    reach = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Number(middle, middle - reach, middle + reach, f"{len(values)} seeds")


def _known(condition: Condition) -> float:
    """The number that a finding is held against: effects are told as the finding itself then. 0 where that is a finding too."""
    return float(condition.against) if isinstance(condition.against, int | float) else 0.0


def _bounds(condition: Condition) -> tuple[float, float]:
    """The ends between which the effect has to lie."""
    if condition.relation == "near":
        assert condition.expected is not None
        return condition.expected - condition.least, condition.expected + condition.least
    return (condition.least, math.inf) if condition.relation == "above" else (-math.inf, -condition.least or 0.0)


def asked_in_words(condition: Condition) -> str:
    """The place where a finding has to lie: between two numbers, or above or below one."""
    ends = [end + _known(condition) + 0.0 for end in _bounds(condition) if math.isfinite(end)]
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if len(ends) == 2 else f"{condition.relation} {ends[0]:.4g}"


def _placed(condition: Condition, effect: Number) -> tuple[str, str]:
    """The word of the effect alone, with the sentence that says why."""
    lowest, highest = _bounds(condition)
    ends = [end for end in (lowest, highest) if math.isfinite(end)]
    asked = asked_in_words(condition)
    known = _known(condition)
    if effect.low is None or effect.high is None or not math.isfinite(effect.high - effect.low):
        missing = f"it is that of {effect.over}" if "alike" in effect.over else "several seeds give one"
        return UNDERPOWERED, f"{effect.value + known:.4g} has no interval, and {asked} is asked; {missing}"
    said = f"{effect.value + known:.4g} ({effect.low + known:.4g} to {effect.high + known:.4g}), {asked} is asked"
    if lowest < effect.low and effect.high < highest:
        return REPRODUCED, said
    if effect.high < lowest or effect.low > highest or effect.low == effect.high:
        return CONTRADICTED, said
    gap = min(abs(effect.value - end) for end in ends)
    # the wider side decides: a half-width shrinks as the root of the sample
    reach = max(effect.value - effect.low, effect.high - effect.value)
    if gap < 1e-9 * max(1.0, abs(effect.value)):  # but for rounding
        return UNDERPOWERED, f"{said}; it lies at the bound itself, and no sample would tell"
    return UNDERPOWERED, f"{said}; {_sample(effect, (reach / gap) ** 2)} would tell, were the effect what it is here"


def _sample(effect: Number, times: float) -> str:
    first, _, unit = effect.over.partition(" ")
    if unit == "seeds" and first.isdigit():
        return f"about {max(int(first) + 1, math.ceil(int(first) * times)):,} seeds"
    return f"about {times:.2g} times as many {effect.over or 'examples'}"


# -- of one run ------------------------------------------------------------------------------------------------------


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


# -- of several ------------------------------------------------------------------------------------------------------


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
                numbers = [one for one in there if _is_number(one)]
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
