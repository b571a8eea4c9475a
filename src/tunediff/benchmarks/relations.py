"""An answer that is written as a relation -> what it says: the name and the value of `x = 5`, the sides of
`\\sqrt{2} \\approx 1.41`, the class of `x \\equiv 2 \\pmod 5`, the intervals of `2 \\le x < 5`.

    "2 \\le x < 5" -> x, "[2,5)"      "x \\ne 3" -> x, "(-\\infty,3) \\cup (3,\\infty)"      "x \\equiv 2 \\pmod{5}" -> "2", "5"

Takes text in the one spelling of notation.plain and computes nothing but the order of numbers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tunediff.benchmarks import notation


class Named(NamedTuple):
    name: str
    variable: str | None  # of a function
    value: str


class Region(NamedTuple):
    unknown: str
    intervals: str


class Residues(NamedTuple):
    classes: str
    modulus: str


def named(text: str) -> Named | None:
    """`x = 5`, `f(t) = t + 1`, `(x,y) = (2,3)` and `x \\in (3,4]`, but no equation of two sides."""
    if len(re.findall(r"=|\\in(?![a-z])", text)) != 1:
        return None
    turned = re.fullmatch(r"(.*\S.*)=\s*([a-z])", text)
    if turned and not re.fullmatch(r"\s*[A-Za-z]\s*", turned[1]):  # 2x + 1 = y
        return Named(turned[2], None, turned[1].strip())
    found = _NAMED.fullmatch(text)
    return Named(re.sub(r"\s", "", found["name"]), found["variable"], found["value"]) if found else None


def of_one_unknown(parts: list[str]) -> list[str]:
    """The values of `x = 1`, `x = -2` or `x_1 = 1`, `x_2 = -2`; other parts as they are."""
    found = [named(part) for part in parts]
    names = {re.sub(r"_.*", "", each.name) for each in found if each}
    return [each.value for each in found if each] if len(names) == 1 and all(found) else parts


def sides(text: str) -> list[str]:
    """The parts before and behind each `\\approx`."""
    return [side.strip() for side in re.split(r"\\approx(?![a-z])", text) if side.strip()]


def residues(text: str) -> Residues | None:
    """The classes of one congruence."""
    found = _CONGRUENCE.fullmatch(text) if text.count("mod") == 1 else None
    return Residues(found["classes"].strip(), found["modulus"].strip()) if found else None


def region(text: str) -> Region | None:
    """The region of one real unknown that inequalities bound."""
    if not re.search(r"[<>]|\\(?:le|ge|ne|in)(?![a-z])|\\mathbb", text):
        return None
    if of_set := re.fullmatch(rf"\\\{{\s*{_UNKNOWN}(?:\s*\\in\s*{_REAL})?\s*(?:\\mid|\\colon|[|:])(.*)\\\}}", text):
        return region(of_set[2].strip())
    if size := re.fullmatch(rf"\|{_UNKNOWN}\|\s*(<|>|\\le|\\ge)(?![a-z])\s*(\d+)", text):  # |x| < 3
        unknown, sign, end = size.groups()
        joint = r" and " if sign in _BELOW else r" or "
        text = f"{unknown} {sign} {end}{joint}{unknown} {_OTHER[sign]} -{end}"
    text = re.sub(rf"^{_UNKNOWN}\s*\\in\s*{_REAL}\s*,\s*|\s*,\s*{_UNKNOWN}\s*\\in\s*{_REAL}$", "", text)
    if member := re.fullmatch(rf"{_UNKNOWN}\s*\\in\s*([(\[].*[)\]])", text):
        return Region(member[1], member[2])
    if reals := re.fullmatch(
        rf"(?:{_UNKNOWN}\s*\\in\s*)?{_REAL}\s*(?:(?:\\setminus|\\backslash|-)\s*\\\{{(.*)\\\}})?", text
    ):
        without = _pieces([], [], notation.parts(reals[2] or ""))
        return Region(reals[1] or "", without) if without else None
    unknowns, found = set(), []
    for piece in re.split(r"\bor\b|\\(?:cup|lor|vee)(?![a-z])", text):
        bounded = _bounded(piece)
        if bounded is None:
            return None
        unknowns.add(bounded.unknown)
        found.append(bounded.intervals)
    return Region(unknowns.pop(), r" \cup ".join(found)) if len(unknowns) == 1 else None


_UNKNOWN = r"([A-Za-z]|\\(?:theta|alpha|beta|lambda|phi|mu|omega))"
_REAL = r"(?:\\mathbb\s*\{?R\}?|\\R(?![a-z]))"
_NAMED = re.compile(
    r"(?P<name>\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)|[A-Za-z]\w*'?(?:_\{?\w+(?: ?\w+)*\}?)?(?:\^\{-1\})?\s*(?:\((?P<variable>[a-z])\))?"
    r"|\\[a-z]+(?:\s*[A-Z_{}\d]+)*)\s*(?:=|\\in(?![a-z]))\s*(?P<value>.+)"
)
_CONGRUENCE = re.compile(
    r"(?:[^=]*?(?:\\equiv|=))?(?P<classes>[^=]+?)\(?\s*\\?(?:p|b)?mod(?:ulo)?(?![a-z])\s*[({]?\s*(?P<modulus>\w+)\s*[)}]*"
)
_BELOW = {"<": ("(", ")"), r"\le": ("[", "]")}
_OTHER = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_TURNED = {">": "<", r"\ge": r"\le"}


def _bounded(text: str) -> Region | None:
    """The intervals of inequalities of one unknown that hold together."""
    lower, upper, without = [], [], []
    unknowns = set()
    for part in re.split(r"\band\b|\\(?:land|wedge)(?![a-z])|,", text):
        chain = [each.strip() for each in re.split(r"(<|>|\\(?:le|ge|ne)(?![a-z]))", part)]
        if len(chain) == 1 and without and chain[0]:
            without.append(chain[0])  # x \ne 1, 2
            continue
        if chain[1::2] and all(sign in _TURNED for sign in chain[1::2]):
            chain = [_TURNED.get(each, each) for each in reversed(chain)]
        places = [place for place in range(0, len(chain), 2) if re.fullmatch(_UNKNOWN, chain[place])]
        if len(chain) not in (3, 5) or len(places) != 1 or (len(chain) == 5 and places != [2]):
            return None
        (place,) = places
        unknowns.add(chain[place])
        if chain[1] == r"\ne":
            without.append(chain[2 - place])
            if len(chain) > 3:
                return None
            continue
        if set(chain[1::2]) - set(_BELOW):
            return None
        if place:
            lower.append(_BELOW[chain[place - 1]][0] + chain[place - 2])
        if place + 1 < len(chain):
            upper.append(chain[place + 2] + _BELOW[chain[place + 1]][1])
    if len(unknowns) != 1 or any(
        re.search(rf"(?<![A-Za-z\\]){re.escape(min(unknowns))}(?![A-Za-z])", each) for each in lower + upper
    ):
        return None
    intervals = _pieces(lower, upper, without)
    return Region(unknowns.pop(), intervals) if intervals else None


def _pieces(lower: list[str], upper: list[str], without: list[str]) -> str | None:
    """The line from a lower to an upper bound, cut at the points that are left out, in their order."""
    if len(lower) > 1 or len(upper) > 1:
        return None
    without = [
        sign + each.removeprefix(r"\pm").strip() for each in without for sign in (["-", ""] if r"\pm" in each else [""])
    ]
    values = [notation.number(each) for each in without]
    if len(without) > 1 or (without and (lower or upper)):
        ends = [notation.number(each.strip("()[]")) for each in lower + upper]
        if not all(values) or not all(ends):
            return None
        order = sorted(range(len(without)), key=lambda n: values[n].value)  # pyright: ignore[reportOptionalMemberAccess]
        without = [without[n] for n in order]
        inner = [values[n].value for n in order]  # pyright: ignore[reportOptionalMemberAccess]
        if (lower and inner[0] <= ends[0].value) or (upper and inner[-1] >= ends[-1].value):  # pyright: ignore[reportOptionalMemberAccess]
            return None
    begins = [(lower or [r"(-\infty"])[0], *(f"({point}" for point in without)]
    ends = [*(f"{point})" for point in without), (upper or [r"\infty)"])[0]]
    return r" \cup ".join(f"{begin},{end}" for begin, end in zip(begins, ends, strict=True))
