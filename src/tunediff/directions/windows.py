"""Tokens before an event, as "Reasoning-Finetuning Repurposes Latent Representations" takes them (arXiv 2507.12638).

    window of an event that begins at token s:   s - offset + shift  to  s - offset + window, both included

The paper says "5-token window which starts 12 tokens before" (offset 12, window 4, shift 0: s-12 to s-8); its code cuts from
one token earlier on (shift -1: s-13 to s-8), and is what was run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.shapes import SEGMENTS, Refused
from tunediff.text import Batch


@dataclass(frozen=True)
class Window:
    """offset   tokens before the first of an event at which its window begins        window   tokens behind that one
    shift    added to its first token alone. Raises Refused for a window that is empty, or reaches behind the event's
             first token: then it would hold the event itself."""

    offset: int = 12
    window: int = 4
    shift: int = -1

    def __post_init__(self) -> None:
        first, last = self.ends
        if first > last or last > 0:
            raise Refused(
                f"offset={self.offset}, window={self.window}, shift={self.shift} is the window of tokens {first:+d} to {last:+d} from "
                "the first of an event: give one with a token that ends no later than there (0)."
            )

    @property
    def ends(self) -> tuple[int, int]:
        """First and last token of a window, from the first of its event."""
        return self.shift - self.offset, self.window - self.offset


class Found(NamedTuple):
    """times    [token] int: windows that hold a kept token
    events   windows that hold any     outside   those that begin before their document does, or hold no kept token"""

    times: Tensor
    events: int
    outside: int


def windows(batch: Batch, begins: Tensor, window: Window, where: Tensor) -> Found:
    """The windows before events that begin at the kept tokens `begins` [event], indices; of the kept tokens those `where` [token]
    bool count."""
    places, length = batch.places[0], batch.ids[0].shape[1]
    known = torch.full((batch.ids[0].numel(),), -1)
    known[places[where]] = where.nonzero()[:, 0]
    first, last = window.ends
    reach = torch.arange(first, last + 1)
    fits = (places % length)[begins] + first >= 0
    tokens = known[places[begins[fits], None] + reach]
    held = tokens[tokens >= 0]
    times = torch.zeros(len(places), dtype=torch.long).index_add_(0, held, torch.ones_like(held))
    events = int((tokens >= 0).any(1).sum())
    return Found(times, events, len(begins) - events)


def displaced(batch: Batch, begins: Tensor, window: Window, where: Tensor, generator: torch.Generator) -> Tensor:
    """Events at other tokens [event], as many: each at one of the tokens `where` of its own document, drawn at random, whose
    window does not begin before the document does; an event of a document without any is left out."""
    fits = where & ((batch.places[0] % batch.ids[0].shape[1]) + window.ends[0] >= 0)
    candidates = fits.nonzero()[:, 0]
    counts = torch.bincount(batch.sequence[candidates], minlength=int(batch.sequence.max()) + 1 if len(fits) else 0)
    before = counts.cumsum(0) - counts
    sequence = batch.sequence[begins]
    sequence = sequence[counts[sequence] > 0]
    drawn = (torch.rand(len(sequence), generator=generator) * counts[sequence]).long()
    order = batch.sequence[candidates].argsort(stable=True)
    return candidates[order][before[sequence] + drawn]


def inside(batch: Batch, segments: Sequence[str] | None) -> Tensor:
    """[token] bool: the kept tokens of these segments; None: of all. Raises Refused for a segment that there is not."""
    if segments is None:
        return torch.ones_like(batch.token, dtype=torch.bool)
    if unknown := sorted(set(segments) - set(SEGMENTS)):
        raise Refused(f"segments {unknown}: choose among {', '.join(SEGMENTS)}.")
    return torch.isin(batch.segment, torch.tensor([SEGMENTS.index(name) for name in segments]).to(batch.segment))
