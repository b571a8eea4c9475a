"""Kinds of units that a model can be read in, side by side over the same held-out tokens.

adapters   directions of low-rank adapters, A x, either polarity a unit of its own (arXiv 2511.06739)
neurons    for every direction a neuron of the tuned model's MLP in the same layer, drawn by a seed, either polarity. Matched
           means here: in number and layer. How the published study matches its neurons was not described in what was read
latents    of the study's dictionary, as they are
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.dictionary import SIGNS, Dictionary, Polarities
from tunediff.evaluations.given import Given, Trained
from tunediff.hookpoints import LORA, lora_adapters
from tunediff.measures.separation import ActiveScores, DenseScores
from tunediff.models import ModelPair
from tunediff.shapes import TUNED, Rows, Stream
from tunediff.text import Batch

NEURONS = "mlp_neurons"


class Unit(NamedTuple):
    """place      the adapter, as 12.gate_proj; 12.mlp_neurons for a neuron; the streams that a latent reads
    number     index of the adapter's direction (0 at rank 1), of the neuron or of the latent
    polarity   + or -; "" for a latent, which has its sign
    """

    place: str
    number: int
    polarity: str

    def __str__(self) -> str:
        return f"{self.place} {self.number} {self.polarity}".strip()


class Kind(NamedTuple):
    """Units of one kind: latents `numbers` of the dictionary that `reads` has, and what they are on the held-out tokens.

    scores   over the tokens of the batches side by side      alive   [unit] bool: active on one that counts
    """

    name: str
    what: str
    reads: Trained
    numbers: Sequence[int]
    units: list[Unit]
    scores: ActiveScores | DenseScores
    alive: Tensor


@dataclass(frozen=True)
class ReadBeside(Trained):
    """Units that are read where another dictionary admits tokens, and are silent elsewhere, as its latents are: `counts` has
    a mask [token] of each batch."""

    counts: Sequence[Tensor] = field(kw_only=True)

    def activations(self, title: str) -> Iterator[tuple[Batch, Rows, Tensor]]:
        for (batch, rows, admitted), here in zip(super().activations(title), self.counts, strict=True):
            yield batch, rows, admitted & here.to(admitted.device)


class HeldOut(NamedTuple):
    """The batches that were read, and which of their tokens count, [token] bool: those the study's dictionary admits."""

    batches: list[Batch]
    admitted: Tensor


def check_adapters(pair: ModelPair) -> None:
    """Raises Refused for a pair without low-rank adapters."""
    pair.streams(LORA, "all", reads=TUNED)


def adapter_units(pair: ModelPair) -> tuple[Polarities, list[Unit]]:
    """All directions of a loaded pair's adapters. The norm of one is scale * |B|: its activation times that is what it adds
    to its module's output, where A x alone cannot be compared between adapters. Raises Refused where there are none."""
    streams = pair.streams(LORA, "all", reads=TUNED)
    every = lora_adapters(pair.models[TUNED])
    norms = torch.cat([parts.scale * parts.up.get_parameter("weight").detach().float().norm(dim=0) for parts in every])
    units = [
        unit
        for adapter in (parts.adapter for parts in every)
        for unit in both(str(adapter), range(adapter.columns.stop - adapter.columns.start))
    ]
    return Polarities(streams, norms=norms).to(pair.device(TUNED)), units


def read_columns(units: Sequence[Unit]) -> dict[str, list]:
    """The columns of the table adapter_units by which its rows are known, whichever evaluation adds to it."""
    return {
        "unit": list(range(len(units))),
        "adapter": [unit.place for unit in units],
        "direction": [unit.number for unit in units],
        "polarity": [unit.polarity for unit in units],
    }


def matched_neurons(pair: ModelPair, *, seed: int) -> tuple[list[Stream], Tensor, list[Unit]]:
    """Neurons drawn without replacement, all of a layer that has fewer than its adapters have directions: streams, columns
    of these side by side [neuron], and units."""
    generator = randomness.generator(seed, "neurons")
    wanted = Counter()
    for adapter in pair.sources[TUNED].adapters:
        wanted[adapter.layer] += adapter.columns.stop - adapter.columns.start
    streams = pair.streams(NEURONS, list(wanted), reads=TUNED)
    columns, units, first = [], [], 0
    for stream, count in zip(streams, wanted.values(), strict=True):
        drawn = torch.randperm(stream.width, generator=generator)[:count].sort().values
        columns.append(drawn + first)
        units += both(f"{stream.layer}.{NEURONS}", drawn.tolist())
        first += stream.width
    return streams, torch.cat(columns), units


def kinds_of(given: Given, *, seed: int) -> tuple[list[Kind], HeldOut]:
    """The kinds adapters and neurons, read together, and latents where the study has a dictionary; on one pass of the held-out text
    each. Raises Refused for a pair without adapters."""
    adapters, directions = adapter_units(given.pair)
    streams, columns, neurons = matched_neurons(given.pair, seed=seed)
    width = sum(adapters.widths)
    every = Polarities([*adapters.streams, *streams], columns=torch.cat([torch.arange(width), columns + width]))
    every = every.to(given.pair.device(TUNED))
    latents, reading = None, given.reading(every)
    if isinstance(given, Trained):
        latents, counts = _latents(given)
        of = (given.pair, given.text, given.tokens, given.tokens_per_batch, given.folder)
        reading = ReadBeside(*of, dictionary=cast(Dictionary, every), counts=counts)
    batches, blocks, admitted = [], [], []
    for read in reading.readings("adapters and neurons"):
        batches.append(read.batch)
        blocks.append(read.latents.T.cpu())
        admitted.append(read.admitted.cpu())
    values, last = torch.cat(blocks, dim=1), len(directions)
    alive = (values > 0).any(1)
    kinds = [
        Kind(name, what, reading, numbers, units, DenseScores(values[numbers]), alive[numbers])
        for name, what, numbers, units in (
            ("adapters", "adapter directions, either polarity", range(last), directions),
            ("neurons", "MLP neurons of the same layers, either polarity", range(last, len(values)), neurons),
        )
    ]
    return [*kinds, *([] if latents is None else [latents])], HeldOut(batches, torch.cat(admitted))


def both(place: str, numbers: Sequence[int]) -> Iterator[Unit]:
    """Units of either polarity of each index, in the order of Polarities."""
    return (Unit(place, number, sign) for number in numbers for sign in SIGNS)


def _latents(trained: Trained) -> tuple[Kind, list[Tensor]]:
    """The kind of the dictionary's latents, with the tokens of each batch that it admits."""
    count, admitted = trained.dictionary.latents, []

    def blocks() -> Iterator[Tensor]:
        for read in trained.readings("latents"):
            admitted.append(read.admitted.cpu())
            yield read.latents

    scores = ActiveScores.of(blocks(), count)
    where = ", ".join(map(str, trained.dictionary.streams))
    units = [Unit(where, number, "") for number in range(count)]
    what, alive = f"latents of the study's dictionary on {where}", trained.statistics.alive
    kind = Kind("latents", what, trained, range(count), units, scores, alive)
    return kind, admitted
