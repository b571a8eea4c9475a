"""Place of a latent in a response: firing rate and mean activation in the prompt, the opening sentence, each tenth of the
thinking, and the answer.

A tenth is one of the whole row's thinking, by characters, also where a long row is read in several sequences. Shift of a
latent: its rate in the last tenth minus that in the first, over their sum; 1 fires late, -1 early.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from tunediff.evaluations.given import Trained
from tunediff.shapes import BLOCK, SEGMENTS, Finding, Table
from tunediff.text import Batch

TENTHS = tuple(f"thinking/{tenth}" for tenth in range(10))
PLACES = tuple(place for segment in SEGMENTS for place in (TENTHS if segment == "thinking" else (segment,)))


class Segments:
    def run(self, trained: Trained) -> Iterator[Finding | Table]:
        latents = trained.dictionary.latents
        tokens = torch.zeros(len(PLACES), dtype=torch.float64)
        fired, summed = (torch.zeros(len(PLACES), latents, dtype=torch.float64) for _ in range(2))
        both = trained.readings("segments"), trained.template.readings("segments of the template")
        for reading in itertools.chain(*both):
            place = torch.where(reading.admitted.cpu(), places(reading.batch), len(PLACES))  # one more, for the sinks
            for block, here in zip(reading.latents.split(BLOCK), place.split(BLOCK), strict=True):
                for n in set(here.tolist()) - {len(PLACES)}:
                    values = block[(here == n).to(block.device)]
                    tokens[n] += len(values)
                    fired[n] += (values != 0).sum(0).cpu()
                    summed[n] += values.sum(0).cpu()
        met = [n for n in range(len(PLACES)) if tokens[n] > 0]
        columns: dict[str, list] = {"latent": list(range(latents))}
        for name, sums in (("rate", fired), ("mean", summed)):
            columns |= {f"{name}/{PLACES[n]}": (sums[n] / tokens[n]).float().tolist() for n in met}
        yield Table("segments", columns)
        for n in met:
            active = float(fired[n].sum() / tokens[n])
            yield Finding(f"segments/l0/{PLACES[n]}", active, meaning=f"active latents a token in {PLACES[n]}")
        first, last = PLACES.index(TENTHS[0]), PLACES.index(TENTHS[-1])
        if {first, last} <= set(met):
            early, late = fired[first] / tokens[first], fired[last] / tokens[last]
            shift = ((late - early) / (late + early))[early + late > 0]
            for name, share, word in (
                ("early", (shift < -0.5).double().mean(), "first tenth of the thinking than in the last"),
                ("late", (shift > 0.5).double().mean(), "last tenth of the thinking than in the first"),
            ):
                meaning = f"share of the latents active in either that fire at least three times as often in the {word}"
                yield Finding(f"segments/shift/{name}", float(share), meaning=meaning)


def places(batch: Batch) -> Tensor:
    """Index [token] into PLACES."""
    start = torch.tensor([PLACES.index(TENTHS[0] if segment == "thinking" else segment) for segment in SEGMENTS])
    tenth = (batch.progress * 10).long().clamp(max=9)
    return start[batch.segment.long()] + torch.where(batch.segment == SEGMENTS.index("thinking"), tenth, 0)
