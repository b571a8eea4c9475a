"""Two tokenizers -> how far they agree on what is read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

PROBES = (
    "The answer is 42. Wait, let me check: 3*14=42.\n\nSo \\boxed{42}",
    "def f(x):\n    return x**2  # naïve – 東京 🙂",
    "$\\frac{1}{2}+\\sqrt{3}\\le 10^{-4}$ and 1,234,567.89",
    "Okay, so the user wants  two spaces\tand a tab.",
)


class Tokenizer(Protocol):
    """The members of a tokenizer of transformers that are used here."""

    chat_template: Any
    bos_token: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def __len__(self) -> int: ...

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]: ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, folder: Path) -> Any: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str: ...


class Agreement(NamedTuple):
    """The agreement of two tokenizers on texts.

    differing   stretches of ordinary text that they cut differently, with both lists of ids
    marks       added tokens that they read differently, in order of their ids
    counts      how often each of these marks stands in the texts        tokens    of the owner, in all texts
    foreign     of these tokens, those that touch such a mark
    """

    differing: list[tuple[str, list[int], list[int]]]
    marks: list[str]
    counts: dict[str, int]
    tokens: int
    foreign: int


def compare_tokenizers(owner: Tokenizer, other: Tokenizer, texts: Iterable[str], *, same_ids: bool = True) -> Agreement:
    """Encodes probes and rendered texts with both. Texts are compared between the marks, the added tokens that one of them
    has and the other has not, or with `same_ids` has under another id: where the two read the same ids, such a mark is
    foreign to one of them."""
    marks, differing = differing_marks(owner, other, same_ids=same_ids), []
    between, counts, tokens, foreign = one_of(marks), dict.fromkeys(marks, 0), 0, 0
    for number, text in enumerate((*PROBES, *texts)):
        found = [match.span() for match in between.finditer(text)] if between else []
        for first, last in found:
            counts[text[first:last]] += 1
        for stretch in (text[a:b] for a, b in itertools.pairwise([0, *itertools.chain(*found), len(text)])):
            if stretch in counts:
                continue
            mine, theirs = (list(encode(t, stretch)["input_ids"]) for t in (owner, other))
            if mine != theirs:
                differing.append((stretch[:60], mine, theirs))
        if number >= len(PROBES):
            touched = touching(np.array(encode(owner, text)["offset_mapping"]).reshape(-1, 2), found)
            tokens, foreign = tokens + len(touched), foreign + int(touched.sum())
    return Agreement(differing, marks, counts, tokens, foreign)


def differing_marks(owner: Tokenizer, other: Tokenizer, *, same_ids: bool = True) -> list[str]:
    """The added tokens of either that have not the same id in both; where each reads its own ids, those that the other has
    no one token for."""
    mine, theirs = ({str(token): i for i, token in t.added_tokens_decoder.items()} for t in (owner, other))
    names = sorted(mine.keys() | theirs.keys(), key=lambda name: (mine.get(name, theirs.get(name, 0)), name))
    if same_ids:
        return [name for name in names if mine.get(name) != theirs.get(name)]
    lone = [name for name in names if (name in mine) != (name in theirs) and name.strip()]
    return [name for name in lone if len(encode(other if name in mine else owner, name)["input_ids"]) > 1]


def one_of(marks: Iterable[str]) -> re.Pattern | None:
    """A regular expression for any of the marks, the longest first; None without one."""
    longest = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def touching(offsets: np.ndarray, spans: Iterable[tuple[int, int]]) -> np.ndarray:
    """[token] bool: true where a token, of offsets [token, 2], shares a character with one of the spans."""
    ordered = np.array(sorted(spans), dtype=np.int64).reshape(-1, 2)
    reached = np.concatenate([[0], np.maximum.accumulate(ordered[:, 1])])
    return offsets[:, 0] < reached[np.searchsorted(ordered[:, 0], offsets[:, 1], side="left")]


def beginning(offsets: np.ndarray, spans: Iterable[tuple[int, int]]) -> np.ndarray:
    """[token] bool: the first token of each span, of tokens in their order with offsets [token, 2]; none of a span that no
    token shares a character with."""
    ordered = np.array(list(spans), dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(offsets[:, 1], ordered[:, 0], side="right")
    found = np.zeros(len(offsets), dtype=bool)
    inside = first < len(offsets)
    first, last = first[inside], ordered[inside, 1]
    found[first[offsets[first, 0] < last]] = True
    return found


def encode(tokenizer: Tokenizer, text: str) -> Mapping[str, Any]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
