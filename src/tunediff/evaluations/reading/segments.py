"""Place of a latent in a response: firing rate and mean activation in the prompt, the opening sentence, each tenth of the
thinking, and the answer.

A tenth is one of the whole row's thinking, by characters, also where a long row is read in several sequences. Shift of a
latent: its rate in the last tenth minus that in the first, over their sum; 1 fires late, -1 early.

apart   for two parts of a response the distance between the distributions of their firings over latents, of every part
        p_i = firings of latent i / firings of all: the total variation sum |p_i - q_i| / 2, from 0 to 1. As it stands that is never 0,
        for counts vary. So the sign of each p_i - q_i is taken from the documents of even number and the sum from the others:
        of parts that do not differ its expectation is 0, and else it is at most the total variation. Any text differs from
        one part to another, whoever reads it: `within_thinking`, its first half and its second, is the yardstick. Intervals
        are over groups of documents
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from tunediff.evaluations.given import Reading, Trained
from tunediff.measures.clustered import Estimate, ratio
from tunediff.shapes import BLOCK, SEGMENTS, Finding, Table
from tunediff.text import Batch

GROUPS = 60  # of documents, by their number; those of even number choose signs, the others are measured
PARTS = ("prompt", "prefix", "thinking", "answer")
TENTHS = tuple(f"thinking/{tenth}" for tenth in range(10))
PLACES = tuple(place for segment in SEGMENTS for place in (TENTHS if segment == "thinking" else (segment,)))


# the parts of a response whose firings are compared, of thinking its halves
HALVES = ("prompt", "prefix", "thinking/first", "thinking/second", "answer")
HALF_OF = {name: HALVES.index(name) for name in ("prompt", "prefix", "answer")}
HALF_OF |= {tenth: HALVES.index("thinking/first") + (n >= 5) for n, tenth in enumerate(TENTHS)}


class Segments:
    def run(self, trained: Trained) -> Iterator[Finding | Table]:
        latents = trained.dictionary.latents
        tokens = torch.zeros(len(PLACES), dtype=torch.float64)
        fired, summed = (torch.zeros(len(PLACES), latents, dtype=torch.float64) for _ in range(2))
        by_group = torch.zeros(GROUPS, len(HALVES), latents)  # counts, which float32 holds exactly up to 2^24
        both = trained.readings("segments"), trained.template.readings("segments of the template")
        for reading in itertools.chain(*both):
            place = torch.where(reading.admitted.cpu(), places(reading.batch), len(PLACES))  # one more, for the sinks
            for block, here in zip(reading.latents.split(BLOCK), place.split(BLOCK), strict=True):
                for n in set(here.tolist()) - {len(PLACES)}:
                    values = block[(here == n).to(block.device)]
                    tokens[n] += len(values)
                    fired[n] += (values != 0).sum(0).cpu()
                    summed[n] += values.sum(0).cpu()
            for group, part, counts in grouped(reading, place):
                by_group[group, part] += counts
        met = [n for n in range(len(PLACES)) if tokens[n] > 0]
        columns: dict[str, list] = {"latent": list(range(latents))}
        for name, sums in (("rate", fired), ("mean", summed)):
            columns |= {f"{name}/{PLACES[n]}": (sums[n] / tokens[n]).float().tolist() for n in met}
        yield Table("segments", columns)
        for n in met:
            active = float(fired[n].sum() / tokens[n])
            yield Finding(f"segments/l0/{PLACES[n]}", active, meaning=f"active latents a token in {PLACES[n]}")
        yield from apart(by_group)
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


def grouped(reading: Reading, place: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Group, index into HALVES, and firings [latent] of the tokens of both; `place` [token] is an index into PLACES."""
    part = torch.tensor([*(HALF_OF.get(name, -1) for name in PLACES), -1])[place]
    group = reading.batch.document % GROUPS
    for n, m in torch.stack([group, part], dim=1)[part >= 0].unique(dim=0).tolist():
        here = ((group == n) & (part == m)).to(reading.latents.device)
        yield n, m, (reading.latents[here] != 0).sum(0).float().cpu()


def apart(fired: Tensor) -> Iterator[Finding]:
    """Yields how far two parts are apart, as at the head of the file, from firings [group, half, latent]."""
    halves = {name: [n for n, half in enumerate(HALVES) if half.partition("/")[0] == name] for name in PARTS}
    of = {name: fired[:, some].double().sum(1) for name, some in halves.items()}
    first, second = (fired[:, n].double() for n in halves["thinking"])
    pairs = {f"{one}_{other}": (of[one], of[other]) for one, other in itertools.combinations(PARTS, 2)}
    pairs["within_thinking"] = (first, second)
    found = {name: estimate for name, two in pairs.items() if (estimate := variation(*two)) is not None}
    for name, estimate in found.items():
        meaning = f"distance between the distributions of firings over latents: {name.replace('_', ' ')}"
        yield Finding(f"segments/apart/{name}", *estimate.bounded(), meaning, over="groups of documents")
    compared = [(name, "within_thinking") for name in found if name != "within_thinking"]
    for name, other in (*compared, ("prefix_thinking", "prompt_prefix")):
        if name in found and other in found:
            meaning = f"{name.replace('_', ' ')}, less {other.replace('_', ' ')}"
            more = (found[name] - found[other]).bounded()
            yield Finding(f"segments/apart/{name}_less_{other}", *more, meaning, over="groups of documents")


def variation(one: Tensor, other: Tensor) -> Estimate | None:
    """The distance between two distributions of firings [group, latent]; None where a half of the groups has none of one."""
    both = torch.stack([one, other])
    chosen, measured = both[:, ::2], both[:, 1::2]
    if (chosen.sum((1, 2)) == 0).any() or (measured.sum((1, 2)) == 0).any():
        return None
    shares = chosen.sum(1) / chosen.sum((1, 2))[:, None]
    sign = (shares[0] - shares[1]).sign()
    first, second = (ratio((counts * sign).sum(-1), counts.sum(-1)) for counts in measured)
    return (first - second).entries(lambda field: field / 2)


def places(batch: Batch) -> Tensor:
    """Index [token] into PLACES."""
    start = torch.tensor([PLACES.index(TENTHS[0] if segment == "thinking" else segment) for segment in SEGMENTS])
    tenth = (batch.progress * 10).long().clamp(max=9)
    return start[batch.segment.long()] + torch.where(batch.segment == SEGMENTS.index("thinking"), tenth, 0)
