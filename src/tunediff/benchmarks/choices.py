"""Multiple choice: the choices in an order of chance, and the letter that a short text names. Knows no output and no gold
answer.

Some choices look like letters: "D-glucose", "A and B", "(E)-2-butene". A bare letter is a label; what is word for word a choice is
that choice; only then is a letter before other words a label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunediff import randomness
from tunediff.benchmarks.notation import plain

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Choices:
    """incorrect   columns of the wrong answers; an empty one is no choice     seed   of the order, with the problem's id"""

    incorrect: Sequence[str]
    seed: int = 0

    def shuffled(self, right: str, wrong: Sequence[str], name: str) -> tuple[str, tuple[str, ...]]:
        """The letter of the right answer and all choices, in an order that is drawn for this problem alone: the right
        one stands at each place equally often."""
        order = [right, *wrong]
        randomness.chance(self.seed, "order of choices", name).shuffle(order)
        return LETTERS[order.index(right)], tuple(order)


def listed(choices: Sequence[str]) -> str:
    """The choices as a prompt lists them, a line each."""
    return "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))


def same(one: str, other: str) -> bool:
    """True for two choices that no reader could tell apart."""
    return _squeezed(one) == _squeezed(other)


def option(text: str) -> str | None:
    """The letter of the option that a short text names: "B", "(B)", "B. 12", "option B"; none where it names several."""
    text = _bare(text)
    if _SEVERAL.fullmatch(text):
        return None
    named = re.match(
        r"(?:(?i:option|choice|answer)\s*)?\(?\s*([A-J]|[a-j](?=\)|$))\s*(?:[).:,\]](?!-\w)|\s|-(?!\w)|$)", text
    )
    if named and (len(text) == 1 or not re.match(r"A\s+[a-z]", text)) and not _REFUTED.match(text, named.end(1)):
        return named[1].upper()
    inside = _INSIDE.findall(text)
    return "".join(inside[-1]) if inside else None


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the one of these choices that a short text names by its letter or word for word. Several letters come
    back as they are, which is no choice; so does a letter that is not among them."""
    bare = _bare(text)
    label = re.fullmatch(r"(?:(?i:option|choice|answer)\s*)?[(\[]?\s*([A-Ja-j])\s*[)\].:]?", bare)
    if label:
        return label[1].upper()
    for squeeze in (_squeezed, lambda words: _squeezed(words).lower()):
        of_text = [n for n, choice in enumerate(choices) if squeeze(choice) == squeeze(bare)]
        if len(of_text) == 1:
            return LETTERS[of_text[0]]
    if _SEVERAL.fullmatch(bare):
        return bare
    letter, before = option(text), re.match(r"\(?([A-J])\s+(\w+)", bare)
    if letter and before and before[1] == letter and before[2].lower() not in _SAYING:
        own = choices[LETTERS.index(letter)] if LETTERS.index(letter) < len(choices) else ""
        return letter if _squeezed(own) and _squeezed(bare[1:]).startswith(_squeezed(own)) else None
    return letter


_SAYING = set("is because since as for with".split())  # words after a letter that is meant as a label
_SEVERAL = re.compile(r"[(\[]?[A-J][)\]]?(?:\s*(?:,|/|;|&|\band\b|\bor\b|,\s*(?:and|or)\b)\s*[(\[]?[A-J][)\]]?)+")
# B would be correct if x were 2.
_REFUTED = re.compile(
    r"(?i)[\s)*]*(?:would|could|might|cannot|can't|(?:is|was|looks|seems)\s+(?:wrong|incorrect|not|false|out))\b"
)
_INSIDE = re.compile(
    r"(?i:option|choice)\s+\(?([A-J])\b|(?<![\w-])\(([A-J])\)(?![\w-])|\b([A-J])\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
)


def _bare(text: str) -> str:
    text = re.sub(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mathit)\s*\{([^{}]*)\}", r" \1 ", text)
    return re.sub(r"\\[,;:! ]", " ", text).strip(" $*`\"'\n.")


def _squeezed(text: str) -> str:
    return re.sub(r"\s+|\\!|(?<=[_^])\{([^{}]*)\}", lambda found: found[1] or "", plain(text))
