"""Activations in a model's own units <-> the units a dictionary is trained in; fitted once, kept with the dictionary.

    none               as they are
    mean_norm          one factor a stream, so that the mean norm is sqrt(width)      (Kissane 2024; Lindsey et al. 2024)
    unit_rms           the mean is taken off and one factor a stream makes the root mean square 1   (Minder et al. 2025)
    sequence_zscore    each sequence's own mean and standard deviation over tokens and width   (one scalar each a stream)

The same fit sets the norm above which a token counts as an attention sink: `sink_multiple` times the median.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunediff.shapes import Refused

KINDS = ("none", "mean_norm", "unit_rms", "sequence_zscore")


class Normalisation(nn.Module):
    """Buffers: mean [width], scale [width], largest_norm [stream]; n = (x - mean) * scale, exactly inverted."""

    mean: Tensor
    scale: Tensor
    largest_norm: Tensor

    def __init__(self, widths: Sequence[int], *, kind: str = "mean_norm", sink_multiple: float | None = 10.0):
        super().__init__()
        if kind not in KINDS:
            raise Refused(f"dictionary.normalisation.kind='{kind}': choose one of {list(KINDS)}.")
        self.widths, self.kind, self.sink_multiple = list(widths), kind, sink_multiple
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("scale", torch.ones(sum(widths)))
        self.register_buffer("largest_norm", torch.full((len(self.widths),), torch.inf))

    @property
    def needs_moments(self) -> bool:
        return self.kind == "sequence_zscore"

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Fits mean, scale and the sink limit on a sample [token, width] in model units. Attention sinks are left out of
        mean and scale. Statistics are float64, which Apple's GPUs do not have: the sample lies on the CPU."""
        pieces = values.double().split(self.widths, dim=-1)
        norms = torch.stack([piece.norm(dim=-1) for piece in pieces])  # [stream, token]
        if self.sink_multiple is not None:
            self.largest_norm.copy_(self.sink_multiple * norms.median(dim=1).values)
        usual = (norms <= self.largest_norm[:, None]).all(0)
        means, scales = [], []
        for piece, norm, width in zip(pieces, norms, self.widths, strict=True):
            center = piece[usual].mean(0) if self.kind == "unit_rms" else piece.new_zeros(width)
            size = {
                "mean_norm": lambda norm=norm: norm[usual].mean() / width**0.5,  # noqa: B023
                "unit_rms": lambda piece=piece, center=center: (piece[usual] - center).square().mean().sqrt(),
            }.get(self.kind, lambda piece=piece: piece.new_ones(()))()
            means.append(center)
            scales.append((1 / size.clamp(min=1e-12)).expand(width))
        self.mean.copy_(torch.cat(means))
        self.scale.copy_(torch.cat(scales))

    def admits(self, values: Tensor) -> Tensor:
        """Mask [token] of the rows [token, width] in which no stream has the norm of an attention sink."""
        norms = torch.stack([piece.float().norm(dim=-1) for piece in values.split(self.widths, dim=-1)], dim=-1)
        return (norms <= self.largest_norm).all(-1)

    def normalise(self, values: Tensor, moments: Tensor | None = None) -> Tensor:
        mean, scale = self._affine(moments)
        return (values - mean) * scale

    def restore(self, values: Tensor, moments: Tensor | None = None) -> Tensor:
        mean, scale = self._affine(moments)
        return values / scale + mean

    def restore_change(self, change: Tensor, moments: Tensor | None = None) -> Tensor:
        """Brings a difference of normalised values [token, width] into the model's own units."""
        return change / self._affine(moments)[1]

    def _affine(self, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.needs_moments:
            return self.mean, self.scale
        if moments is None:
            raise Refused("normalisation sequence_zscore needs the moments of each token's sequence with the values.")
        repeats = torch.tensor(self.widths, device=moments.device)
        mean, deviation = moments.repeat_interleave(repeats, dim=1).unbind(-1)  # [token, width]
        return mean, 1 / deviation.clamp(min=1e-12)
