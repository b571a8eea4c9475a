"""A partition says which latents may read and write which model: parts of a dictionary, in order along the latents.

    tied         the same decoder for both models, and a lower penalty (Anthropic, Circuits Updates February 2025,
                 "Insights on Crosscoder Model Diffing": designated shared latents)
    shared       reads and writes every stream, each with its own decoder, for what both models have: a selection of its
                 own (DualBatchTopK) and no part in the difference (DeltaLoss)     (Delta-Crosscoder, arXiv 2603.04426)
    free         reads and writes every stream, each with its own decoder: an ordinary latent
    base_only    neither reads nor writes a stream of the tuned model
    tuned_only   neither reads nor writes a stream of the base   (Dedicated Feature Crosscoders, arXiv 2602.11729)

What a latent may not touch is zero at the start and gets no gradient, in encoder and decoder and from every term of the
loss, so it stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.schedules import Constant, Schedule
from tunediff.shapes import BASE, TUNED, Refused, Stream

PARTS = ("tied", "shared", "free", "base_only", "tuned_only")


class Partition:
    """Divides the latents into parts by shares that sum to one.

    tied_penalty            penalty of a tied latent as a share of the others'; 0.1 to 0.2 in the public crosscode trainer
    tied_penalty_schedule   factor of tied_penalty over the run
    """

    def __init__(
        self,
        *,
        tied: float = 0.0,
        shared: float = 0.0,
        free: float = 0.0,
        base_only: float = 0.0,
        tuned_only: float = 0.0,
        tied_penalty: float = 0.15,
        tied_penalty_schedule: Schedule = Constant(),  # noqa: B008 (a frozen dataclass)
    ):
        self.shares = dict(zip(PARTS, (tied, shared, free, base_only, tuned_only), strict=True))
        if min(self.shares.values()) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            words = " + ".join(f"{name} {share:g}" for name, share in self.shares.items())
            raise Refused(
                f"dictionary.partition: {words} is {sum(self.shares.values()):g}; the shares of the parts sum to 1."
            )
        self.tied_penalty, self.tied_penalty_schedule = tied_penalty, tied_penalty_schedule

    def bind(self, streams: Sequence[Stream], latents: int) -> None:
        """Assigns latents to parts and columns to models; the first `shared` latents are those of both models, tied and
        shared. Raises Refused where streams and parts do not fit."""
        roles = {stream.role for stream in streams}
        if roles != {BASE, TUNED}:
            raise Refused(
                f"dictionary.partition needs streams of both models, these are of {', '.join(sorted(roles))}."
            )
        ends = [round(latents * sum(list(self.shares.values())[: n + 1])) for n in range(len(PARTS))]
        self.parts = {part: slice(first, last) for part, first, last in zip(PARTS, [0, *ends], ends, strict=False)}
        self.shared = self.parts["shared"].stop
        self.columns, start = {BASE: [], TUNED: []}, 0
        for stream in streams:
            self.columns[stream.role].append(slice(start, start + stream.width))
            start += stream.width
        widths = [[stream.width for stream in streams if stream.role == role] for role in (BASE, TUNED)]
        if self.shares["tied"] and widths[0] != widths[1]:
            raise Refused(
                f"dictionary.partition.tied={self.shares['tied']} needs models of equal width, these have {widths}."
            )

    def forbid(self, W_enc: Tensor | None, W_dec: Tensor | None) -> None:
        """Sets to zero, in place, the entries through which a latent may not read ([width, latent]) or write ([latent,
        width])."""
        for part, role in (("base_only", TUNED), ("tuned_only", BASE)):
            for column in self.columns[role]:
                if W_enc is not None:
                    W_enc[column, self.parts[part]] = 0
                if W_dec is not None:
                    W_dec[self.parts[part], column] = 0

    def tie(self, W_dec: Tensor) -> None:
        """Replaces the tied rows of both models by their mean, in place; `W_dec` may be weights or their gradient."""
        here = self.parts["tied"]
        if not self.shares["tied"]:  # the models may have other widths, and other numbers of layers
            return
        for base, tuned in zip(self.columns[BASE], self.columns[TUNED], strict=True):
            mean = (W_dec[here, base] + W_dec[here, tuned]) / 2
            W_dec[here, base], W_dec[here, tuned] = mean, mean

    def weights(self, tied_penalty: float, latents: int, device: torch.device) -> Tensor:
        """Share [latent] of the penalty that each latent pays."""
        weights = torch.ones(latents, device=device)
        weights[self.parts["tied"]] = tied_penalty
        return weights
