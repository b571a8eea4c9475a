"""Held-out text and sets of adapters -> what the model loses without each set, summed over the tokens of every document.

kl_full_ablated   KL(full || ablated) of the next token, nats: what the code published with arXiv 2511.06739 computes,
                  although its comment names the other direction
kl_ablated_full   KL(ablated || full)
ce                cross-entropy of the text under the ablated model

The full model runs once a batch, and once more for each set; next_tokens.py compares them. Batches that are done are kept
in the run folder, so that an interrupted measurement goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.behaviour.solving import KeptLines, digest
from tunediff.evaluations.given import Given
from tunediff.hookpoints import LoraAdapter, Point, writing_pieces
from tunediff.measures.clustered import DocumentSums, by_document
from tunediff.measures.next_tokens import compared, predicted
from tunediff.models import head_of
from tunediff.shapes import BASE, TUNED, Stream
from tunediff.text import Batch

MEASURES = ("kl_full_ablated", "kl_ablated_full", "ce")  # as compared(...) gives them

Removed = frozenset[int]  # places in the list of adapters


class Costs(NamedTuple):
    """Number of tokens [document] and sums [document, set of adapters, MEASURES], both float64; documents are in the order of
    their first token."""

    tokens: Tensor
    sums: Tensor


def costs(given: Given, at: Stream, adapters: Sequence[LoraAdapter], removed: Sequence[Removed]) -> Costs:
    """The costs of the tuned model without each of these sets; an empty set is the full model and takes no pass of its own."""
    named = [f"{source} {source.files()}" for source in (given.pair.sources[role] for role in (BASE, TUNED))]
    named += [str(sorted(without)) for without in removed]
    kept = KeptLines(given.folder, f"lora_ablation-costs-{digest(named)}", key="batch")
    found = DocumentSums()
    for batch in given.batches(f"adapter ablation, {len(removed)} sets"):
        key = digest([batch.ids, batch.places, batch.document])
        if key in kept.known:
            known = kept.known[key]["documents"]
            documents = {int(n): torch.tensor(part, dtype=torch.float64) for n, part in known.items()}
        else:
            documents = _of_batch(given, at, adapters, removed, batch)
            kept.write(key, {"documents": {str(n): part.tolist() for n, part in documents.items()}})
        found.merge(documents)
    stacked = found.stacked()
    return Costs(stacked[:, 0], stacked[:, 1:].unflatten(1, (len(removed), len(MEASURES))))


@torch.no_grad()
def _of_batch(
    given: Given, at: Stream, adapters: Sequence[LoraAdapter], removed: Sequence[Removed], batch: Batch
) -> dict[int, Tensor]:
    """Document -> its scored tokens, and then each set's MEASURES, in one row."""
    pair = given.pair
    before, targets, documents, _ = predicted(pair, TUNED, batch)

    def hidden(without: Removed) -> Tensor:
        with cut(given, at, adapters, without) if without else nullcontext():
            return pair.last_hidden(TUNED, batch).flatten(0, 1)[before]

    head, full = head_of(pair.models[TUNED]), hidden(frozenset())
    columns = [torch.ones(len(targets), 1, dtype=torch.float64)]
    for without in removed:
        other = hidden(without) if without else full
        costs = compared(head, full, [other], targets, reverse=True, logits_mb=given.logits_mb)
        columns.append(costs[0].double())
    return by_document(torch.cat(columns, dim=1), documents)


def cut(given: Given, at: Stream, adapters: Sequence[LoraAdapter], without: Removed):
    """Context in which the tuned model runs without these adapters."""
    gone = torch.zeros(at.width, dtype=torch.bool, device=given.pair.device(TUNED))
    for place in without:
        gone[adapters[place].columns] = True

    def zeroed(columns: slice, value: Tensor) -> Tensor:
        return value[..., columns].masked_fill(gone[columns], 0.0)

    return writing_pieces(given.pair.models[TUNED], Point(at.hookpoint, at.layer), zeroed)
