"""Gates name the tokens that an edit touches: [batch, new position] bool, from the tokens that are known and from what
was read.

A gate names tokens whose hidden vectors are changed. The last token of the prompt belongs to the prompt, so that with
`Response` the first token that is generated is the unedited model's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tunediff.dictionary import Dictionary
from tunediff.edits.sequences import Sequences
from tunediff.shapes import Refused, Rows, Stream
from tunediff.text.patterns import DOTALL, compiled

WITHIN = 256  # tokens of a response that a regular expression is looked for in
# behind an opening mark up to the end of a sentence, where a dot behind a digit may be that of a number
SENTENCE = r"\s*+\S.*?(?:(?<!\d)[.!?。](?=\s|\Z)|[.!?。](?=\s)|\n)"


class Gate(Protocol):
    """A gate that the tokens alone decide, as far as a class does not say otherwise.

    reads   streams that must have been read where the edit is written
    of      the same gate, with latents of this dictionary where it names some without saying whose
    """

    @property
    def reads(self) -> Sequence[Stream]:
        return ()

    @property
    def described(self) -> str:
        return repr(self)

    def of(self, dictionary: Dictionary) -> Gate:
        return self

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Everywhere(Gate):
    """Every token that is no padding."""

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.new(known.real)


@dataclass(frozen=True)
class Prompt(Gate):
    """The prompt, template and all."""

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.new(known.real & ~known.response)


@dataclass(frozen=True)
class Response(Gate):
    """The tokens that the model writes, from its first on."""

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.new(known.response)


@dataclass(frozen=True)
class Thinking(Gate):
    """The response from the token that completes a mark which opens thinking, or from its start where the prompt ended so,
    up to and with the token that completes its closing mark."""

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.thinking


@dataclass(frozen=True)
class Answer(Gate):
    """The response after its thinking; all of it where there is none."""

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.new(known.response) & ~Thinking()(known, read)


@dataclass(frozen=True)
class AfterTokens(Gate):
    """The response after its first `count` tokens."""

    count: int

    def __post_init__(self):
        if self.count < 0:
            raise Refused(f"AfterTokens(count={self.count}): give 0 or more tokens of the response.")

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.number >= self.count


@dataclass(frozen=True)
class AfterMatch(Gate):
    """The response from the token on with which its text first matches a regular expression (`.` matches line breaks);
    `within` its first tokens. Where it never does, nothing is touched."""

    pattern: str
    within: int = WITHIN

    def __post_init__(self):
        compiled(self.pattern, DOTALL, "AfterMatch.pattern")

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return known.matched(self.pattern, within=self.within)


@dataclass(frozen=True)
class AfterPrefix(Gate):
    """The response from the token on with which the first sentence of its thinking has ended, the segment `prefix` of a text,
    or its own where it does not think; looked for in its first `within` tokens."""

    within: int = WITHIN

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        marks = "|".join(re.escape(parts.opens) for parts in known.layouts if parts.opens)
        return known.matched(rf"^\s*+(?:{marks})?+{SENTENCE}", within=self.within)


@dataclass(frozen=True)
class WhileActive(Gate):
    """Tokens on which another latent is active above `above`, in the activations' own units; of the edited dictionary
    where none is given."""

    latent: int
    above: float = 0.0
    dictionary: Dictionary | None = None

    @property
    def described(self) -> str:
        return f"WhileActive(latent={self.latent}, above={self.above})"

    def of(self, dictionary: Dictionary) -> Gate:
        return self if self.dictionary is not None else dataclasses.replace(self, dictionary=dictionary)

    @property
    def reads(self) -> Sequence[Stream]:
        return self._asked().streams

    def _asked(self) -> Dictionary:
        if self.dictionary is None:
            raise Refused(f"WhileActive(latent={self.latent}) does not say of which dictionary.")
        return self.dictionary

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        dictionary = self._asked()
        values = torch.cat([read[stream] for stream in dictionary.streams], dim=-1)
        flat = values.flatten(0, 1).float()
        active = torch.cat([dictionary.encode(block)[:, self.latent] for block in Rows(flat).blocks()]) > self.above
        active &= dictionary.normalisation.admits(flat)
        return active.view(values.shape[:2]) & known.new(known.real)


@dataclass(frozen=True)
class Every(Gate):
    """Tokens that all of several gates name."""

    gates: Sequence[Gate]

    @property
    def described(self) -> str:
        return " and ".join(gate.described for gate in self.gates)

    def of(self, dictionary: Dictionary) -> Gate:
        return dataclasses.replace(self, gates=[gate.of(dictionary) for gate in self.gates])

    @property
    def reads(self) -> Sequence[Stream]:
        return [stream for gate in self.gates for stream in gate.reads]

    def __call__(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        return torch.stack([gate(known, read) for gate in self.gates]).all(0)
