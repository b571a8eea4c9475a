"""A model's adapters -> groups of them: those of a layer, of a module, of a type (attention, mlp), of a layer and type; for
each size as many drawn at random; and the edit under which a model runs without a group (arXiv 2511.06739). Knows the names
of adapters and their columns, and no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from tunediff import randomness
from tunediff.edits import Axes, Edit, Zero
from tunediff.hookpoints import LoraAdapter
from tunediff.shapes import Stream

RANDOM = "random"
BY: dict[str, Callable[[LoraAdapter], str]] = {
    "layer": lambda adapter: str(adapter.layer),
    "module": lambda adapter: adapter.module,
    "type": lambda adapter: adapter.type,
    "layer_type": lambda adapter: f"{adapter.layer}.{adapter.type}",
}


class LoraGroup(NamedTuple):
    """A group of adapters. `members` are indices into the list of adapters; `draw` tells apart random groups of one size."""

    by: str
    name: str
    members: frozenset[int]
    draw: int | None = None


def lora_groups(adapters: Sequence[LoraAdapter], by: Iterable[str]) -> list[LoraGroup]:
    """The groups of these kinds; every adapter is in exactly one group of each kind."""
    found = []
    for kind in by:
        members: dict[str, list[int]] = {}
        for place, adapter in enumerate(adapters):
            members.setdefault(BY[kind](adapter), []).append(place)
        found += [LoraGroup(kind, name, frozenset(places)) for name, places in members.items()]
    return found


def random_groups(adapters: int, sizes: Iterable[int], draws: int, *, seed: int) -> list[LoraGroup]:
    """Random groups, so many of each size; none of a size that leaves nothing to draw. A size's draws depend on no other."""
    found = []
    for size in sorted({size for size in sizes if 0 < size < adapters}):
        generator = randomness.generator(seed, "groups of adapters", size)
        for draw in range(draws):
            drawn = torch.randperm(adapters, generator=generator)[:size]
            found.append(LoraGroup(RANDOM, str(size), frozenset(drawn.tolist()), draw))
    return found


def removal(at: Stream, adapters: Sequence[LoraAdapter], members: Iterable[int]) -> Edit:
    """The edit under which the model runs without these adapters."""
    gone = [adapters[member] for member in sorted(members)]
    numbers = torch.tensor([n for one in gone for n in range(one.columns.start, one.columns.stop)], dtype=torch.long)
    names = tuple(f"adapter {one}" for one in gone)
    return Edit(at, Axes(numbers, torch.ones(len(numbers)), torch.zeros(len(numbers)), names), Zero())
