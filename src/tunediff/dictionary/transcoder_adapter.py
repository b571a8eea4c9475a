"""Transcoder adapters: sparse latents beside each MLP that add what fine-tuning changed in it (arXiv 2602.20904):

    T(x) = sparsity(x W_enc + b_enc) W_dec + b_dec        x: what enters the MLP; T(x) is added to what leaves it

One transcoder a layer. Together they are a dictionary whose latents are those of all layers side by side, so that whatever
reads a dictionary reads them. Pure modules that know no model and no data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tunediff import randomness
from tunediff.dictionary.codes import DenseCodes
from tunediff.dictionary.crosscoder import latents_of
from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.sparsity import Sparsity
from tunediff.shapes import Refused, Rows, Stream


@dataclass
class Pass:
    """Inputs of every transcoder in one forward pass of training.

    settings     scheduled values of the step (l1, k)
    where        indices [token] into [batch * position] of the tokens that count, since padding has no latents; None: all
    """

    settings: Mapping[str, float]
    where: Tensor | None


@dataclass
class Seen:
    """Results of one transcoder in one pass: sparsity terms, each with its coefficient, and active latents per token."""

    penalties: dict[str, Tensor]
    l0: Tensor


class Transcoder(nn.Module):
    """W_enc [width, latent], b_enc [latent], W_dec [latent, width], b_dec [width] or None. Encoders begin uniform in
    +-1/sqrt(width), all else at zero, so that an untrained one adds nothing (arXiv 2602.20904, appendix A).

    A decoder that begins at zero gives its latents no weight: those that TopK and BatchTopK keep are chosen by activation
    alone. Penalties weigh a latent by the norm of its decoder row.
    """

    def __init__(self, width: int, latents: int, *, sparsity: Sparsity, bias: bool, generator: torch.Generator):
        super().__init__()
        self.W_enc = nn.Parameter(torch.empty(width, latents))
        if not self.W_enc.is_meta:  # only its shape is asked for
            nn.init.uniform_(self.W_enc, -(width**-0.5), width**-0.5, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, width))
        self.b_dec = nn.Parameter(torch.zeros(width)) if bias else None
        self.sparsity = sparsity
        self.kept = nn.Identity()  # the hookpoint `transcoder`: latents on their way to the decoder
        self.training_pass: Pass | None = None
        self.seen: Seen | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the transcoder adds, [..., width] -> [..., width]; computed in the precision of the weights and returned in
        that of x."""
        latents = self.encode(x) if self.training_pass is None else self._learn(x, self.training_pass)
        return self.decode(self.kept(latents)).to(x.dtype)

    def pre_activations(self, x: Tensor) -> Tensor:
        """Pre-activations [..., latent], before sparsity."""
        return x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Latents [..., latent] outside training; those of a token depend on that token alone."""
        return self.sparsity(self.pre_activations(x), self._scores())

    def decode(self, latents: Tensor) -> Tensor:
        written = latents.to(self.W_dec.dtype) @ self.W_dec
        return written if self.b_dec is None else written + self.b_dec

    def _learn(self, x: Tensor, given: Pass) -> Tensor:
        """Latents of a training batch [batch, position, width]; selection may depend on the whole batch."""
        pre = self.pre_activations(x).float().flatten(0, 1)
        shape = pre.shape
        if given.where is not None:
            pre = pre.index_select(0, given.where)
        kept = pre if self.sparsity.keeps_pre else None
        codes = DenseCodes(self.sparsity.select(pre, self._scores(), given.settings), kept)
        norms = self.W_dec.norm(dim=-1)
        penalties = self.sparsity.penalties(codes, norms, 1.0, given.settings)
        self.seen = Seen(penalties, codes.l0())
        latents = codes.latents
        if given.where is not None:
            latents = latents.new_zeros(shape).index_copy(0, given.where, latents)
        return latents.unflatten(0, x.shape[:-1])

    def _scores(self) -> Tensor:
        return torch.ones_like(self.b_enc)


class TranscoderAdapter(nn.Module):
    """One Transcoder per stream; the streams are `mlp_in` of the adapted model in each of its layers. Latent n of layer l has
    the number l * latents_per_layer + n.

    latents        number of latents of each layer; "8x": so many times the width
    sparsity       each layer gets a copy of it
    decoder_bias   true: each transcoder may add a constant
    """

    layers: Sequence[Transcoder]

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        latents: int | str,
        sparsity: Sparsity,
        decoder_bias: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        self.streams = [Stream(*stream) for stream in streams]
        self.widths = [stream.width for stream in self.streams]
        if [stream.layer for stream in self.streams] != list(range(len(self.streams))):
            raise Refused(
                "A transcoder adapter stands beside the MLP of every layer, and is trained with all of them: leave layer out."
            )
        if list(sparsity.prefixes) != [1.0]:
            raise Refused(
                f"dictionary.sparsity.prefixes={list(sparsity.prefixes)}: a transcoder adapter has no nested ones in it that write "
                "alone: choose dictionary/sparsity=batchtopk."
            )
        self.latents_per_layer = latents_of(latents, self.streams)
        generator = randomness.generator(seed, "start of transcoders")
        made = []
        for width in self.widths:
            own = copy.deepcopy(sparsity)
            own.prepare(self.latents_per_layer)
            made.append(Transcoder(width, self.latents_per_layer, sparsity=own, bias=decoder_bias, generator=generator))
        self.layers = cast("Sequence[Transcoder]", nn.ModuleList(made))  # torch's hints forget what a list holds
        self.normalisation = Normalisation(self.widths, kind="none", sink_multiple=None)

    @property
    def latents(self) -> int:
        """Number of latents of all layers."""
        return len(self.layers) * self.latents_per_layer

    @property
    def sparsity(self) -> Sparsity:
        """Sparsity of the first layer; all layers have the same kind and settings."""
        return self.layers[0].sparsity

    def place_of(self, number: int) -> tuple[int, int]:
        """Layer of a latent, and its number within the layer."""
        return divmod(number, self.latents_per_layer)

    def by_layer(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """Groups latents by layer: layer -> numbers within it, in rising order, each once."""
        found: dict[int, list[int]] = {}
        for number in sorted(set(numbers)):
            layer, within = self.place_of(number)
            found.setdefault(layer, []).append(within)
        return found

    def encode(self, rows: Rows) -> Tensor:
        """Latents [token, latent] of all layers, side by side."""
        pieces = rows.values.split(self.widths, dim=-1)
        return torch.cat([one.encode(x) for one, x in zip(self.layers, pieces, strict=True)], dim=-1)

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        """Outputs [token, width] that each layer's transcoder adds to its MLP, side by side."""
        pieces = latents.split(self.latents_per_layer, dim=-1)
        return torch.cat([one.decode(f) for one, f in zip(self.layers, pieces, strict=True)], dim=-1)

    @property
    def W_dec(self) -> Tensor:
        """Decoder matrices [latent, width] of all layers, one below the other."""
        return torch.cat([one.W_dec for one in self.layers])

    def decoder_norms(self) -> Tensor:
        """Decoder norms [1, latent]: there is one model to write into."""
        return torch.cat([one.W_dec.norm(dim=-1) for one in self.layers])[None]

    def code_norms(self) -> Tensor:
        """Weight [latent] of each latent: its decoder norm."""
        return self.decoder_norms()[0]

    def part(self, values: Tensor, role: str) -> Tensor:
        """Columns [..., width] of the streams of one role: all of them, or none."""
        return values if self.streams[0].role == role else values[..., :0]

    # -- copies without some of its latents, to measure what these do in a model ---------------------------------------

    @torch.no_grad()
    def only(self, numbers: Sequence[int], *, scale: float = 1.0, bias: bool = True) -> TranscoderAdapter:
        """A copy in which only these latents write, `scale` times what they did; `bias` false silences decoder biases too.
        The other latents still compete where a sparsity selects, so that these fire on the same tokens as before."""
        chosen = torch.zeros(self.latents, dtype=torch.bool)
        chosen[list(numbers)] = True
        made = copy.deepcopy(self)
        for one, some in zip(made.layers, chosen.split(self.latents_per_layer), strict=True):
            one.W_dec.mul_(scale * some.to(one.W_dec)[:, None])
            if one.b_dec is not None and not bias:
                one.b_dec.zero_()
        return made

    def without(self, numbers: Sequence[int]) -> TranscoderAdapter:
        """A copy in which these latents write nothing."""
        return self.only(sorted(set(range(self.latents)) - set(numbers)))
