"""Numbers with a Chinese or Korean word in them -> digits: magnitudes, signs, powers and fractions.

    "3万" -> "30000"      "1억 2천만" -> "120000000"      "负5" -> "-5"      "2的3次方" -> "$2^{3}$"      "3分之1" -> "1/3"

What another such word makes of a number is not worked out; `UNKNOWN` finds it, so that nobody takes the number alone for it.
"""

from __future__ import annotations

import re
from fractions import Fraction

SMALL = {"十": 10, "百": 100, "千": 1000, "십": 10, "백": 100, "천": 1000}
GREAT = {"万": 10**4, "亿": 10**8, "만": 10**4, "억": 10**8}

_DIGITS = r"\d[\d,]{0,40}(?:\.\d{1,40})?"
# a kilometre, a hectopascal and a per cent are one word
_WORDS = r"(?:[十万亿십만억]|千(?![米克瓦卡焦赫帕伏安字兆比])|百(?![分帕])|천(?!천)|백(?!분)(?!\s{0,9}퍼))"
_AMOUNT = re.compile(
    rf"(?<![\d.,]){_DIGITS}\s{{0,9}}{_WORDS}{{1,6}}(?:\s{{0,9}}{_DIGITS}\s{{0,9}}{_WORDS}{{1,6}}){{0,6}}(?:\s{{0,9}}\d{{1,9}}(?![\d.,]))?"
)
_TERM = re.compile(rf"({_DIGITS})\s{{0,9}}({_WORDS}{{0,6}})")
_MINUS = re.compile(r"(?<!正)(?:负(?:的|数)?|마이너스|음수|음의)\s{0,9}(\\?\$|\\\()?\s{0,9}(?=[\d.\\])")
_BASE = rf"(-?{_DIGITS}|-?[a-z](?![a-zA-Z]))"
_POWER = re.compile(
    rf"(?<![A-Za-z\d.]){_BASE}\s{{0,9}}(?:的|의)\s{{0,9}}(?:(\d+)\s{{0,9}}(?:次方|次幂|제곱|승)|(平方|제곱)(?!根|근)|(立方|세제곱)(?!根|근))"
)
_SHARE = re.compile(r"(?<![\d.])(\d+)\s{0,9}(?:分之|분의)\s{0,9}(\d+)(?![\d.])")
_PERCENT = re.compile(rf"百分之\s{{0,9}}({_DIGITS})")

UNKNOWN = re.compile(
    rf"(?<![\d,])(?:(?:根号|루트|正负|플러스\s{{0,9}}마이너스|(?:平方根|立方根|阶乘|对数|绝对值)\s{{0,9}}[是为]?)\s{{0,9}}[$\\(]*{_DIGITS}"
    rf"|{_DIGITS}\s{{0,9}}[$)\\]*\s{{0,9}}(?:的|의)\s{{0,9}}(?:\d|平方|立方|次方|阶乘|倒数|相反数|绝对值|对数|一半|[两三四五六七八九十几]|\S{{0,3}}제곱|역수|배(?!수)|절반|계승|팩토리얼)\S{{0,9}}"
    rf"|{_DIGITS}\s{{0,9}}(?:{_WORDS}[\s\d,.]{{0,12}}){{0,6}}(?:[多几余兆京조경]|여(?=\s{{0,9}}[명개원]))(?!\w{{0,4}}项式)\s{{0,9}}\S?(?:\s{{0,9}}\d+)?"
    rf"|{_DIGITS}\s{{0,9}}{_WORDS}{{1,6}}(?:[\s\d,.]{{0,12}}\d)?|{_DIGITS}\s{{0,9}}[一二三四五六七八九]\S{{0,9}})"
)


def in_digits(text: str) -> str:
    """The text with such numbers written out, where they are read without a doubt."""
    text = _PERCENT.sub(r"\1%", text)
    text = _SHARE.sub(r" \2/\1 ", text)
    text = _POWER.sub(_power, text)
    text = _AMOUNT.sub(_amount, text)
    return _MINUS.sub(r" \1-", text)


def _power(found: re.Match) -> str:
    return f" ${found[1]}^{{{found[2] or (2 if found[3] else 3)}}}$ "


def _amount(found: re.Match) -> str:
    """Terms of falling magnitude add up; `3万5`, which is said for 35000, is left as it stands."""
    after = found.string[found.end() : found.end() + 2].strip()
    if after[:1] and after[0] in "多几余여兆京조경":
        return found[0]
    whole, section, last = Fraction(0), Fraction(0), Fraction(10**30)
    for digits, words in _TERM.findall(found[0]):
        value, great = Fraction(digits.replace(",", "")), Fraction(1)
        for word in words:
            if word in GREAT:
                great *= GREAT[word]
            elif great == 1:
                value *= SMALL[word]
            else:
                return found[0]
        if not words and (len(digits) != 4 or section):
            return found[0]
        if value * great >= last:
            return found[0]
        last = min(last, (value if great == 1 else great) if words else value)
        section += value
        if great > 1:
            whole, section = whole + section * great, Fraction(0)
    total = whole + section
    return f"{total.numerator}" if total.denominator == 1 else f"{float(total)}"
