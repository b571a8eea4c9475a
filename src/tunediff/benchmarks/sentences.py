"""A sentence -> the number or formula that it comes to: of "So, 6 pens cost $36 if you pay today." 36.

A conclusion names its result after the last "is" or "=", or as the number of its main clause; numbers that only say
when, for how many or what for stand in asides. These are rules of thumb for English prose, measured by eye on outputs of
base models (bench/grading.py); they know neither the question nor the gold answer.
"""

from __future__ import annotations

import re

from tunediff.benchmarks import notation

LONGEST = 2000  # characters of a sentence that concludes something
ASIDE = 60  # characters before a number in which the words stand that make it an aside


def sentences(text: str) -> list[str]:
    text = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])", "", text)
    closed = text.rfind("\\]") + 2  # what opens behind it does not close, and is not looked at
    text = re.sub(r"\\\[.*?\\\]", _in_one_line, text[:closed], flags=re.DOTALL) + text[closed:]
    text = re.sub(r"\$\$.*?\$\$", _in_one_line, text, flags=re.DOTALL)
    found = re.split(r"(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bSt\.)(?<=[.!?])\s+|\n+", text)
    found = [
        re.sub(r"^\s*(?:step\s*\d+\s*[:.)]|\d+[.)]\s|[-•#>]+\s)\s*", "", piece, flags=re.I).strip() for piece in found
    ]
    return [piece for piece in found if re.search(r"\w", piece)]


def _in_one_line(found: re.Match) -> str:
    return re.sub(r"\s*\n\s*", " ", found[0])


def settled(sentence: str) -> tuple[str | None, str]:
    """The number or formula that a sentence comes to: after its last "is" or "=", else its main number."""
    sentence = sentence.strip().rstrip(".!")
    if len(sentence) > LONGEST:
        return None, "concluding_sentence"
    sentence = _NEGATIVE.sub("-", sentence)
    sentence = _main_clause(sentence)
    if there := _THERE.match(sentence):
        return there["number"], "concluding_number"
    answer = None
    for place in [found.end() for found in reversed(list(_COPULA.finditer(sentence)))]:
        tail = _LEADING.sub("", sentence[place:])
        if answer := _formula(tail) or _main_number(tail, worst=0 if sentence[place - 1].isalpha() else 4):
            break
    answer = answer or _formula(sentence) or _main_number(sentence)
    if answer is None:
        return None, "concluding_sentence"
    return answer, "concluding_number" if notation.number(notation.plain(answer)) else "concluding_expression"


def _main_clause(sentence: str) -> str:
    """The clause without the words that follow a number and only say when, why or what for; formulas set apart do not
    count as numbers."""
    for found in _CLAUSE.finditer(sentence, sentence.rfind("=") + 1):
        before = re.sub(r"\\\(.*?\\\)|\$[^$]*[\\a-z^][^$ ]*\$|\([^()]*\)", " ", sentence[: found.start()])
        if _main_number(before, worst=1):
            return sentence[: found.start()]
    return sentence


_NEGATIVE = re.compile(r"(?<![\d)}$]\s)\b(?:negative|minus)\s+(?=[\d.])")  # but 12 minus 5
_LEADING = re.compile(
    r"^(?:[\s:]|\b(?:that|about|approximately|exactly|equal to|a total of|only|just|now|also|indeed|"
    r"the (?:interval|set|value|number|point|pair))\b)+"
)


