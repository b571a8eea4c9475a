"""Held-out text and sets of adapters -> what the model loses without each set, summed over the tokens of every document.

kl_full_ablated   KL(full || ablated) of the next token, nats: what the code published with arXiv 2511.06739 computes,
                  although its comment names the other direction
kl_ablated_full   KL(ablated || full)
ce                cross-entropy of the text under the ablated model

The full model runs once a batch, and once more for each set; next_tokens.py compares them. Batches that are done are kept
in the run folder, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.evaluations.behaviour.solving import digest, whole_lines
from tunediff.evaluations.given import Given
from tunediff.hookpoints import LoraAdapter, Point, writing_pieces
from tunediff.measures.clustered import DocumentSums, by_document
from tunediff.measures.next_tokens import compared, predicted
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
    kept = KeptSums(given, removed)
    found = DocumentSums()
    title = f"adapter ablation, {len(removed)} sets"
    with tqdm(total=given.tokens, unit="tok", unit_scale=True, desc=title, leave=False, delay=2) as bar:
        for batch in given.held_out:
            documents = kept.read(batch)
            if documents is None:
                documents = _of_batch(given, at, adapters, removed, batch)
                kept.write(batch, documents)
            found.merge(documents)
            bar.update(len(batch.token))
    stacked = found.stacked()
    return Costs(stacked[:, 0], stacked[:, 1:].unflatten(1, (len(removed), len(MEASURES))))


@torch.no_grad()
def _of_batch(
    given: Given, at: Stream, adapters: Sequence[LoraAdapter], removed: Sequence[Removed], batch: Batch
) -> dict[int, Tensor]:
    """Document -> its scored tokens, and then each set's MEASURES, in one row."""
    pair = given.pair
    before, targets, documents, _ = predicted(pair, TUNED, batch)

    def logits(without: Removed) -> Tensor:
        with cut(given, at, adapters, without) if without else nullcontext():
            return pair.logits(TUNED, batch).flatten(0, 1)[before]

    full = logits(frozenset())
    columns = [torch.ones(len(targets), 1, dtype=torch.float64)]
    columns += [compared(full, logits(without) if without else full, targets).cpu().double() for without in removed]
    return by_document(torch.cat(columns, dim=1), documents)


def cut(given: Given, at: Stream, adapters: Sequence[LoraAdapter], without: Removed):
    """Context in which the tuned model runs without these adapters."""
    gone = torch.zeros(at.width, dtype=torch.bool, device=given.pair.device(TUNED))
    for place in without:
        gone[adapters[place].columns] = True

    def zeroed(columns: slice, value: Tensor) -> Tensor:
        return value[..., columns].masked_fill(gone[columns], 0.0)

    return writing_pieces(given.pair.models[TUNED], Point(at.hookpoint, at.layer), zeroed)


class KeptSums:
    """The file of the sums of each batch in <run folder>/outputs, a line each; without a folder nothing is kept."""

    def __init__(self, given: Given, removed: Sequence[Removed]):
        named = [f"{source} {source.files()}" for source in (given.pair.sources[role] for role in (BASE, TUNED))]
        named += [str(sorted(without)) for without in removed]
        folder = given.folder
        self.path: Path | None = None
        if folder is not None:
            self.path = folder / "outputs" / f"lora_ablation-costs-{digest(named)}.jsonl"
        lines = whole_lines(self.path) if self.path is not None else []
        self.known = {entry["batch"]: entry["documents"] for entry in map(json.loads, lines)}

    def read(self, batch: Batch) -> dict[int, Tensor] | None:
        found = self.known.get(_key(batch))
        if found is None:
            return None
        return {int(document): torch.tensor(part, dtype=torch.float64) for document, part in found.items()}

    def write(self, batch: Batch, documents: dict[int, Tensor]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(exist_ok=True)
        entry = {"batch": _key(batch), "documents": {str(n): part.tolist() for n, part in documents.items()}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _key(batch: Batch) -> str:
    return digest([batch.ids, batch.places, batch.document])
