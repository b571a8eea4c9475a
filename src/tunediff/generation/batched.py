"""Responses of the models as they are loaded, under any edit: batches padded on the left, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tunediff.edits import Sequences
from tunediff.generation.responses import Request, Response
from tunediff.generation.sampling import next_tokens
from tunediff.generation.writer import Writer
from tunediff.shapes import Refused


@dataclass(frozen=True)
class Batched:
    """batch: prompts of one forward pass"""

    batch: int = 64

    def __post_init__(self):
        if self.batch < 1:
            raise Refused(f"engine.batch={self.batch}: give at least one prompt a pass.")

    @torch.no_grad()
    def respond(self, request: Request) -> Iterator[tuple[int, Response]]:
        """Each response with the place of its prompt, the shortest prompts first."""
        pair, role, asked, decoding, _, tokenizer, alongside = request
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].ids))  # little padding
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            some = [asked[place] for place in places]
            prompts, others = [one.ids for one in some], None
            known = Sequences.of_prompts(tokenizer, prompts, pair.device(role), layouts=pair.layouts)
            if alongside is not None:
                written = [alongside[place].ids for place in places]
                others = Sequences.of_responses(tokenizer, prompts, written, pair.device(role), layouts=pair.layouts)
            ends = pair.ends(role) | {tokenizer.eos_token_id}
            writers = [
                Writer(one.name, decoding, tokenizer, ends, opened=opened, layouts=pair.layouts)
                for one, opened in zip(some, known.opened, strict=True)
            ]
            yield from zip(places, respond_together(request, known, writers, others), strict=True)


def respond_together(
    request: Request, known: Sequences, writers: Sequence[Writer], others: Sequences | None
) -> list[Response]:
    """One batch, until every writer has ended; the rows that have are left out once they are half of it."""
    pair, role, edits = request.pair, request.role, request.edits
    caches, going, opened = pair.new_caches(), list(range(len(writers))), list(known.opened)
    touched, change = torch.zeros(len(writers), len(edits)), torch.zeros(len(writers), len(edits))
    while True:
        logits, norms = pair.run(role, known, edits, caches=caches, alongside=others, last=1)
        for n, norm in enumerate(norms):
            touched[going, n] += (norm > 0).sum(1).cpu()
            change[going, n] += norm.sum(1).cpu()
        ids = next_tokens(logits[:, -1], [writers[row] for row in going], known)
        kept = [at for at, row in enumerate(going) if not writers[row].ended]
        if not kept:
            break
        # rows that have ended still cost their share of a pass, and leaving one out copies every cache: at half it pays
        if len(kept) <= len(going) // 2:
            rows = torch.tensor(kept, device=known.ids.device)
            for sequences in filter(None, (known, others)):
                sequences.select(rows)
            for cache in caches.values():
                if cache.get_seq_length():
                    cache.batch_select_indices(rows)
            going, ids = [going[at] for at in kept], [ids[at] for at in kept]
        # a row that has ended stays in its column, masked, so that all responses begin and grow side by side
        real = torch.tensor([[not writers[row].ended] for row in going])
        known.extend(torch.tensor(ids)[:, None].to(known.ids.device), real.to(known.ids.device))
    change /= touched.clamp(min=1)
    return [
        Response(
            writer.ids,
            writer.tokenizer.decode(writer.ids),
            writer.finished,
            opened[row],
            tuple(map(int, touched[row].tolist())),
            tuple(change[row].tolist()),
        )
        for row, writer in enumerate(writers)
    ]
