"""The claims of a config: what was published, by whom, and what would count as the same here. Written down before anything is measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tunediff import folders
from tunediff.shapes import Refused

REPRODUCED, CONTRADICTED, UNDERPOWERED, NOT_APPLICABLE = "reproduced", "contradicted", "underpowered", "not applicable"
VERDICTS = (REPRODUCED, CONTRADICTED, UNDERPOWERED, NOT_APPLICABLE)
RELATIONS = ("above", "below", "near")
# how much a published value bears: in the source's own table or text, read off a figure, in its public code, told by somebody
# else, worked out from others, or said here of what the field holds
TRUSTS = ("table", "text", "figure", "code", "second_hand", "derived", "field")
WORDS = ("says", "source", "published", "trust", "relation", "elsewhere")  # what a claim has as words


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
        if value is not None and not is_number(value):
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
        if not isinstance(one, str | Mapping) and (name == "finding" or not is_number(one)):
            raise Refused(
                f"{place}.{name}={one!r}: it is the name of a finding{'' if name == 'finding' else ', or a number'}."
            )


def is_number(value: Any) -> bool:
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


def kept_in(folder: Path) -> tuple[dict[str, Claim], dict[str, list[str]]]:
    """The claims that a run wrote before it measured anything, and the digests that those which read otherwise then had when a run of
    the same study first began; neither where it wrote none. Raises Refused where claims.json is not as it was written."""
    content = folders.read_json(folder / "claims.json")
    with folders.as_written(folder / "claims.json"):
        earlier = {name: node["earlier"] for name, node in content.get("claims", {}).items() if node["earlier"]}
        return read(content), earlier