def _formula(text: str) -> str | None:
    """The text if it is one formula or a list of them, else the first formula set in dollars or \\( \\)."""
    if _is_formula(text):
        return text
    if (
        (leading := _LEADING_FORMULA.match(text))
        and not notation.number(leading[0].strip())
        and _is_formula(leading[0])
    ):
        return leading[0].strip()
    for found in re.finditer(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", text):
        inside = next(group for group in found.groups() if group is not None).strip()
        if _is_formula(inside) and re.search(r"\d|\\(?:frac|sqrt|pi|infty)", inside):
            return inside.rpartition("=")[2].strip() if "=" in inside else inside
    return None


# 12π inches, sqrt(3)/3 of it: what stands before the first word
_LEADING_FORMULA = re.compile(
    r"(?=[^A-Za-z]*[\dπ√])(?:[\d.,^()\[\]{}π√∞°+*/-]|\bsqrt\b|(?<=[\d)+*/-])[a-zA-Z]\b| (?=[-+*/\d(√π])|(?<=[-+*/,]) )+(?<=[\d)\]}πa-z])(?=\s+[A-Za-z]{2,}\b)"
)


_NO_WORD = (
    r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+|\b(?:and|or)\b|(?<![A-Za-z])(?:"
    + "|".join(notation.FUNCTIONS)
    + r")(?![A-Za-z])"
)


def _is_formula(text: str) -> bool:
    """No words but "and" and "or", and something besides them."""
    if not re.search(r"\d|\\(?:pi|infty|alpha)|∞", text):
        return False
    if notation.number(notation.plain(text)):
        return True
    left = re.sub(_NO_WORD, " ", text)
    return not re.search(r"[A-Za-z]{2,}", left)


def _main_number(sentence: str, *, worst: int = 4) -> str | None:
    """The first number that is not in an aside: 0 for none, 1 "for 4 cakes", "to buy 4", 2 "after 5 days", 3 "the 4
    pens", 4 "a 400-meter run". `worst`: of no aside beyond it."""
    ranked: dict[int, str] = {}
    if price := re.match(r"(?:(?:so|therefore|thus|hence)\b,?\s*)?\d[^$€£\n]*(?=[$€£]\s*\d)", sentence, re.I):
        sentence = sentence[price.end() :]  # 4 pens cost $12
    for found in _NUMBER.finditer(sentence):
        aside = _ASIDE.search(sentence, max(0, found.start() - ASIDE), found.start())
        rank = 0 if not aside else 3 if aside["fixed"] else 1 if aside["near"] else 2
        if re.match(r"-[A-Za-z]", sentence[found.end() :]):
            rank = 4
        ranked.setdefault(rank, re.sub(r"\\?[$]", "", found[0]).strip())
    best = min(ranked, default=None)
    return None if best is None or best > worst else ranked[best]


_COPULA = re.compile(r"(?<![<>!=\\])=|\b(?:is|are|was|were|be|equals?|equal to|becomes)\b(?!\s+not\b)|\\approx|≈")
_NUMBER = re.compile(
    r"(?<![\w.:])(?:(?<![\d)])[-−])?(?:[$€£]|\\\$)?(?:[-−])?(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:[eE][-+]?\d+\b|\s*/\s*\d+(?![\d.]))?(?:\s*\\?%|\s+(?:hundred|thousand|million|billion|trillion)\b)?(?!\d|:\d)"
)
# Therefore, there are 3 divisors of both 100 and 150.
_THERE = re.compile(
    rf"(?i)(?:(?:so|therefore|thus|hence),?\s+)?there\s+(?:are|is|will be|were|was)\s+(?:(?:only|exactly|a total of)\s+)?(?P<number>{_NUMBER.pattern})(?=\s+[a-z][^=,]*$)"
)
_PREPOSITION = (
    r"(?:(?P<near>for|with|at|by|to\s+[a-z]+|(?<!total )(?<!sum )(?<!average )(?<!rate )(?<!speed )(?<!profit )(?<!loss )(?<!score )"
    r"(?<!maximum )(?<!minimum )of)|in|after|on|from|over|during|every|each|within|step|day|than|since|per|when|if|to)"
)
_DETERMINER = r"(?P<fixed>the|an?|all|these|those|his|her|their|its|both|remaining|first|last|next|other)"
_ASIDE = re.compile(rf"(?i)(?<!\S)(?:{_PREPOSITION}|(?:{_PREPOSITION.replace('near', 'close')}\s+)?{_DETERMINER})\s+$")
_CLAUSE = re.compile(
    r"(?i),?\s(?:if|when|because|since|while|so that|assuming|given that|after|before|as|(?<!equal )to(?=\s+[a-z]+\s))\s"
)
