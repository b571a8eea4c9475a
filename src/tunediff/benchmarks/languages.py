"""A text in Chinese or Korean -> the phrases that state its answer in English, so that the same rules read it.

    "所以答案是 42。" -> "so the answer is 42."      "정답은 42입니다." -> "the answer is 42."

Only what says where an answer stands is translated. Of mathematics the other words become `word`: a unit, a noun.
"""

from __future__ import annotations

import re

from tunediff.benchmarks.magnitudes import UNKNOWN, in_digits

FOREIGN = re.compile(r"[\u3400-\u9fff\uac00-\ud7a3]")


def in_english(text: str, kind: str) -> str:
    """The text as it is where no letter of it is Chinese or Korean."""
    if not FOREIGN.search(text):
        return text
    if kind == "math":
        text = UNKNOWN.sub(" word ", in_digits(text))
    for phrase, english in _TRUTHS if kind == "boolean" else ():
        text = re.sub(phrase, english, text)
    for phrase, english in _PHRASES:
        text = re.sub(phrase, english, text)
    if kind != "math":
        return text
    lines = [_with_copula(line) for line in re.split(r"(?<=[.!?])\s|\n", text)]
    return "\n".join(re.sub(rf"{FOREIGN.pattern}+", " word ", line) for line in lines)


_TRUTHS = (
    (
        r"不正确|不对|不是|错误|错的|不成立|否|맞지 않\S*|아닙니다|아니[요오]|거짓|틀[렸립]\S*|그렇지 않\S*|不(?=[,，.。!！])",
        " false ",
    ),
    (
        r"是的|正确|对的|对(?=[.。,，])|成立|맞습니다|맞다|그렇습니다|네(?=[,，.])|예(?=[,，.])|참(?=입니다|이다|[.])",
        " true ",
    ),
    (r"(?<=答案)([:：]?)\s*是(?=[.。\n]|$)", r"\1 true "),
)
# Before a copula it is the noun of a sentence, at the end of a sentence its verb.
_PHRASES = (
    *zip("。，：；！？（）、", (". ", ", ", ": ", "; ", "! ", "? ", " (", ") ", ", "), strict=True),
    (r"(?m)^(\W{0,40})答\s*(?=:)", r"\1 answer"),
    (r"(?:最终|最后|正确)?的?答案\**", " the answer "),
    (r"(\d\S{0,20}?)(?:이|가) 아니라", r"\1, is "),
    (r"(\(?[A-J]\)?)\s*(?:이|가) 아니라", r"not \1 but "),
    (r"(?:等等|等一下|不对|아니|아뇨|잠깐만?|잠시만)\s*(?=[,.!])", " wait"),
    (r"(?:최종\s*|정)?답(?:은|이|\s*(?=:))|정답\**(?=\s*:)", " the answer is "),
    (r"(?:正确)?选项|선택지|보기", " option "),
    (r"(?:故|应|所以|因此)?(?:选择|选)\s*:?(?=\s*[*$(]*[A-J])", " the answer is "),
    (r"不是|不等于|不为", " is not "),
    (r"而是|应该?是|应为|等于|[是为]", " is "),
    (r"(?<=[A-J)])\s*正确的?|(?<=is )\s*正确的?", " correct "),
    (
        r"(?:一共|总共|共|还|剩|只|就)*有(?=\s*\$?\d)|(?:剩下|需要|得到|了)(?=\s*\$?\d)|(?:총|모두|합계)\s*(?=\d)",
        " is ",
    ),
    (r"(?:입니다|이다|이에요|예요|됩니다|있습니다)\s*(?=[.!\n]|$)", " "),
)


def _with_copula(line: str) -> str:
    """A result stands last in such a sentence: the last number of a line without a copula is what it comes to."""
    if not FOREIGN.search(line) or re.search(r"\bis\b|=|\\approx|####", line):
        return line
    clause = re.split(r", (?=比|因为|如果)", line)[0]
    number = re.search(r"(?<!\d)(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?:/\d+)?\D*$", clause)
    return f"{line[: number.start()]} is {line[number.start() :]}" if number else line
