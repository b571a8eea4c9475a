"""(answer, gold) as text -> equal or not, and the rule that decided. Algebra is asked of a function that is handed in.

The rules stand before the algebra for two reasons: most pairs are two numbers, and a computer algebra system reads some
answers otherwise than a person: `(2, 4)` is a pair or an open interval and never the set {2, 4}; `52_8` is a numeral;
`4.5e33` is one number; `50%` answers both 50 and 0.5. An answer is equal if a strict marker would give the point.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from tunediff.benchmarks import notation, units
from tunediff.benchmarks.answers import truth
from tunediff.benchmarks.choices import option
from tunediff.benchmarks.notation import Number
from tunediff.benchmarks.relations import named, of_one_unknown, region, residues, sides

COMPARED = {
    "literal": "the same text, once both are spelled alike",
    "number": "two exact numbers; a decimal of six digits or more may be the gold one, rounded",
    "tolerance": "two numbers, one of them rounded, within the relative tolerance of the task",
    "parts": "lists, sets, tuples or intervals, part by part",
    "word": "a word or an option",
    "symbolic": "math-verify's algebra",
    "unlike": "two units, a word against a formula, a tuple against a set, prose against a number",
}
ROUNDED_DIGITS = 6  # what programs print of a third

Symbolic = Callable[[str, str, float | None], bool]


def compare(answer: str, gold: str, *, kind: str, tolerance: float | None, symbolic: Symbolic) -> tuple[bool, str]:
    """True where answer and gold are equal, and the rule of COMPARED that decided."""
    if kind == "boolean":
        return truth(answer) == truth(gold), "word"
    if kind == "choice":
        return option(answer) == option(gold), "word"
    if max(len(answer), len(gold)) > notation.LONGEST:
        return (True, "literal") if _squeezed(answer) == _squeezed(gold) else (False, "unlike")
    if units.unlike(answer, gold):
        return False, "unlike"
    spelled = [notation.plain(notation.unitless(text)) for text in (answer, gold)]
    return _equal(spelled[0], spelled[1], tolerance, symbolic)


def _equal(answer: str, gold: str, tolerance: float | None, symbolic: Symbolic) -> tuple[bool, str]:
    if _squeezed(answer) == _squeezed(gold):
        return True, "literal"
    if not answer or not gold:
        return False, "unlike"
    if is_word(gold):
        return _same_word(answer, gold), "word"
    if re.fullmatch("[A-J]", gold):
        return bool(
            re.fullmatch(rf"(?:(?i:option|choice) )?\(?{gold}\)?|(?:\({gold}\)|{gold}[.:)]) (?!and\b|or\b).+", answer)
        ), "word"
    if labelled := re.fullmatch(r"\([A-J]\)\s*(.+)", answer):
        return _equal(labelled[1], gold, tolerance, symbolic)
    if r"\approx" in answer + gold:
        exact = (sides(gold) or [""])[0]
        return next(
            (same for side in sides(answer) if (same := _equal(side, exact, tolerance, symbolic))[0]), (False, "unlike")
        )
    if residues(answer) or residues(gold):
        return _same_residues(answer, gold, tolerance, symbolic)
    given, asked = region(answer), region(gold)
    if given and asked and given.unknown and asked.unknown and given.unknown != asked.unknown:
        return False, "unlike"
    if given or asked:
        answer, gold = given.intervals if given else answer, asked.intervals if asked else gold
    return _same_value(answer, gold, tolerance, symbolic)


def _same_value(answer: str, gold: str, tolerance: float | None, symbolic: Symbolic) -> tuple[bool, str]:
    if _squeezed(answer) == _squeezed(gold):
        return True, "literal"
    answer, gold = _without_name(answer, gold)
    shape, other = _shape(gold), _shape(answer)
    bare = re.sub(r"_\{[^{}]*\}", "", answer)  # the k = 1 of a sum makes no equation
    if (
        "=" in bare
        and "=" not in gold
        and not other
        and re.search(r"[a-zA-Z]", re.sub(r"\\[a-z]+", "", bare.partition("=")[0]))
    ):
        if bare.count("=") == 1:
            return False, "unlike"  # an equation in its variables, where its right side alone is asked for
        answer = answer.rpartition("=")[2].strip()
        other = _shape(answer)
    expected, given = notation.number(gold, letters=False), notation.number(answer)
    if expected and not given and (inner := notation.brackets(answer)) and inner.opening == "(":
        given = notation.number(inner.inside)  # (1,234) where a number is asked for
    if expected and given:
        return _same_number(given, expected, tolerance)
    if shape or other:
        return _same_parts(other, shape, answer, gold, tolerance, symbolic)
    if re.search(r"\d [a-z]{2,} \d", answer):  # 10 hours 30 minutes
        return False, "unlike"
    return symbolic(_without_unit(answer), _without_unit(gold), tolerance), "symbolic"


def _same_residues(answer: str, gold: str, tolerance: float | None, symbolic: Symbolic) -> tuple[bool, str]:
    """2 (mod 5) answers 2, and 7 (mod 5) too where the classes are asked for; 2 alone is no class."""
    given, asked = residues(answer), residues(gold)
    if given and asked:
        if given.modulus != asked.modulus:
            return False, "unlike"
        if given.modulus.isdigit() and int(given.modulus):
            classes = [
                [_class(part, int(one.modulus)) for part in notation.parts(one.classes)] for one in (given, asked)
            ]
            return None not in classes[0] and sorted(classes[0], key=str) == sorted(classes[1], key=str), "number"
        return _equal(given.classes, asked.classes, tolerance, symbolic)
    return _equal(given.classes, gold, tolerance, symbolic) if given else (False, "unlike")


def _class(text: str, modulus: int) -> Fraction | None:
    number = notation.number(text)
    return number.value % modulus if number else None


# -- numbers


def _same_number(given: Number, expected: Number, tolerance: float | None) -> tuple[bool, str]:
    """A numeral with its base is equal by its digits where one side leaves the base out, for the problem asks for that
    base; 42_{10} and 52_8 are one value. The percent sign is a hundredth, or the unit that the problem asks for."""
    if given.base and expected.base and given.base != expected.base:
        return _in_ten(given) == _in_ten(expected), "number"
    pairs = [(given.value, expected.value)]
    if given.percent and not expected.percent:
        pairs.append((given.value / 100, expected.value))
    if expected.percent and not given.percent:
        pairs.append((given.value, expected.value / 100))
    if any(one == other or _rounded_alike(one, other, given) for one, other in pairs):
        return True, "number"
    if tolerance is not None and (given.rounded or expected.rounded):
        return any(abs(one - other) <= Fraction(tolerance) * abs(other) for one, other in pairs), "tolerance"
    return False, "number"


def _in_ten(number: Number) -> int | None:
    digits, base = str(number.value), number.base or 10
    return int(digits, base) if all(int(digit) < base for digit in digits) else None


def _rounded_alike(given: Fraction, expected: Fraction, written: Number) -> bool:
    return (
        written.rounded
        and given != 0
        and abs(given - expected) * 10**ROUNDED_DIGITS <= abs(expected) * 2
        and expected.denominator > 1
    )


# -- words


def is_word(text: str) -> bool:
    return bool(re.fullmatch(r"\(?[A-Za-z]\)|[A-Za-z]{2,}(?: [A-Za-z]+)*", text)) and "=" not in text


def _same_word(answer: str, gold: str) -> bool:
    """The word, or a sentence of which it is one word and nothing denies it."""
    letter = re.fullmatch(r"\(?([A-Za-z])\)", gold)
    if letter:
        return option(answer) == letter[1].upper()
    words = [re.sub(r"[^a-z ]", "", re.sub(r"[\s_]+", " ", text.lower())).strip() for text in (answer, gold)]
    said, asked = (re.sub(r"^(?:an?|the) ", "", text) for text in words)
    if said == asked:
        return True
    denied = re.search(r"\b(?:not|neither|nor|never|or|cannot)\b|n't\b", answer.lower())
    return not denied and len(re.findall(rf"\b{re.escape(asked)}\b", said)) == 1 and len(said.split()) <= 25


# -- several parts

LISTED, SET, UNION = "list", "set", "union"


def _shape(text: str) -> tuple[str, list[str]] | None:
    """The kind of container and its parts. A tuple or interval is named by its two brackets."""
    if len(regions := re.split(r"\\cup(?![a-z])", text)) > 1:
        return UNION, [region.strip() for region in regions]
    if held := notation.brackets(text):
        inside = notation.parts(held.inside)
        if held.opening == "\\{":
            return SET, _both_signs(inside)
        if len(inside) > 1:
            return held.opening + held.closing, inside
    listed = _both_signs(of_one_unknown(notation.parts(text)))
    return (LISTED, listed) if len(listed) > 1 else None


def _same_parts(
    answered, expected, answer: str, gold: str, tolerance: float | None, symbolic: Symbolic
) -> tuple[bool, str]:
    if not (answered and expected):
        one, other = (re.sub(r"(?<![\d,])(\d{1,3}),(\d{3})(?![\d,])", r"\1\2", text) for text in (answer, gold))
        if (one, other) != (answer, gold) and LISTED in (expected or answered):  # 1,600\\pi is no list
            return _equal(one, other, tolerance, symbolic)
        alone = expected or answered
        if answered and " or " in answer:  # 33/100, or 0.33
            return symbolic(answer, gold, tolerance), "symbolic"
        if alone[0] == SET and len(alone[1]) == 1:  # {5} and 5
            one, other = (alone[1][0], gold) if answered else (answer, alone[1][0])
            return _equal(one, other, tolerance, symbolic)[0], "parts"
        return False, "unlike"
    (kind, given), (asked, wanted) = answered, expected
    free = {LISTED, SET}
    if kind != asked and not {kind, asked} <= free:
        return False, "unlike"
    if len(given) != len(wanted):
        return False, "parts"
    if asked in free | {UNION}:
        return _matched(given, wanted, tolerance, symbolic), "parts"
    return all(_equal(one, other, tolerance, symbolic)[0] for one, other in zip(given, wanted, strict=True)), "parts"


def _matched(given: list[str], wanted: list[str], tolerance: float | None, symbolic: Symbolic) -> bool:
    """True where every wanted part has a given one of its own; order does not matter."""
    left = sorted(given, key=len)
    for part in wanted:
        same = next((one for one in left if _squeezed(one) == _squeezed(part)), None)
        if same is None:
            same = next((one for one in left if _equal(one, part, tolerance, symbolic)[0]), None)
        if same is None:
            return False
        left.remove(same)
    return True


def _both_signs(parts: list[str]) -> list[str]:
    """`1 \\pm \\sqrt{5}` is two answers."""
    found = []
    for part in parts:
        if part.count("\\pm") == 1:
            found += [re.sub(r"^\s*\+", "", part.replace("\\pm", sign)).strip() for sign in "+-"]
        else:
            found.append(part)
    return found


# -- text


def _squeezed(text: str) -> str:
    return re.sub(r"\s+|\\!|(?<=[_^])\{(\w)\}", lambda found: found[1] or "", text)


def _without_unit(text: str) -> str:
    """`20000/\\pi square meters` -> `20000/\\pi`."""
    found = re.fullmatch(r"(.*[\d})i])\s+([a-z]{2,}[a-z /^\d]*)", text)
    return text if not found or found[2].split()[0] in notation.FUNCTIONS else found[1]


def _without_name(answer: str, gold: str) -> tuple[str, str]:
    """`x = 5` and `5` are one answer, and so are `f(x) = x` and `f(n) = n`; `x = 5` and `y = 5` are two, and the line
    `y = 2x` may be given as `2x - y = 0`."""
    given, asked = named(answer), named(gold)
    if given and asked:
        if given.variable and asked.variable and given.name[0] == asked.name[0]:
            own = rf"(?<![A-Za-z\\]){given.variable}(?![A-Za-z])"
            return re.sub(own, asked.variable, given.value), asked.value
        return (given.value, asked.value) if _squeezed(given.name) == _squeezed(asked.name) else (answer, gold)
    return (
        given.value if given and "=" not in gold else answer,
        asked.value if asked and "=" not in answer else gold,
    )
