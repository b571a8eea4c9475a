"""Token ids -> what a person reads them by: one id by itself, or those of a document, where tokens share characters.

A character whose bytes several tokens hold stands whole at the last of them, and at each before it as a placeholder that
names it: ⟨𝔽 1/3⟩, ⟨𝔽 2/3⟩, 𝔽. Bytes that are no character, as of such a token by itself or where a text breaks off, stand
as ⟨F0 9F⟩. Without placeholders the tokens of a document are its text, but for a space that some tokenizers put before it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from tunediff.text.tokenizers import Tokenizer, encode

# no token of a vocabulary spells one
PLACEHOLDER = re.compile(r"⟨(?:(?:U\+[0-9A-F]{4,6}|\S) \d/\d|[0-9A-F]{2}(?: [0-9A-F]{2})*)⟩")
LONE_BYTES = re.compile("[\udc80-\udcff]+")  # as surrogateescape reads them
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's name of a byte
UNKNOWN = "\ufffd"
# byte-level BPE's letter of each byte: the byte's own where it prints, from U+0100 on where it does not (GPT-2)
PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = {chr(byte): byte for byte in PRINTED}
BYTES |= {chr(0x100 + n): byte for n, byte in enumerate(sorted({*range(256)}.difference(PRINTED)))}


class Spelling:
    """The tokens of one tokenizer as they are read; each id is looked up once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before = encode(tokenizer, "a")["input_ids"][-1:]
        self._held = functools.cache(self._looked_up)

    def __call__(self, token: int) -> str:
        """The text of one id by itself."""
        return self.of([token])[0]

    def of(self, ids: Iterable[int]) -> list[str]:
        """The text of each token of a document."""
        spelled, broken = [], []
        for held in map(self._held, ids):
            if isinstance(held, bytes):
                broken.append(held)
            else:
                spelled += [*_in_characters(broken), held]
                broken = []
        return spelled + _in_characters(broken)

    def _looked_up(self, token: int) -> str | bytes:
        """The text of a token where its bytes are whole characters, else its bytes."""
        # behind another token, for some decoders strip a leading space from the first
        first, text = self._decoded(self._before), self._decoded([*self._before, token])
        text = text.removeprefix(first) if text.startswith(first) else self._decoded([token])
        if UNKNOWN not in text:
            return text
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if named := FALLBACK.fullmatch(piece):
            return bytes.fromhex(named[1])
        if not BYTES.keys() >= set(piece):
            return text
        held = bytes(BYTES[letter] for letter in piece)
        try:
            return held.decode()
        except UnicodeDecodeError:
            return held

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _in_characters(pieces: Sequence[bytes]) -> list[str]:
    """The text of each of a run of tokens by the characters that end in it, with placeholders for those it has a part of."""
    holder = [n for n, piece in enumerate(pieces) for _ in piece]
    spelled, at = [""] * len(pieces), 0
    for character in b"".join(pieces).decode(errors="surrogateescape"):
        size = len(character.encode(errors="surrogateescape"))
        *earlier, last = dict.fromkeys(holder[at : at + size])
        for n, each in enumerate(earlier, start=1):
            spelled[each] += f"⟨{_name(character)} {n}/{len(earlier) + 1}⟩"
        spelled[last] += character
        at += size
    return [LONE_BYTES.sub(lambda lone: _in_hex(lone[0]), text) for text in spelled]


def _name(character: str) -> str:
    """The character, or its number where it would not be seen by itself."""
    unseen = unicodedata.category(character)[0] in "CMZ"
    return f"U+{ord(character):04X}" if unseen else character


def _in_hex(escaped: str) -> str:
    return f"⟨{escaped.encode(errors='surrogateescape').hex(' ').upper()}⟩"


def text_of(tokens: Iterable[str]) -> str:
    """The text that spelled tokens are, without placeholders."""
    return "".join(PLACEHOLDER.sub("", token) for token in tokens)
