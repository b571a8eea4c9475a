"""Two answers -> whether units stand behind both that are not one: `5\\text{ cm}` is not `5\\text{ m}`.

    r"5\\text{ m}^2" -> {"m": 2}      "5 meters per second" -> {"m": 1, "s": -1}      r"5\\text{ apples}" -> none that is known

Values are not converted, and a unit that only one side names, or that is not in the table, says nothing.
"""

from __future__ import annotations

import re
from collections import Counter

# the sign, as case has it, and its words
_UNITS = {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre", "in": "inch inche",
    "ft": "foot feet", "yd": "yard", "mi": "mile", "g": "gram", "mg": "milligram", "kg": "kilogram", "lb": "pound", "oz": "ounce",
    "s": "second sec", "min": "minute", "h": "hour hr", "d": "day", "wk": "week", "mo": "month", "yr": "year", "L": "liter litre", "mL": "milliliter millilitre ml",
    "J": "joule", "kJ": "kilojoule", "N": "newton", "W": "watt", "kW": "kilowatt", "V": "volt", "A": "ampere amp", "Hz": "hertz", "Pa": "pascal", "eV": "electronvolt",
    "K": "kelvin", "C": "coulomb", "$": "dollar", "¢": "cent", "mph": "", "rad": "radian",
}  # fmt: skip
_SIGNS = {word: sign for sign, words in _UNITS.items() for word in words.split()}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_SET = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|hbox|mathrm|rm)\s*\{([^{}]{0,60})\}")
# behind a closing brace or bracket, a digit or a command: 5 cm, \\pi cm
_BEHIND = re.compile(r"[\d)}\]A-Za-z]\s+(?P<unit>[A-Za-z$][A-Za-z./^²³\d{}\s*-]{0,60})$")


def unlike(answer: str, gold: str) -> bool:
    """True where both sides name a unit of the table and they are not one."""
    one, other = unit(answer), unit(gold)
    return one is not None and other is not None and one != other


def unit(text: str) -> dict[str, int] | None:
    """The signs of the unit behind a formula and their powers; None where there is none or one of its words is unknown."""
    text = text[-200:].replace("²", "^2").replace("³", "^3")
    text = re.sub(r"\\cdot(?![a-z])|·", "*", re.sub(r"\\[,;:! ]|~|\\q?quad(?![a-z])", " ", text))
    text = _SET.sub(lambda found: f" {found[1].strip()}", text).strip(" $.")
    found = _BEHIND.search(text)
    # the unit begins behind the last space before which the formula ends
    if not found:
        return None
    powers: Counter[str] = Counter()
    side, next_power = 1, 1
    for piece in re.findall(r"/|\*|[A-Za-z$]+\.?(?:\s*\^\s*\{?-?\d\}?)?|\S", found["unit"]):
        if piece in "/*":
            side = -1 if piece == "/" else 1
            continue
        word = re.match(r"[A-Za-z$]*", piece)
        name = word[0] if word else ""
        if name.lower() == "per":
            side = -1
        elif name.lower() in _POWERS:
            next_power = _POWERS[name.lower()]
        else:
            sign = name if name in _UNITS else _SIGNS.get(name.lower()) or _SIGNS.get(name.lower().removesuffix("s"))
            if sign is None:
                return None
            written = re.search(r"\^\s*\{?(-?\d)", piece)
            powers[sign] += side * (int(written[1]) if written else next_power)
            next_power = 1
    return dict(powers) or None
