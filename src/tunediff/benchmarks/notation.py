"""One answer as text, in LaTeX, plain or Python spelling -> one normal spelling, its parts, its exact number.

    r"\\dfrac12" -> r"\\frac{1}{2}"      "1{,}234 dollars" -> 1234      "4.5e33" -> 45 * 10^32      "(1, 2]" -> ( 1 2 ]

Numbers are fractions, so that nothing is rounded here. It does not know which of two answers is the gold one, and it
evaluates nothing that is more than a number.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from tunediff.benchmarks.languages import FOREIGN
from tunediff.benchmarks.magnitudes import UNKNOWN, in_digits

LONGEST = 2000  # characters of an answer; a longer one is equal to the same text alone
LARGEST_EXPONENT = 1000  # of ten; beyond it a number is left to the symbolic comparison, which has a time limit

FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp sqrt pi det max min gcd lcm".split()
# One letter after a number is a unit only if it is one of these; 2n and 3x are products.
UNIT_LETTERS = "mgshLJNKCVWA"
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words after a formula that say more than its unit.
NO_UNITS = (
    set(
        "and or to x base if when where for is are was not mod even odd than percent cent am pm a.m p.m only iff".split()
    )
    | set(SCALES)
    | set(FUNCTIONS)
)


class Number(NamedTuple):
    """An exact value and how it was written."""

    value: Fraction
    percent: bool = False  # with a percent sign; the value is that of the digits
    base: int | None = None  # of the subscript; the value is that of the digits read in base ten
    rounded: bool = False  # written with a decimal point or an exponent, so digits may have been left out


class Brackets(NamedTuple):
    opening: str
    inside: str
    closing: str


def plain(text: str) -> str:
    """One spelling of what is written in several: no dollar signs, spacing commands, text commands or short
    fractions."""
    text = text.strip()
    for old, new in _CHARACTERS.items():
        text = text.replace(old, new)
    text = _undressed(text) if len(text) <= LONGEST else text
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])\.?", "", text)
    text = re.sub(r"(?<=\d)(?:,\s*\\!\s*|\{,\})(?=\d{3}(?!\d))", "", text).replace("{,}", ",")
    text = re.sub(r"(?<=\d)(?<!\\)\\[,;: ]\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\\)\\(?:[,;:! ]|q?quad(?![a-z]))|~", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|mbox|hbox|mathrm|mathbf|operatorname|rm)\s*\{([^{}]*)\}", _spaced, text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d)\s*\^\s*\{?\s*(?:st|nd|rd|th)\s*\}?", "", text)
    text = re.sub(r"\\degree(?![a-z])|\^\s*\{?\s*\\circ\s*\}?|°|\bdegrees?\b", "", text)
    text = re.sub(r"\\(?:geqslant|geq)(?![a-z])", r"\\ge", re.sub(r"\\(?:leqslant|leq)(?![a-z])", r"\\le", text))
    text = _from_python(text)
    text = _SCALED.sub(_written_out, text)
    text = _REPEATING.sub(_repeated, re.sub(r"(?<=\d)\s*(?:\.{3}|…)", r"\\dots", text))
    text = re.sub(r"\s+", " ", text).strip().rstrip(".;,:").strip()
    return text[1:-1].strip() if text[:1] == "{" and argument(text, 0)[1] == len(text) else text


def argument(text: str, place: int) -> tuple[str | None, int]:
    """The argument of the command before `place`, and where it ends: balanced braces, or the next word."""
    if not text.startswith("{", place):
        word = re.compile(r"-?(?:\\[a-zA-Z]+|[\w.,/]*\w)").match(text, place)
        return (word[0], word.end()) if word else (None, place)
    end = _closings(text).get(place)
    return (None, place) if end is None else (text[place + 1 : end - 1], end)


@functools.lru_cache(maxsize=4)
def _closings(text: str) -> dict[int, int]:
    """The place of each opening brace -> the place behind the one that closes it; read once for a whole text."""
    found, opened = {}, []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            found[opened.pop()] = brace.end()
    return found


def unitless(text: str) -> str:
    """LaTeX without the unit behind it: `13\\sqrt3\\text{ m}^2` -> `13\\sqrt3`. A letter that is not set as text is none."""
    text = _SCALED.sub(_written_out, text)
    if FOREIGN.search(text):
        text = in_digits(text)
        if UNKNOWN.search(text):
            return text
        text = re.sub(rf"(?<=[\d)}}$])\s*(?:\\text\s*\{{)?\s*{FOREIGN.pattern}+\s*\}}?$", "", text)
    found = _UNIT.fullmatch(text.strip(" $."))
    if not found or re.search(
        rf"\\(?:{'|'.join(set(FUNCTIONS) - {'pi'})}|cdot|times|cup|in|pm)$|[_^]$", found["body"].rstrip()
    ):
        return text
    if not re.search(r"\w|\\pi", re.sub(r"\\(?!pi\b)[A-Za-z]+", "", found["body"])):
        return text
    words = re.findall(r"[A-Za-z.]+", re.sub(r"\\[A-Za-z]+", " ", found["unit"]))
    return text if not words or any(word.lower().rstrip(".") in NO_UNITS for word in words) else found["body"]


def number(text: str, *, letters: bool = True) -> Number | None:
    """The number that a plain text is, with a unit after it or none. `letters`: one letter may be such a unit."""
    text = re.sub(r"^([-+]?)\s*(?:USD|[€£¥])\s*", r"\1", text)
    text = text.replace("{-", "-").replace("}", "") if re.fullmatch(r"\{-?[\d.]+\}", text) else text
    based = re.fullmatch(r"\(?([\da-zA-Z]*\d[\da-zA-Z]*)\)?(?:_\{?\s*(\d+|[a-z]+)\s*\}?|\s+(?:in )?base\s+(\w+))", text)
    if based:
        return _in_base(based[1], based[2] or based[3])
    percent = re.search(r"\s*(?:%|\bper ?cent\b)\s*$", text)
    text = text[: percent.start()] if percent else text
    unit = re.match(r"([^A-Za-z]*?[\d})](?:[eE][-+]?\d+(?![A-Za-z\d]))?)\s*([A-Za-z].*)$", text)
    if unit and not percent and _is_unit(text, unit, letters):
        text = unit[1].strip()
    found = _value(text.replace(" ", "") if not re.search(r"\d \d", text) else text)
    if found is None:
        return None
    return Number(found, bool(percent), None, bool(re.search(r"\.\d|\d[eE]|10\s*\^", text)))


def parts(text: str) -> list[str]:
    """The parts between the commas (semicolons, "and", "or") outside all brackets."""
    text = re.sub(r"\s*(?:,\s*)?\b(?:and|or)\b\s*", ",", text)
    found, depth, begun = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and depth <= 0:
            found.append(text[begun:place])
            begun = place + 1
    found.append(text[begun:])
    return [part.strip() for part in found if part.strip()]


def brackets(text: str) -> Brackets | None:
    """The outer brackets when one pair holds the whole text; braces count where they are printed (`\\{`)."""
    found = re.fullmatch(r"(\(|\[|\\\{)(.*?)(\)|\]|\\\})", text, re.DOTALL)
    if not found:
        return None
    depth = 0
    for letter in found[2]:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return None
    return Brackets(found[1], found[2].strip(), found[3]) if depth == 0 else None


_CHARACTERS = {
    "\\$": "", "$": "", "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "∞": "\\infty ", "π": "\\pi ", "²": "^2", "³": "^3",
    "≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "∪": "\\cup ", "∈": "\\in ", "÷": "/", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "\\%": "%", "\u200b": "", "\xa0": " ", "\u202f": " ", "\\lbrace": "\\{", "\\rbrace": "\\}",
    "\\dotsc": "\\dots", "\\ldots": "\\dots", "\\cdots": "\\dots", "\\cfrac": "\\frac", "≈": "\\approx ", "≠": "\\ne ", "≡": "\\equiv ", "，": ",",
    "\\neq": "\\ne", "+\\infty": "\\infty", "\\simeq": "\\approx", "（": "(", "）": ")",
}  # fmt: skip
_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|hbox|mathrm|mathbf|operatorname|rm)\s*\{"
_UNIT = re.compile(
    rf"(?P<body>.*?[^\s\\,;:!~])(?:\s|\\[,;:! ]|~)*(?P<unit>(?:{_TEXT}[A-Za-z\s./^²³\d-]*\}}(?:\s|\^\{{?-?\d\}}?|\\[,;:! ]|\\cdot|/)*)+)",
    re.DOTALL,
)
_SCALED = re.compile(rf"(?i)(?<![\w.])(\d[\d,]*(?:\.\d+)?)\s*({'|'.join(SCALES)})s?(?![A-Za-z])")
# 0.1\overline{6}, 0.\dot{3}, 0.\dot{1}4\dot{2}, 0.(3), 0.1666\dots
_REPEATING = re.compile(
    r"(?<![\d.])(\d+)\.(\d{0,40}?)(?:\\(?:overline|bar|dot)\s*\{?(\d+)\}?(?!\d*\\dot)|\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?"
    r"|\((\d+)\)(?!\d)|(\d{1,40}?)\8+\\dots(?![A-Za-z]))"
)
_DRESSING = re.compile(
    r"\\(?:textcolor\s*\{[^{}]*\}|underline|boldsymbol|bm|pmb|mathbf|textbf|mathit|bold|displaystyle)\s*(?=\{)"
)
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SIGNED = rf"[-+]?{_DECIMAL}"
_WORDED_BASES = {name: base for base, name in enumerate("two three four five six seven eight nine ten".split(), 2)}


def _undressed(text: str) -> str:
    """The text without colour, weight, underlining and space, which say nothing."""
    text = re.sub(
        r"\\(?:[hv]space\*?|[hv]?phantom|color)\s*\{[^{}]*\}|\\(?:enspace|thinspace|hfill|nobreak)(?![A-Za-z])",
        " ",
        text,
    )
    text = re.sub(
        r"\\(?:bf|it|rm(?!\s*\{)|sf|bfseries|normalsize|small|[Ll]arge|LARGE|[Hh]uge)(?![A-Za-z])\s*", "", text
    )
    while found := _DRESSING.search(text):
        content, end = argument(text, found.end())
        if content is None:
            break
        text = text[: found.start()] + (f" {content} " if " " in content else content) + text[end:]
    return text


def _written_out(found: re.Match) -> str:
    """`3.5 million` -> 3500000."""
    value = Fraction(found[1].replace(",", "")) * 10 ** SCALES[found[2].lower()]
    return f"{value.numerator}" if value.denominator == 1 else f"{float(value)}"


def _repeated(found: re.Match) -> str:
    """A repeating decimal as the fraction that it is."""
    whole, once = found[1], found[2]
    period = found[3] or (found[4] and f"{found[4]}{found[5]}{found[6]}") or found[7] or found[8]
    if len(found[0]) > LARGEST_EXPONENT or (found[8] and not once and len(found[0]) - len(whole) < 7):
        return found[0]
    share = Fraction(int(whole + once + period) - int(whole + once), (10 ** len(period) - 1) * 10 ** len(once))
    return f"\\frac{{{share.numerator}}}{{{share.denominator}}}"


def _spaced(found: re.Match) -> str:
    return f" {found[1].strip()} " if " " in found[1] else found[1]


def _from_python(text: str) -> str:
    """`np.arcsin(10/13)` and `x**2` as LaTeX."""
    if re.search(r"\b(?:np|numpy|math|sympy|sp)\.", text):
        text = re.sub(r"\b(?:np|numpy|math|sympy|sp)\.(\w+)", lambda found: "\\" + _NUMPY.get(found[1], found[1]), text)
        text = re.sub(r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(?:sqrt|√)\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*(\d+|[a-z])", r"\\sqrt{\1}", text)
    while "**" in text and (
        power := re.search(r"(.*)\*\*\s*(\([^()]*\)|-?[\w.]+(?:\^\{.*?\}+)?)", text)
    ):  # from the right, as Python does
        text = f"{power[1].rstrip()}^{{{power[2].strip('()')}}}{text[power.end() :]}"
    text = re.sub(r"\\exp\s*[{(]([^{}()]*)[})]", r"e^{\1}", text)
    return re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)


_NUMPY = {"log": "ln", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}


def _is_unit(text: str, found: re.Match, letters: bool) -> bool:
    words = found[2]
    first = re.split(r"[^A-Za-z]", words, maxsplit=1)[0]
    if re.search(r"\d", re.sub(r"\^\{?-?\d\}?", "", words)) or re.search(r"[=+\\(]", words):
        return False
    if first.lower() in NO_UNITS or re.search(r"(?i)\b[ap]\.?m\b", words):
        return False
    return len(first) > 1 or (letters and first in UNIT_LETTERS and text[found.end(1)] == " ")


def _value(text: str) -> Fraction | None:
    if "(" in text and "," in text:
        return None  # a pair
    text = re.sub(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?![\d,])", lambda found: found[1].replace(",", ""), text)
    text = re.sub(r"\{?\s*\((-?[\d.]+)\)\s*\}?", r"\1", text) if text.count("(") == 1 or "/" in text else text
    if re.fullmatch(_SIGNED, text):
        return _decimal(text)
    if ratio := re.fullmatch(rf"({_SIGNED})\s*/\s*({_SIGNED})", text):
        return _ratio(ratio[1], ratio[2])
    if mixed := re.fullmatch(r"(-?)(\d+)\s+(\d+)\s*/\s*(\d+)", text):
        share = _ratio(mixed[3], mixed[4])
        return None if share is None else (int(mixed[2]) + share) * (-1 if mixed[1] else 1)
    compact = text.replace(" ", "")
    if named := re.fullmatch(rf"([-+]?)(\d*)\\frac\{{({_SIGNED})\}}\{{({_SIGNED})\}}", compact):
        share = _ratio(named[3], named[4])
        return None if share is None else (int(named[2] or 0) + share) * (-1 if named[1] == "-" else 1)
    power = r"10(?:\^\{?(-?\d+)\}?|\^\{?\((-?\d+)\)\}?)"
    if scientific := re.fullmatch(rf"(?:({_SIGNED})(?:\\times|\\cdot|\*|x))?{power}", compact):
        return _decimal(f"{scientific[1] or 1}e{scientific[2] or scientific[3]}")
    return None


def _decimal(text: str) -> Fraction | None:
    exponent = re.search(r"[eE]([-+]?\d+)", text)
    if len(text) > LARGEST_EXPONENT or (exponent and abs(int(exponent[1])) > LARGEST_EXPONENT):
        return None
    return Fraction(re.sub(r"\.(?=$|[eE])", "", text))


def _ratio(above: str, below: str) -> Fraction | None:
    one, other = _decimal(above), _decimal(below)
    return one / other if one is not None and other else None


def _in_base(digits: str, base: str) -> Number | None:
    radix = int(base) if base.isdigit() else _WORDED_BASES.get(base, 0)
    return Number(Fraction(int(digits)), base=radix) if digits.isdigit() and 2 <= radix <= 36 else None
