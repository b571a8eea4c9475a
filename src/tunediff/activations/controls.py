"""Rows of two models -> rows of a pair whose truth is known: the controls of a comparison.

    equal      the base beside itself
    noise      the base beside itself with noise, at each token of the norm of tuned - base in a random direction
    permuted   the base beside the tuned model's activations of other tokens, drawn from the same block
    planted    the base beside a copy into which random directions are written, of known strengths, on known shares of the tokens

In the first no direction belongs to one model alone: what a dictionary calls exclusive there, it calls so of itself. It is the
null. The second is none: noise as large as the difference is one, of the copy alone, and latents that follow it are the copy's
own in truth. It says how many exclusive latents a difference gives in which nothing was learned. In the third nothing is
shared, so that every direction belongs to one model alone. In the last those that were planted do: what a dictionary of this
kind and length does not find of them, it would not find in the pair.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.shapes import BASE, TUNED, Refused, Rows, Stream

EQUAL, NOISE, PERMUTED, PLANTED = CONTROLS = ("equal", "noise", "permuted", "planted")
# of planted directions: mean strength, as a share of the base's median norm, and share of the tokens; four of each
STRENGTHS, RATES, OF_EACH = (1 / 8, 1 / 4, 1 / 2), (0.001, 0.003, 0.01, 0.03), 4
View = Callable[[Rows, torch.Generator], Rows]


def control_view(kind: str, streams: Sequence[Stream]) -> View:
    """The function that makes the rows of a control of rows [token, width] of these streams; random numbers come from its
    generator. Raises Refused for a kind that is none, and for streams that are no two models of equal widths."""
    if kind not in CONTROLS:
        raise Refused(f"'{kind}' is no control: choose {', '.join(CONTROLS)}.")
    if not has_controls(streams):
        raise Refused(f"There is no control of {', '.join(map(str, streams))}: that takes two models of equal widths.")
    return functools.partial(_controlled, kind, streams)


def has_controls(streams: Sequence[Stream]) -> bool:
    """True for streams of both models, layer by layer of equal widths."""
    widths = {role: [stream.width for stream in streams if stream.role == role] for role in (BASE, TUNED)}
    return bool(widths[BASE]) and widths[BASE] == widths[TUNED] and len(streams) == 2 * len(widths[BASE])


class Events(NamedTuple):
    """Planted events: unit directions [event, width] of every layer that is read, strengths [event] and rates [event]."""

    directions: list[Tensor]
    strengths: Tensor
    rates: Tensor

    def amounts(self, tokens: int, generator: torch.Generator) -> Tensor:
        """Shares of the norm [token, event] that each event writes: where it fires, half to one and a half of its strength."""
        fires = torch.rand(tokens, len(self.rates), generator=generator) < self.rates
        return fires * (0.5 + torch.rand(fires.shape, generator=generator)) * self.strengths.float()


@functools.cache
def planted_events(widths: tuple[int, ...]) -> Events:
    """The events that are planted in layers of these widths: always the same."""
    kinds = list(itertools.product(STRENGTHS, RATES, range(OF_EACH)))
    draw = randomness.generator(0, "directions of the planted control")
    directions = [
        torch.nn.functional.normalize(torch.randn(len(kinds), width, generator=draw), dim=-1) for width in widths
    ]
    strengths, rates, _ = torch.tensor(kinds, dtype=torch.float64).unbind(-1)
    return Events(directions, strengths, rates)


def _controlled(kind: str, streams: Sequence[Stream], rows: Rows, generator: torch.Generator) -> Rows:
    pieces = list(rows.values.split([stream.width for stream in streams], dim=-1))
    places = {role: [n for n, stream in enumerate(streams) if stream.role == role] for role in (BASE, TUNED)}
    moments = None if rows.moments is None else rows.moments.clone()
    order = torch.randperm(len(rows.values), generator=generator).to(rows.values.device)
    events = planted_events(tuple(streams[place].width for place in places[TUNED]))
    amounts = events.amounts(len(order), generator) if kind == PLANTED else None
    for layer, (base, tuned) in enumerate(zip(places[BASE], places[TUNED], strict=True)):
        if kind == PERMUTED:
            pieces[tuned] = pieces[tuned][order]
        elif kind == NOISE:
            pieces[tuned] = pieces[base] + _noise(pieces[tuned] - pieces[base], generator)
        elif amounts is not None:
            pieces[tuned] = pieces[base] + _written(amounts @ events.directions[layer], pieces[base])
        else:
            pieces[tuned] = pieces[base]
        if moments is not None:
            moments[:, tuned] = moments[order, tuned] if kind == PERMUTED else moments[:, base]
    return Rows(torch.cat(pieces, dim=-1), moments)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random directions with the norms of the rows of `like` [token, width]."""
    drawn = torch.randn(like.shape, generator=generator).to(like)
    return torch.nn.functional.normalize(drawn, dim=-1) * like.norm(dim=-1, keepdim=True)


def _written(shares: Tensor, base: Tensor) -> Tensor:
    """Shares [token, width] of the median norm of the base's rows, in their units."""
    return shares.to(base) * base.norm(dim=-1).median() if len(base) else base
