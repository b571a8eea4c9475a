"""Where each latent fires most: its strongest held-out documents, with the tokens around the peak.

Examples are ranked by activation, one a document. The first pass keeps the best documents of every latent without
holding activations; the second reads those documents again and cuts the windows out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch

from tunediff.evaluations.trained import Trained
from tunediff.shapes import SEGMENTS, Table


class Examples:
    """per_latent   examples kept for every latent
    before, after   tokens shown on each side of the peak
    """

    def __init__(self, *, per_latent: int = 8, before: int = 20, after: int = 10):
        self.per_latent, self.before, self.after = per_latent, before, after

    def run(self, trained: Trained) -> Iterator[Table]:
        wanted = self._strongest(trained)
        columns: dict[str, list] = defaultdict(list)
        tokenizer = trained.pair.tokenizers[0]
        spelled: dict[int, str] = {}
        for number, reading in enumerate(trained.readings("examples")):
            batch, latents = reading.batch, reading.latents.cpu()
            for latent, rank, token in wanted.get(number, ()):
                same = (batch.sequence == batch.sequence[token]).nonzero()[:, 0]
                here = int((same == token).nonzero()[0, 0])
                window = same[max(0, here - self.before) : here + self.after + 1]
                words = [spelled.setdefault(i, tokenizer.decode([i])) for i in batch.token[window].tolist()]
                columns["latent"].append(latent)
                columns["rank"].append(rank)
                columns["document"].append(int(batch.document[token]))
                columns["position"].append(here - max(0, here - self.before))
                columns["activation"].append(float(latents[token, latent]))
                columns["tokens"].append(words)
                columns["activations"].append([round(a, 4) for a in latents[window, latent].tolist()])
                columns["segments"].append([SEGMENTS[s] for s in batch.segment[window].tolist()])
        order = sorted(range(len(columns["latent"])), key=lambda i: (columns["latent"][i], columns["rank"][i]))
        yield Table("examples", {name: [values[i] for i in order] for name, values in columns.items()})

    def _strongest(self, trained: Trained) -> dict[int, list[tuple[int, int, int]]]:
        """Batch number -> (latent, rank, token of the batch) of the examples in it."""
        latents, keep = trained.dictionary.latents, self.per_latent
        best = torch.zeros(keep, latents)
        where = torch.zeros(keep, latents, 2, dtype=torch.long)  # batch, token
        for number, reading in enumerate(trained.readings("strongest documents")):
            values, sequence = reading.latents.cpu(), reading.batch.sequence
            count = int(sequence.max()) + 1
            rows = sequence[:, None].expand_as(values)
            peaks = torch.zeros(count, latents).scatter_reduce_(0, rows, values, "amax")
            token = torch.arange(len(values))[:, None].expand_as(values)
            at_peak = torch.where(values == peaks[sequence], token, len(values))
            places = torch.full((count, latents), len(values)).scatter_reduce_(0, rows, at_peak, "amin")
            found = torch.stack([torch.full_like(places, number), places], dim=-1)
            stacked, stacked_where = torch.cat([best, peaks]), torch.cat([where, found])
            best, order = stacked.topk(min(keep, len(stacked)), dim=0)
            where = stacked_where.gather(0, order[..., None].expand(-1, -1, 2))
        wanted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for rank, latent in (best > 0).nonzero().tolist():
            number, token = where[rank, latent].tolist()
            wanted[number].append((latent, rank, token))
        return wanted
