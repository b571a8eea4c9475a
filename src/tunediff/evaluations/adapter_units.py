"""Directions of a pair's adapters and neurons of its MLPs -> units: either polarity a latent of a Polarities, with its place.

What an adapter's direction reads is A x; that it weighs scale * |B| is its code norm, so that its activation times the norm
is how much it adds to its module's output: A x alone cannot be compared between adapters. Order of arXiv 2511.06739.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tunediff.dictionary import SIGNS, Polarities
from tunediff.hookpoints import LORA, adapters_of
from tunediff.models import ModelPair
from tunediff.shapes import TUNED, Stream

NEURONS = "mlp_neurons"


class Unit(NamedTuple):
    """place      the adapter, as 12.gate_proj; of a neuron 12.mlp_neurons; of a latent the streams it reads
    number     of the adapter's direction, counted from 0 (0 at rank 1), of the neuron or the latent
    polarity   + or -; "" for a latent
    """

    place: str
    number: int
    polarity: str

    def __str__(self) -> str:
        return f"{self.place} {self.number} {self.polarity}".strip()


def adapter_units(pair: ModelPair) -> tuple[Polarities, list[Unit]]:
    """All directions of a loaded pair's adapters. Raises Refused where it has none."""
    streams = pair.streams(LORA, "all", reads=TUNED)
    every = adapters_of(pair.models[TUNED])
    norms = torch.cat([parts.scale * parts.up.weight.detach().float().norm(dim=0) for parts in every])
    units = [
        Unit(str(adapter), number, sign)
        for adapter in (parts.adapter for parts in every)
        for number in range(adapter.columns.stop - adapter.columns.start)
        for sign in SIGNS
    ]
    return Polarities(streams, norms=norms).to(pair.device(TUNED)), units


def matched_neurons(pair: ModelPair, *, seed: int) -> tuple[list[Stream], torch.Tensor, list[Unit]]:
    """For every direction of an adapter one neuron of the tuned model's MLP in the same layer, drawn without replacement
    (all of a layer where it has fewer): their streams, columns of these side by side [neuron], and their units."""
    generator = torch.Generator().manual_seed(seed)
    wanted: dict[int, int] = {}
    for adapter in pair.sources[TUNED].adapters:
        wanted[adapter.layer] = wanted.get(adapter.layer, 0) + adapter.columns.stop - adapter.columns.start
    streams = pair.streams(NEURONS, list(wanted), reads=TUNED)
    columns, units, first = [], [], 0
    for stream, count in zip(streams, wanted.values(), strict=True):
        drawn = torch.randperm(stream.width, generator=generator)[:count].sort().values
        columns.append(drawn + first)
        units += units_of(f"{stream.layer}.{NEURONS}", drawn.tolist())
        first += stream.width
    return streams, torch.cat(columns), units


def units_of(place: str, numbers: Sequence[int]) -> list[Unit]:
    """Either polarity of each number."""
    return [Unit(place, number, sign) for number in numbers for sign in SIGNS]
