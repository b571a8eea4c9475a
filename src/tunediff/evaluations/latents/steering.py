"""Chosen latents -> what steering adds to which hidden vectors, and as much in random directions, its control.

A dictionary that reads the model writes its decoder rows there. Latents of a transcoder adapter are raised on the way to
their decoders, each in its layer; the control is then added to what leaves the MLPs of the same layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.edits import Add, Directions, Part
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.evaluations.latents.edits import latent_edits, random_direction, written_at
from tunediff.evaluations.latents.selection import decoder_rows
from tunediff.shapes import ADAPTER, Refused, Stream

Parts = list[tuple[Stream, Part]]


def steering_parts(
    trained: Trained,
    role: str,
    seen: LatentStatistics,
    chosen: Sequence[int],
    *,
    unit: str,
    draws: int,
    seed: int,
) -> tuple[Parts, list[Parts]]:
    """Parts that strength 1 adds, with their places; and as much in every draw of a random direction; `unit` as in SteeringSweep. Raises
    Refused where latents have no one direction, or no such unit."""
    if role == ADAPTER:
        return _of_layers(trained, seen, chosen, unit=unit, draws=draws, seed=seed)
    at = written_at(trained, role)
    numbers = torch.tensor(chosen)
    if trained.dictionary.normalisation.needs_moments:
        raise Refused(
            "steering_sweep: what a latent of this dictionary writes depends on each sequence (normalisation "
            "sequence_zscore), so that it has no one direction: use evaluation=scaling."
        )
    rows = decoder_rows(trained, at)[numbers]
    scale = seen.maximum[numbers].to(rows)
    if unit == "residual_norm":
        if role not in seen.norms:
            raise Refused(
                f"steering_sweep.unit=residual_norm: the dictionary reads {', '.join(seen.norms)}, not the hidden vectors "
                f"of the {role} model that are written: choose latent_maximum."
            )
        scale = seen.norms[role] / (rows.norm(dim=-1) * len(chosen))
    steered = Directions(rows, scale, torch.zeros_like(scale))
    generators = [randomness.generator(seed, "direction of steering", draw) for draw in range(draws)]
    return [(at, steered)], [[(at, elsewhere(at, scale, rows, generator))] for generator in generators]


def _of_layers(
    trained: Trained, seen: LatentStatistics, chosen: Sequence[int], *, unit: str, draws: int, seed: int
) -> tuple[Parts, list[Parts]]:
    """The parts in every layer that has some of these latents of a transcoder adapter: more of them, and as much in a random
    direction of what leaves the MLP."""
    if unit == "residual_norm":
        raise Refused(
            "steering_sweep.unit=residual_norm: latents of a transcoder adapter are written before their decoders, not "
            "into hidden vectors: choose latent_maximum."
        )
    adapter, rows = trained.adapter("steering_sweep"), decoder_rows(trained, None)
    edits = latent_edits(trained, ADAPTER, chosen, Add(1.0), seen=seen)
    places = []
    for layer, within in adapter.by_layer(chosen).items():
        numbers = layer * adapter.latents_per_layer + torch.tensor(within)
        at = Stream(ADAPTER, "mlp_out", layer, adapter.widths[layer])
        places.append((at, seen.maximum[numbers].to(rows), rows[numbers]))
    controls: list[Parts] = [
        [
            (at, elsewhere(at, scale, some, randomness.generator(seed, "directions of steering", at.layer, draw)))
            for at, scale, some in places
        ]
        for draw in range(draws)
    ]
    return [(edit.at, edit.part) for edit in edits], controls


def elsewhere(at: Stream, scale: Tensor, rows: Tensor, generator: torch.Generator) -> Directions:
    """A random direction, with the size of the whole change that strength 1 makes along rows [n, width] by scale [n]."""
    size = float((scale[:, None] * rows).sum(0).norm())
    along = torch.nn.functional.normalize(random_direction(at, generator), dim=-1)[None].to(rows)
    return Directions(along, torch.full_like(along[:, 0], size), torch.zeros_like(along[:, 0]))
