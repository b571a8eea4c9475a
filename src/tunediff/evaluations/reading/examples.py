"""Examples of where each latent fires: its strongest held-out documents, documents spread over its activations, and random ones.

    strongest   the documents with the largest peak, one example a document, around the peak
    quantile    of a uniform sample of the documents in which it fires, those at evenly spaced quantiles of the peak: what
                it fires on as a rule, where the strongest are what it fires on at best
    random      documents drawn without a look at the latent, around a token drawn in them: mostly where it is silent

The first pass keeps places, in tables [example, latent] on the dictionary's device, and no activations; the second reads
the chosen documents again and cuts the windows out. Activations are in the models' units as encode gives them;
`scaled_activation` is times the code norm, which is comparable between latents (mitroitskii 2025 ranks by it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.evaluations.given import Reading, Trained
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.shapes import SEGMENTS, Table
from tunediff.text import Spelling

KINDS = ("strongest", "quantile", "random")
SAMPLED = 4  # documents sampled for each quantile shown


@dataclass(kw_only=True)
class Examples:
    """strongest, quantiles, random   examples of each kind kept for every latent
    before, after   tokens shown on each side of the peak
    latents         their indices; an expression that chooses them; or how many: those alive that belong most to one model;
                    null: all
    """

    strongest: int = 8
    quantiles: int = 5
    random: int = 2
    before: int = 20
    after: int = 10
    latents: int | str | Sequence[int] | None = None

    def run(self, trained: Trained) -> Iterator[Table]:
        numbers = list(range(trained.dictionary.latents))
        if self.latents is not None:
            numbers = chosen_latents(trained, self.latents, setting="evaluation.examples.latents")
        wanted = self._chosen(trained, numbers)
        norms = trained.dictionary.code_norms().tolist()
        rows = []
        spelled = Spelling(trained.pair.tokenizers[0])
        for number, reading in enumerate(trained.readings("examples")):
            if number not in wanted:
                continue
            batch, latents = reading.batch, reading.latents.cpu()
            first_of = torch.searchsorted(batch.sequence, torch.arange(len(batch.ids[0]) + 1)).tolist()
            sequence, counts = batch.sequence.tolist(), batch.mask[0].sum(-1).tolist()
            whole = [spelled.of(ids[:count]) for ids, count in zip(batch.ids[0].tolist(), counts, strict=True)]
            words = [whole[row][place] for row, place in zip(sequence, batch.position.tolist(), strict=True)]
            segments = [SEGMENTS[s] for s in batch.segment.tolist()]
            for column, kind, rank, quantile, token in wanted[number]:
                latent = numbers[column]
                low = max(first_of[sequence[token]], token - self.before)
                high = min(first_of[sequence[token] + 1], token + self.after + 1)
                activations = latents[low:high, latent].tolist()
                row = {
                    "latent": latent,
                    "kind": KINDS[kind],
                    "rank": rank,
                    "quantile": quantile,
                    "document": int(batch.document[token]),
                    "place": int(batch.position[token]),
                    "position": token - low,
                    "activation": activations[token - low],
                    "scaled_activation": activations[token - low] * norms[latent],
                    "tokens": words[low:high],
                    "activations": [round(a, 4) for a in activations],
                    "segments": segments[low:high],
                }
                rows.append(row)
        rows.sort(key=lambda row: (row["latent"], KINDS.index(row["kind"]), row["rank"]))
        yield Table.of("examples", rows)

    def _chosen(self, trained: Trained, numbers: list[int]) -> dict[int, list[tuple[int, int, int, float | None, int]]]:
        """Batch number -> (place among the numbers, index into KINDS, rank, quantile, token of the batch) of its examples."""
        device, latents = trained.dictionary.code_norms().device, len(numbers)
        generator = randomness.generator(0, "examples")
        strongest = Best(self.strongest, latents, device)
        firing, anything = Best(SAMPLED * self.quantiles, latents, device), Best(self.random, latents, device)
        for number, reading in enumerate(trained.readings("choosing examples")):
            if self.latents is not None:
                reading = reading._replace(latents=reading.latents[:, numbers])
            peak, at_peak = peaks(reading)
            drawn = torch.rand(peak.shape, generator=generator).to(device)
            strongest.offer(peak, peak, at_peak, number)
            firing.offer(torch.where(peak > 0, drawn, 0.0), peak, at_peak, number)
            anything.offer(1 - drawn, peak, somewhere(reading, latents, generator), number)
        wanted: dict[int, list] = defaultdict(list)
        for kind, best in ((0, strongest), (1, self._spread(firing)), (2, anything)):
            for rank, latent in (best.key > 0).nonzero().tolist():
                quantile = float(best.key[rank, latent]) if kind == 1 else None
                example = (latent, kind, rank, quantile, int(best.token[rank, latent]))
                wanted[int(best.batch[rank, latent])].append(example)
        return wanted

    def _spread(self, sampled: Best) -> Best:
        """The documents nearest to the middle of each quantile among a sample of firing ones, highest first; their key is the
        quantile."""
        count = (sampled.key > 0).sum(0)
        order = torch.where(sampled.key > 0, sampled.peak, -torch.inf).argsort(dim=0, descending=True)
        spread = Best(self.quantiles, len(count), sampled.key.device)
        for n in range(self.quantiles):
            share = (n + 0.5) / self.quantiles  # from the top
            row = order.gather(0, (share * count).long().clamp(max=len(order) - 1)[None])
            enough = count >= self.quantiles  # with fewer, one document would stand for several quantiles
            spread.key[n] = torch.where(enough, 1 - share, 0.0)
            for name in ("peak", "batch", "token"):
                getattr(spread, name)[n] = getattr(sampled, name).gather(0, row)[0]
        return spread


class Best:
    """The documents with the largest keys of every latent so far: [kept, latent] on one device."""

    def __init__(self, kept: int, latents: int, device: torch.device):
        self.key, self.peak = (torch.zeros(kept, latents, device=device) for _ in range(2))
        self.batch, self.token = (torch.zeros(kept, latents, dtype=torch.long, device=device) for _ in range(2))

    def offer(self, key: Tensor, peak: Tensor, token: Tensor, number: int) -> None:
        """Offers the documents [document, latent] of batch `number`; a key of 0 is never kept."""
        offered = {"key": key, "peak": peak, "token": token, "batch": torch.full_like(token, number)}
        joined = {name: torch.cat([getattr(self, name), value]) for name, value in offered.items()}
        chosen = joined["key"].topk(len(self.key), dim=0).indices
        for name, value in joined.items():
            setattr(self, name, value.gather(0, chosen))


def peaks(reading: Reading) -> tuple[Tensor, Tensor]:
    """The largest activation [document, latent] in each document of a batch, and the first token that has it."""
    values, sequence = reading.latents, reading.batch.sequence
    counts, first = torch.bincount(sequence).tolist(), 0
    peak = values.new_zeros(len(counts), values.shape[1])
    token = torch.full(peak.shape, len(values) - 1, device=values.device)
    for row, count in enumerate(counts):
        if count:
            peak[row], token[row] = values[first : first + count].max(dim=0)
            token[row] += first
        first += count
    return peak, token


def somewhere(reading: Reading, latents: int, generator: torch.Generator) -> Tensor:
    """A token [document, latent] drawn in each document, for each latent anew."""
    first = torch.searchsorted(reading.batch.sequence, torch.arange(int(reading.batch.sequence.max()) + 2))
    length = first.diff()
    drawn = torch.rand(len(length), latents, generator=generator) * length[:, None]
    token = first[:-1, None] + drawn.long().clamp(max=(length - 1).clamp(min=0)[:, None])
    return token.clamp(max=len(reading.batch.token) - 1).to(reading.latents.device)
