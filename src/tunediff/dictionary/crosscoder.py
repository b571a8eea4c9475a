"""Streams side by side [token, width] -> latents [token, latent] -> the same streams, reconstructed.

    n = normalise(x)     f = sparsity(n W_enc + b_enc)     x_hat = restore(f W_dec + b_dec)

One matrix product serves all streams (Lindsey et al. 2024 write it as a sum over models); one stream is an SAE, two a
crosscoder for model diffing. encode and decode speak the models' own units. Knows no model, no data, no loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.sparsity import Sparsity
from tunediff.shapes import Refused, Rows, Stream


class Crosscoder(nn.Module):
    """W_enc [width, latent], b_enc [latent], W_dec [latent, width], b_dec [width].

    decoder_norm     norm of each decoder row of each stream at the start
    shared_start     the same random directions for every stream (needs equal widths); otherwise drawn for each
    encoder_start    transpose: the encoder starts as the decoder's transpose; random: drawn, same norm
    subtract_decoder_bias    the encoder sees n - b_dec (Bussmann et al. 2024); false as in Lindsey et al. and Minder et al.
    """

    unit: Tensor

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        latents: int,
        sparsity: Sparsity,
        normalisation: Callable[[Sequence[int]], Normalisation],
        decoder_norm: float = 1.0,
        shared_start: bool = True,
        encoder_start: str = "transpose",
        subtract_decoder_bias: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if latents < 1:
            raise Refused(f"dictionary.latents={latents}: a dictionary has at least one latent.")
        if encoder_start not in ("transpose", "random"):
            raise Refused(f"dictionary.encoder_start='{encoder_start}': choose transpose or random.")
        sparsity.check(latents)
        self.streams = [Stream(*stream) for stream in streams]
        self.widths = [stream.width for stream in self.streams]
        if shared_start and len(set(self.widths)) > 1:
            raise Refused(
                f"dictionary.shared_start=true needs streams of equal width, these have {self.widths}: set it to false."
            )
        self.sparsity, self.subtract_decoder_bias = sparsity, subtract_decoder_bias
        self.normalisation = normalisation(self.widths)
        generator = torch.Generator().manual_seed(seed)

        def directions() -> Tensor:
            if shared_start:
                drawn = [torch.randn(latents, self.widths[0], generator=generator)] * len(self.widths)
            else:
                drawn = [torch.randn(latents, width, generator=generator) for width in self.widths]
            return torch.cat([decoder_norm * nn.functional.normalize(d, dim=-1) for d in drawn], dim=-1)

        self.W_dec = nn.Parameter(directions())
        self.W_enc = nn.Parameter(
            (self.W_dec.detach() if encoder_start == "transpose" else directions()).T.contiguous()
        )
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(sum(self.widths)))
        # norm of a decoder row as stored * unit = its norm in the units it was trained in; 1 unless rebased
        self.register_buffer("unit", torch.ones(len(self.widths)))

    @property
    def latents(self) -> int:
        return len(self.b_enc)

    @torch.no_grad()
    def fit(self, rows: Rows) -> None:
        """Fits the normalisation on a sample and starts the decoder bias at its geometric median."""
        self.normalisation.fit(rows.values)
        usual = self.normalisation.admits(rows.values)
        moments = None if rows.moments is None else rows.moments[usual]
        self.b_dec.copy_(geometric_median(self.normalisation.normalise(rows.values[usual].float(), moments)))

    # in normalised units, for training
    def pre_activations(self, normalised: Tensor) -> Tensor:
        """[token, latent] before sparsity."""
        centred = normalised - self.b_dec if self.subtract_decoder_bias else normalised
        return centred @ self.W_enc + self.b_enc

    def reconstruct(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec

    # in the models' own units, for everything else
    def encode(self, rows: Rows) -> Tensor:
        """[token, latent]; a token's latents depend on that token alone."""
        return self.sparsity(self.pre_activations(self.normalisation.normalise(*rows)), self.code_norms())

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        return self.normalisation.restore(self.reconstruct(latents), moments)

    def forward(self, rows: Rows) -> Tensor:
        """The reconstruction [token, width]."""
        return self.decode(self.encode(rows), rows.moments)

    def decoder_norms(self) -> Tensor:
        """[stream, latent], in the units of training: there every model has the same typical size."""
        return self.unit[:, None] * torch.stack([rows.norm(dim=-1) for rows in self.W_dec.split(self.widths, dim=-1)])

    def code_norms(self) -> Tensor:
        """[latent]: the decoder norms summed over streams, which weigh a latent in selection and penalty."""
        return self.decoder_norms().sum(0)

    def decoder_of(self, stream: int) -> Tensor:
        """[latent, width] of one stream."""
        return self.W_dec.split(self.widths, dim=-1)[stream]

    @torch.no_grad()
    def rebase(self, mean: Tensor, scale: Tensor) -> None:
        """Rewrites the weights for another normalisation (x - mean) * scale, [width] each with one scale a stream:
        every latent and reconstruction stays. Zeros and ones fold the normalisation in; the old values unfold it."""
        if self.normalisation.needs_moments:
            raise Refused("sequence_zscore belongs to each sequence and cannot be folded into weights.")
        old, ratio = self.normalisation, scale / self.normalisation.scale
        if not self.subtract_decoder_bias:
            self.b_enc.add_(((mean - old.mean) * old.scale) @ self.W_enc)
        self.W_enc.div_(ratio[:, None])
        self.W_dec.mul_(ratio)
        self.b_dec.copy_(self.b_dec * ratio + (old.mean - mean) * scale)
        self.unit.div_(torch.stack([r[0] for r in ratio.split(self.widths)]))
        old.mean.copy_(mean)
        old.scale.copy_(scale)

    # -- the folder a dictionary is kept in --------------------------------------------------------------------------

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """weights.safetensors and config.json; `config` is what built this dictionary, kept for rebuilding it."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        partial = folder / "weights.partial"
        safetensors.torch.save_file(state, partial)
        os.replace(partial, folder / "weights.safetensors")
        described = {**config, "streams": [list(s) for s in self.streams]}
        (folder / "config.partial").write_text(json.dumps(described, indent=1))
        os.replace(folder / "config.partial", folder / "config.json")


def geometric_median(points: Tensor, *, steps: int = 30) -> Tensor:
    """The point with the least summed distance to `points` [token, width], by Weiszfeld's iteration."""
    guess = points.mean(0)
    for _ in range(steps):
        weight = 1 / (points - guess).norm(dim=-1).clamp(min=1e-8)
        guess = (weight[:, None] * points).sum(0) / weight.sum()
    return guess
