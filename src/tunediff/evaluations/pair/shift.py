"""Shift of the activations along a direction by training: mean over tokens of <h_tuned - h_base, v> / |v|, layer by layer.

An activation gradient is no parameter update: what training did to the activations is read from both models on the same
held-out tokens, here of prompts and of responses. Beside it stands the same along random directions: a model that moved far
moved along each of them, by chance to either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.directions import Direction, Source, check_layers
from tunediff.evaluations.given import Given
from tunediff.measures.clustered import DocumentSums, interval_columns, ratio
from tunediff.models import ModelPair
from tunediff.shapes import BASE, ROLES, SEGMENTS, TUNED, Figure, Finding, Note, Refused, Table

PARTS = {"prompt": ("prompt",), "response": ("prefix", "thinking", "answer")}  # whose tokens are told apart


def refuse_unlike(pair: ModelPair, layers: Sequence[int] | None) -> list[int]:
    """The layers whose shift is measured: all, where none are named. Raises Refused for one that a model has not, and for
    models whose hidden vectors are of different widths."""
    chosen = list(range(min(pair.depth(role) for role in ROLES))) if layers is None else list(layers)
    for role in ROLES:
        check_layers(pair, role, chosen)
    widths = [pair.width(role, "resid_post") for role in ROLES]
    if len(set(widths)) > 1:
        raise Refused(
            f"The models are {' and '.join(map(str, widths))} wide: their difference lies along no direction."
        )
    return chosen


def shift_along(
    given: Given, source: Source, *, layers: Sequence[int] | None, draws: int, seed: int, name: str
) -> Iterator[Finding | Table | Figure | Note]:
    """Findings <name>/shift/<part>/layer_<n>, the table <name>_shift and its figure."""
    chosen = refuse_unlike(given.pair, layers)
    direction = source.find(given, BASE, chosen)
    rows = []
    for part, sums in _sums(given, direction, chosen, draws, seed).items():
        if not len(sums):
            yield Note(f"{name}: the held-out text has no token of the {part}, so no shift is measured there.")
            continue
        stacked = sums.stacked()
        estimate = ratio(stacked[..., :-1], stacked[..., -1:])  # [layer, 1 + draws]
        for n, layer in enumerate(chosen):
            moved = estimate.entries(lambda field, n=n: field[..., n, 0]).bounded()
            others = estimate.value[n, 1:]
            meaning = f"mean over tokens of the {part} of <h_tuned - h_base, v>, v of length 1, at {direction.hookpoint} of layer {layer}"
            yield Finding(f"{name}/shift/{part}/layer_{layer}", *moved, meaning, over="documents")
            beyond = float((others.abs() >= abs(float(estimate.value[n, 0]))).double().mean()) if draws else None
            if beyond is not None:
                meaning = f"share of {draws} random directions along which the {part} moved as far or further, at layer {layer}"
                yield Finding(f"{name}/shift/{part}/layer_{layer}/random_as_far", beyond, meaning=meaning)
            chance = (float(others.mean()), float(others.min()), float(others.max())) if draws else (None, None, None)
            for which, bounded in (("the direction", moved), *[(f"{draws} random directions", chance)] * bool(draws)):
                control = which != "the direction"
                columns = {"layer": layer, "tokens": part, "along": which, "control": control}
                rows.append({**columns, **interval_columns("shift", bounded), "documents": len(sums)})
    table = Table.of(f"{name}_shift", rows)
    yield table
    if rows:
        yield Figure(
            f"{name}/shift",
            kind="lines",
            columns=table.columns,
            x="layer",
            y=["shift"],
            section="Shift of activations along the direction",
            title="Mean shift along the direction, tuned less base",
            caption="Same held-out tokens in both models, in their own units. Band of the direction: 95 % interval over documents; of the random directions: the smallest and the largest.",
            group="along",
            facet="tokens",
            control="control",
        )


@torch.no_grad()
def _sums(given: Given, direction: Direction, layers: Sequence[int], draws: int, seed: int) -> dict[str, DocumentSums]:
    """Part -> sums [layer, 1 + draws + 1] of each document, the number of its tokens the last."""
    onto = {layer: _units(direction.at(layer), draws, seed, layer) for layer in layers}
    streams = [direction.stream(role, layer) for role in (BASE, TUNED) for layer in layers]
    sums = {part: DocumentSums() for part in PARTS}
    numbers = {part: torch.tensor([SEGMENTS.index(name) for name in names]) for part, names in PARTS.items()}
    for batch in given.batches("shift"):
        values = [value.float().cpu() for value in given.pair.read(batch, streams)]
        halves = zip(values[: len(layers)], values[len(layers) :], layers, strict=True)
        along = torch.stack([((tuned - base) @ onto[layer]).double() for base, tuned, layer in halves], dim=1)
        rows = torch.cat([along, torch.ones_like(along[..., :1])], dim=-1)
        for part, found in sums.items():
            here = torch.isin(batch.segment.cpu(), numbers[part])
            found.add(rows[here], batch.document.cpu()[here])
    return sums


def _units(vector: Tensor, draws: int, seed: int, layer: int) -> Tensor:
    """The direction and random ones beside it, as columns [width, 1 + draws] of length 1."""
    chance = randomness.generator(seed, "random directions of a shift", layer)
    others = torch.randn(len(vector), draws, generator=chance)
    columns = torch.cat([vector[:, None].float(), others], dim=1)
    return columns / columns.norm(dim=0)
