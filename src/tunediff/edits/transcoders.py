"""Latents of a transcoder adapter, counted over all layers -> edits of them, one a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits.editing import Edit
from tunediff.edits.gates import Everywhere, Gate
from tunediff.edits.operations import Operation
from tunediff.edits.parts import Axes
from tunediff.shapes import ADAPTER, TRANSCODER, Stream


def transcoder_edits(
    adapter: TranscoderAdapter,
    numbers: Sequence[int],
    operation: Operation,
    *,
    scale: Tensor,
    mean: Tensor,
    gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
    role: str = ADAPTER,
) -> tuple[Edit, ...]:
    """Edits in the adapted model, where each latent is on its way to its decoder; `role` is that model's. `scale`,
    `mean` [latent] of all layers."""
    made = []
    for layer, within in adapter.by_layer(numbers).items():
        first = layer * adapter.latents_per_layer
        names = tuple(f"{layer}.{n}" for n in within)
        chosen = torch.tensor(within)
        at = Stream(role, TRANSCODER, layer, adapter.latents_per_layer)
        part = Axes(chosen, scale[first + chosen], mean[first + chosen], names)
        made.append(Edit(at, part, operation, gate))
    return tuple(made)
