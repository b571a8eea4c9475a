"""Two tokenizers -> how far they agree; one -> how its tokens are spelled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, folder: Path) -> Any: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str: ...


class Agreement(NamedTuple):
    """The differences between two tokenizers. `examples` are texts that they cut differently, with both lists of ids;
    `specials` are ids whose meaning differs."""

    examples: list[tuple[str, list[int], list[int]]]
    specials: list[str]


def compare_tokenizers(owner: Tokenizer, other: Tokenizer, texts: Iterable[str] = ()) -> Agreement:
    """Encodes probes and the study's own texts with both, and lists special tokens that differ."""
    examples = []
    for text in (*PROBES, *texts):
        first, second = (list(encode(t, text)["input_ids"]) for t in (owner, other))
        if first != second:
            examples.append((text[:60], first, second))
    mine, theirs = (_special_tokens(t) for t in (owner, other))
    specials = [
        f"id {i}: {mine.get(i, 'not special')!r} in one, {theirs.get(i, 'not special')!r} in the other"
        for i in sorted(mine.keys() | theirs.keys())
        if mine.get(i) != theirs.get(i)
    ]
    return Agreement(examples, specials)


def _special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}


def encode(tokenizer: Tokenizer, text: str) -> Mapping[str, Any]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def spelling(tokenizer: Tokenizer) -> Callable[[int], str]:
    """The text of one token id by itself; each is decoded once."""
    return functools.cache(lambda token: tokenizer.decode([token]))
