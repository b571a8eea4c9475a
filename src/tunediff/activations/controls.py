"""Rows of two models -> rows of a pair whose truth is known: the controls of a comparison.

    equal      the base beside itself
    noise      the base beside itself with noise, at each token of the norm of tuned - base in a random direction
    permuted   the base beside the tuned model's activations of other tokens, drawn from the same block

In the first no direction belongs to one model alone: what a dictionary calls exclusive there, it calls so of itself. It is the
null. The second is none: noise as large as the difference is one, of the copy alone, and latents that follow it are the copy's
own in truth. It says how many exclusive latents a difference gives in which nothing was learned. In the third nothing is
shared, so that every direction belongs to one model alone: what a dictionary fails to call exclusive there, it would fail to
see anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunediff.shapes import BASE, TUNED, Refused, Rows, Stream

EQUAL, NOISE, PERMUTED = CONTROLS = ("equal", "noise", "permuted")
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


def _controlled(kind: str, streams: Sequence[Stream], rows: Rows, generator: torch.Generator) -> Rows:
    pieces = list(rows.values.split([stream.width for stream in streams], dim=-1))
    places = {role: [n for n, stream in enumerate(streams) if stream.role == role] for role in (BASE, TUNED)}
    moments = None if rows.moments is None else rows.moments.clone()
    order = torch.randperm(len(rows.values), generator=generator).to(rows.values.device)
    for base, tuned in zip(places[BASE], places[TUNED], strict=True):
        if kind == PERMUTED:
            pieces[tuned] = pieces[tuned][order]
        else:
            pieces[tuned] = pieces[base] + (_noise(pieces[tuned] - pieces[base], generator) if kind == NOISE else 0)
        if moments is not None:
            moments[:, tuned] = moments[order, tuned] if kind == PERMUTED else moments[:, base]
    return Rows(torch.cat(pieces, dim=-1), moments)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random directions with the norms of the rows of `like` [token, width]."""
    drawn = torch.randn(like.shape, generator=generator).to(like)
    return torch.nn.functional.normalize(drawn, dim=-1) * like.norm(dim=-1, keepdim=True)
