"""Streams side by side [token, width] -> latents [token, latent] -> the same streams, reconstructed.

    n = normalise(x)     f = sparsity(n W_enc + b_enc)     x_hat = restore(f W_dec + b_dec)

One matrix product serves all streams (Lindsey et al. 2024 write it as a sum over models; where a paper takes their mean,
as Delta-Crosscoder does, the factor is one that the encoder learns); one stream is an SAE, two a
crosscoder for model diffing. encode and decode speak the models' own units. Knows no model, no data, no loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tunediff import processes, randomness
from tunediff.dictionary.codes import Codes, DenseCodes, Screened
from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.partition import Partition
from tunediff.dictionary.protocol import LinearDecoder
from tunediff.dictionary.sparsity import Sparsity, strongest
from tunediff.schedules import Length, Schedule
from tunediff.shapes import Refused, Rows, Stream

FROZEN, SOFT = ("decoder", "soft_decoder", "encoder"), 0.8


def latents_of(setting: int | str, streams: Sequence[Stream]) -> int:
    """Number of latents that dictionary.latents asks for, "8x" being 8 times the width of a stream. Raises Refused for
    another word."""
    words = str(setting)
    number = words.removesuffix("x")
    if not number.isdecimal() or int(number) < 1:
        raise Refused(f"dictionary.latents={setting}: give a number from 1, or a multiple of the width such as 8x.")
    return int(number) * (streams[0].width if words.endswith("x") else 1)


def sparse_pays(asked: bool | None, k: float, latents: int, *, on_cpu: bool, processes: int) -> bool:
    """The decision for sparse codes of k active latents a token, unless it is `asked` for one or the other."""
    if processes > 1:
        return False
    return asked if asked is not None else on_cpu and 8 * k < latents


class Crosscoder(LinearDecoder):
    """W_enc [width, latent], b_enc [latent], W_dec [latent, width], b_dec [width]. W_enc lies in memory as its transpose,
    so that what concerns one latent is contiguous in both matrices.

    latents          how many; "8x": so many times the width of a stream
    partition        which latents may touch which model, and which share a decoder; null: all touch all
    decoder_norm     norm of each decoder row of each stream at the start
    shared_start     the same random directions for every stream (needs equal widths); otherwise drawn for each
    encoder_start    transpose: of the decoder; scaled_transpose: that times width / latents (Anthropic, January 2025);
                     random: drawn; tied: the decoder's transpose for ever
    encoder_norm     norm of each encoder column of each stream at the start; null: as encoder_start gives it
    start_rate       share of tokens on which each latent is to fire at the start, by its encoder bias, set from a sample
                     (Anthropic, January 2025: 10,000 / latents); null: biases begin at 0
    unit_decoder     keeps the joint norm of each decoder row at its start: projected after every step, and the gradient
                     along a row removed (Bricken et al. 2023)
    code_norm        how a latent weighs in selection and penalty: sum of its decoder norms over streams (Lindsey et al.
                     2024), their joint norm, which makes no exclusives (Anthropic, February 2025), or none
    decoder_bias     at the start: geometric_median of a sample, mean, or zero
    subtract_decoder_bias    the encoder sees n - b_dec (Bussmann et al. 2024); false as in Lindsey et al. and Minder et al.
    frozen           a control that learns less (arXiv 2602.14111): decoder or encoder, whose matrix stays at its random start, or
                     soft_decoder, whose rows are held within a cosine of 0.8 of theirs; null: all learns
    sparse_codes     training keeps active latents only, where the sparsity has few; null: on the CPU (on GPUs it was not
                     measured); always false with several processes
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        latents: int | str,
        sparsity: Sparsity,
        normalisation: Callable[[Sequence[int]], Normalisation],
        partition: Partition | None = None,
        decoder_norm: float = 0.3,
        shared_start: bool = False,
        encoder_start: str = "transpose",
        encoder_norm: float | None = None,
        start_rate: float | None = None,
        unit_decoder: bool = False,
        code_norm: str = "sum",
        decoder_bias: str = "geometric_median",
        subtract_decoder_bias: bool = False,
        frozen: str | None = None,
        sparse_codes: bool | None = None,
        seed: int = 0,
    ):
        super().__init__()
        latents = latents_of(latents, streams)
        for name, word, legal in (
            ("encoder_start", encoder_start, ("transpose", "scaled_transpose", "random", "tied")),
            ("code_norm", code_norm, ("sum", "joint", "none")),
            ("decoder_bias", decoder_bias, ("geometric_median", "mean", "zero")),
        ):
            if word not in legal:
                raise Refused(f"dictionary.{name}='{word}': choose {', '.join(legal[:-1])} or {legal[-1]}.")
        if frozen not in (None, *FROZEN):
            raise Refused(f"dictionary.frozen='{frozen}': choose {', '.join(FROZEN)} or null.")
        if frozen is not None and encoder_start == "tied":
            raise Refused(
                f"dictionary.frozen={frozen} needs an encoder of its own: choose another encoder_start than tied."
            )
        for name, norm in (("decoder_norm", decoder_norm), ("encoder_norm", encoder_norm)):
            if norm is not None and not 0 < norm < math.inf:
                raise Refused(f"dictionary.{name}={norm}: give a norm above 0.")
        if start_rate is not None and not 0 < start_rate < 1:
            raise Refused(f"dictionary.start_rate={start_rate} is no share of the tokens: give one between 0 and 1.")
        self.streams = [Stream(*stream) for stream in streams]
        if partition is not None:
            partition.bind(self.streams, latents)
        shared = 0 if partition is None else partition.shared
        sparsity.prepare(latents, shared=shared, width=self.streams[0].width)
        if shared_start and len(set(self.widths)) > 1:
            raise Refused(
                f"dictionary.shared_start=true needs streams of equal width, these have {self.widths}: set it to false."
            )
        self.sparsity, self.partition = sparsity, partition
        self.subtract_decoder_bias, self.code_norm, self.unit_decoder = subtract_decoder_bias, code_norm, unit_decoder
        self.decoder_bias, self.start_rate, self.sparse_codes = decoder_bias, start_rate, sparse_codes
        self.frozen = frozen
        self.normalisation = normalisation(self.widths)

        def directions(purpose: str) -> Tensor:
            generator = randomness.generator(seed, "start of a dictionary", purpose)
            if shared_start:
                drawn = [torch.randn(latents, self.widths[0], generator=generator)] * len(self.widths)
            else:
                drawn = [torch.randn(latents, width, generator=generator) for width in self.widths]
            return torch.cat([decoder_norm * nn.functional.normalize(d, dim=-1) for d in drawn], dim=-1)

        self.W_dec = nn.Parameter(directions("decoder"))
        if encoder_start != "tied":
            start = directions("encoder") if encoder_start == "random" else self.W_dec.detach().clone()
            if encoder_start == "scaled_transpose":
                start *= sum(self.widths) / latents
            if encoder_norm is not None:
                pieces = start.split(self.widths, dim=-1)
                start = torch.cat([encoder_norm * nn.functional.normalize(piece, dim=-1) for piece in pieces], dim=-1)
            self.W_enc = nn.Parameter(start.T)
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(sum(self.widths)))
        if partition is not None:
            with torch.no_grad():
                partition.forbid(None if self.is_tied else self.W_enc, self.W_dec)
                partition.tie(self.W_dec)
        self.start_norms = self.W_dec.detach().norm(dim=-1, keepdim=True) if unit_decoder else None
        self.start_rows = nn.functional.normalize(self.W_dec.detach(), dim=-1) if frozen == "soft_decoder" else None

    @property
    def has_penalty(self) -> bool:
        return self.sparsity.has_penalty

    @property
    def is_tied(self) -> bool:
        return "W_enc" not in self._parameters

    @property
    def encoder(self) -> Tensor:
        """Encoder matrix [width, latent]."""
        return self.W_dec.T if self.is_tied else self.W_enc

    @torch.no_grad()
    def fit(self, rows: Rows) -> None:
        """Fits the normalisation on a sample and initialises the biases from it."""
        self.normalisation.fit(rows.values)
        usual = self.normalisation.admits(rows.values)
        moments = None if rows.moments is None else rows.moments[usual]
        sample = self.normalisation.normalise(rows.values[usual].float(), moments)
        if self.decoder_bias != "zero":
            self.b_dec.copy_(sample.mean(0) if self.decoder_bias == "mean" else geometric_median(sample))
        if self.start_rate is not None:
            part = sample[torch.linspace(0, len(sample) - 1, min(len(sample), 4096)).long()]  # of every place in it
            seen, firing = self.centred(part), max(1, round(self.start_rate * len(part)))
            reached = [(seen @ some).topk(firing, dim=0).values[-1] for some in self.encoder.split(4096, dim=1)]
            self.b_enc.copy_(self.sparsity.edge() - torch.cat(reached))

    # -- in normalised units, for training ---------------------------------------------------------------------------

    def pre_activations(self, normalised: Tensor) -> Tensor:
        """Pre-activations [token, latent] of normalised rows."""
        return nn.functional.linear(self.centred(normalised), self.encoder.T, self.b_enc)

    def centred(self, normalised: Tensor) -> Tensor:
        """Input of the encoder: normalised rows, with b_dec subtracted where the settings say so."""
        return normalised - self.b_dec if self.subtract_decoder_bias else normalised

    def code(self, normalised: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Codes:
        active = settings.get("k", 0.0) + settings.get("k_shared", 0.0)
        if self.sparsity.few and self.goes_sparse(normalised, active, self.latents):
            rows = self.centred(normalised)
            codes = self.sparsity.select_sparse(Screened(rows, self.encoder, self.b_enc), norms.detach(), settings)
            return codes.taught_by(rows, self.encoder, self.b_enc)
        pre = self.pre_activations(normalised).float()
        kept = pre if self.sparsity.keeps_pre else None
        return DenseCodes(self.sparsity.select(pre, norms, settings), kept)

    def code_of(self, some: Tensor, normalised: Tensor, k: int) -> Codes:
        """Codes of the latents with the indices `some` [n] alone: the k strongest per token, whatever the sparsity."""
        rows, encoder, bias = self.centred(normalised), self.encoder.T.index_select(0, some).T, self.b_enc[some]
        norms = torch.ones_like(bias).detach()
        if self.goes_sparse(normalised, k, len(some)):
            return Screened(rows, encoder, bias).strongest(norms, k).taught_by(rows, encoder, bias)
        pre = nn.functional.linear(rows, encoder.T, bias).float()
        return DenseCodes(strongest(torch.relu_(pre), norms, k))

    def goes_sparse(self, rows: Tensor, k: float, latents: int) -> bool:
        """Decides whether codes are sparse: on the CPU, where fewer than one latent in eight is active, they are faster.
        Several processes select over the whole batch together, for which codes are dense."""
        on_cpu = rows.device.type == "cpu"
        return sparse_pays(self.sparse_codes, k, latents, on_cpu=on_cpu, processes=processes.count())

    def reconstructions(self, codes: Codes) -> list[Tensor]:
        ends = [round(share * self.latents) for share in self.sparsity.prefixes]
        so_far, found = self.b_dec, []
        for first, last in zip([0, *ends], ends, strict=False):
            so_far = so_far + codes.decode(self.W_dec, first, last).float()
            found.append(so_far)
        return found

    @torch.no_grad()
    def constrain_gradients(self) -> None:
        gradient = self.W_dec.grad
        assert gradient is not None, "constrain_gradients follows a backward pass"
        if self.unit_decoder:
            unit = nn.functional.normalize(self.W_dec, dim=-1)
            gradient -= (gradient * unit).sum(-1, keepdim=True) * unit
        if self.partition is not None:
            self.partition.forbid(None if self.is_tied else self.W_enc.grad, gradient)
            self.partition.tie(gradient)
        still = {"decoder": gradient, "encoder": None if self.is_tied else self.W_enc.grad}.get(self.frozen or "")
        if still is not None:
            still.zero_()

    @torch.no_grad()
    def settle(self) -> None:
        if self.start_rows is not None:
            self.W_dec.copy_(held_near(self.W_dec, self.start_rows.to(self.W_dec.device)))
        if self.start_norms is not None:
            self.W_dec.copy_(nn.functional.normalize(self.W_dec, dim=-1) * self.start_norms.to(self.W_dec.device))
        self.sparsity.settle()

    def penalties(self, codes: Codes, norms: Tensor, settings: Mapping[str, float]) -> dict[str, Tensor]:
        weights = 1.0
        if self.partition is not None:
            weights = self.partition.weights(settings["tied_penalty"], self.latents, norms.device)
        return self.sparsity.penalties(codes, norms, weights, settings)

    def schedules(self) -> dict[str, Schedule]:
        found = {f"sparsity.{name}": schedule for name, schedule in self.sparsity.schedules().items()}
        if self.partition is not None:
            found["partition.tied_penalty_schedule"] = self.partition.tied_penalty_schedule
        return found

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        values = dict(self.sparsity.scheduled(step, length))
        if self.partition is not None:
            factor = self.partition.tied_penalty_schedule(step, length)
            values["tied_penalty"] = self.partition.tied_penalty * factor
        return values

    def observed(self) -> dict[str, Tensor]:
        return self.sparsity.observed()

    # -- in the models' own units, for everything else ----------------------------------------------------------------

    def encode(self, rows: Rows) -> Tensor:
        return self.sparsity(self.pre_activations(self.normalisation.normalise(*rows)), self.code_norms())

    def code_norms(self) -> Tensor:
        if self.code_norm == "none":
            return torch.ones_like(self.b_enc)
        norms = self.decoder_norms()
        return norms.sum(0) if self.code_norm == "sum" else norms.norm(dim=0)


def held_near(rows: Tensor, start: Tensor, *, cosine: float = SOFT) -> Tensor:
    """Rows [latent, width], those further from their unit `start` than `cosine` turned back to it in the plane of both, with
    their norm (arXiv 2602.14111)."""
    norms = rows.norm(dim=-1, keepdim=True)
    along = (rows * start).sum(-1, keepdim=True)
    aside = nn.functional.normalize(rows - along * start, dim=-1)
    turned = norms * (cosine * start + (1 - cosine**2) ** 0.5 * aside)
    return torch.where(along < cosine * norms, turned, rows)


def geometric_median(points: Tensor, *, steps: int = 30) -> Tensor:
    """The point [width] with the smallest summed distance to `points` [token, width], by Weiszfeld's iteration."""
    guess = points.mean(0)
    for _ in range(steps):
        weight = 1 / (points - guess).norm(dim=-1).clamp(min=1e-8)
        guess = (weight[:, None] * points).sum(0) / weight.sum()
    return guess
