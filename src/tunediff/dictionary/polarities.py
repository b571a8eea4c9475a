"""Coordinates of activations, each sign a latent of its own: f = relu([x, -x]), so that raw directions can be read with
everything that reads a dictionary.

Nothing is learned, normalised or left out as an attention sink. A Crosscoder whose encoder is [I, -I] computes the same;
here columns are picked instead of multiplied, since such a matrix over the neurons of a large model takes gigabytes.
arXiv 2511.06739 takes the two polarities of an adapter as separate units so. Knows no model and no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunediff.dictionary.normalisation import Normalisation
from tunediff.shapes import Rows, Stream

SIGNS = ("+", "-")


class Polarities(nn.Module):
    """Latent 2 n is the positive part of coordinate n, 2 n + 1 its negative part.

    columns   indices [coordinate] of the columns that are read, of the streams side by side; null: all of them
    norms     norm [coordinate] of what one unit of a coordinate writes; null: 1
    """

    columns: Tensor
    norms: Tensor

    def __init__(self, streams: Sequence[Stream], *, columns: Tensor | None = None, norms: Tensor | None = None):
        super().__init__()
        self.streams = [Stream(*stream) for stream in streams]
        self.widths = [stream.width for stream in self.streams]
        columns = torch.arange(sum(self.widths)) if columns is None else columns
        self.normalisation = Normalisation(self.widths, kind="none", sink_multiple=None)
        self.register_buffer("columns", columns)
        self.register_buffer("norms", torch.ones(len(columns)) if norms is None else norms)

    @property
    def latents(self) -> int:
        return len(SIGNS) * len(self.columns)

    def encode(self, rows: Rows) -> Tensor:
        """Latents [token, latent]: the positive and the negative part of each coordinate."""
        values = rows.values[:, self.columns]
        return torch.stack([values, -values], dim=-1).flatten(1).relu()

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        """Rows [token, width] with the coordinates as they were, and 0 in every other column."""
        positive, negative = latents.unflatten(1, (-1, len(SIGNS))).unbind(-1)
        whole = latents.new_zeros(len(latents), sum(self.widths))
        return whole.index_copy(1, self.columns, positive - negative)

    def code_norms(self) -> Tensor:
        """Norm [latent] of what one unit of each latent writes."""
        return self.norms.repeat_interleave(len(SIGNS))
