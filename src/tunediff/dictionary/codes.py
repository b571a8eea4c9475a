"""The latents of a training batch, dense or sparse: both decode, count and tell who fired, with the same gradients.

DenseCodes keep [token, latent]. SparseCodes keep only what is active, as (token, latent, value): decoding, the latents'
gradient and both weight gradients then cost k / latents of a matrix product, and nothing of size token x latent outlives
the block of rows that it was selected in. Plain torch: embedding_bag sums rows, sampled_addmm multiplies where a code is.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

with warnings.catch_warnings():  # torch says once in a process that compressed sparse matrices are in beta
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
    torch.zeros(1, 1).to_sparse_csr()

BLOCK = 256  # rows of pre-activations that are held at once


class DenseCodes:
    """Codes as one matrix `latents` [token, latent]; `pre` holds the pre-activations where a penalty asks for them."""

    def __init__(self, latents: Tensor, pre: Tensor | None = None):
        self.latents, self.pre = latents, pre

    def decode(self, W_dec: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Reconstruction [token, width], without bias, by the latents `first` to `last` - 1."""
        if (first, last) == (0, self.latents.shape[1]):  # a slice of the whole would copy its gradient
            return self.latents @ W_dec
        return self.latents[:, first:last] @ W_dec[first:last]

    def dense(self) -> Tensor:
        """Latents [token, latent], with their gradient."""
        return self.latents

    def fired(self) -> Tensor:
        """Mask [latent] of the latents that are active on some token."""
        return self.latents.detach().bool().any(0)

    def l0(self) -> Tensor:
        """Mean number of active latents per token."""
        return torch.count_nonzero(self.latents.detach()) / max(len(self.latents), 1)


class Places:
    """Positions of n active codes in [token, latent]: `flat` [n] are their indices in the flattened matrix, token by token."""

    def __init__(self, flat: Tensor, tokens: int, latents: int):
        self.flat, self.tokens, self.latents = flat, tokens, latents
        self.token = flat.div(latents, rounding_mode="floor")
        self.latent = flat - self.token * latents

    def __len__(self) -> int:
        return len(self.flat)

    def those(self, chosen: Tensor) -> Places:
        return Places(self.flat[chosen], self.tokens, self.latents)

    @functools.cached_property
    def token_starts(self) -> Tensor:
        return _starts(self.token, self.tokens)

    @functools.cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order [n] that sorts codes by latent, the tokens in that order, and the first index of each latent."""
        order = torch.argsort(self.latent.int(), stable=True)
        return order, self.token[order], _starts(self.latent, self.latents)

    def sums_by_token(self, values: Tensor, rows: Tensor) -> Tensor:
        """Sums [token, width]: values * rows, over the latents of each token; rows [latent, width]."""
        return embedding_bag(self.latent, rows, self.token_starts, mode="sum", per_sample_weights=values)

    def sums_by_latent(self, values: Tensor, rows: Tensor) -> Tensor:
        """Sums [latent, width]: values * rows, over the tokens of each latent; rows [token, width]."""
        order, tokens, starts = self.by_latent
        return embedding_bag(tokens, rows.contiguous(), starts, mode="sum", per_sample_weights=values[order])

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Products [n] of left [token, width] and right [latent, width] at every code."""
        ends = torch.cat([self.token_starts, self.token_starts.new_tensor([len(self)])])
        zeros = torch.zeros(len(self), dtype=left.dtype, device=left.device)
        pattern = torch.sparse_csr_tensor(ends, self.latent, zeros, (self.tokens, self.latents), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left.contiguous(), right.T, beta=0.0).values()


def _starts(numbers: Tensor, count: int) -> Tensor:
    counts = torch.bincount(numbers, minlength=count)
    return counts.cumsum(0) - counts


class SparseCodes:
    """Codes as the `values` [n] of the active latents, at their places."""

    def __init__(self, values: Tensor, places: Places):
        self.values, self.places = values, places

    def decode(self, W_dec: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        last = self.places.latents if last is None else last
        if (first, last) == (0, self.places.latents):
            return _Decode.apply(self.values, W_dec, self.places)
        here = (self.places.latent >= first) & (self.places.latent < last)
        return _Decode.apply(self.values[here], W_dec, self.places.those(here))

    def dense(self) -> Tensor:
        """Latents [token, latent], with their gradient: as large as dense codes are."""
        flat = self.values.new_zeros(self.places.tokens * self.places.latents)
        return flat.index_put((self.places.flat,), self.values).view(self.places.tokens, self.places.latents)

    def fired(self) -> Tensor:
        flags = torch.zeros(self.places.latents, dtype=torch.bool, device=self.values.device)
        flags[self.places.latent] = True
        return flags

    def l0(self) -> Tensor:
        return torch.tensor(len(self.places) / max(self.places.tokens, 1), device=self.values.device)

    def those(self, chosen: Tensor) -> SparseCodes:
        return SparseCodes(self.values[chosen], self.places.those(chosen))

    def beside(self, others: SparseCodes) -> SparseCodes:
        """These codes and those of other latents of the same tokens, which are numbered behind these."""
        mine, theirs = self.places, others.places
        latents = mine.latents + theirs.latents
        flat = torch.cat([mine.token * latents + mine.latent, theirs.token * latents + theirs.latent + mine.latents])
        order = flat.argsort()
        return SparseCodes(torch.cat([self.values, others.values])[order], Places(flat[order], mine.tokens, latents))

    def taught_by(self, rows: Tensor, W_enc: Tensor, b_enc: Tensor) -> SparseCodes:
        """The same values, with the gradient of rows[token] W_enc[:, latent] + b_enc[latent]."""
        return SparseCodes(_Encode.apply(rows, W_enc, b_enc, self.values, self.places), self.places)


Codes = DenseCodes | SparseCodes


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, places):
        ctx.save_for_backward(values, W_dec)
        ctx.places = places
        return places.sums_by_token(values, W_dec)

    @staticmethod
    def backward(ctx, *grad_outputs):
        (gradient,), (values, W_dec) = grad_outputs, ctx.saved_tensors
        return ctx.places.products(gradient, W_dec), ctx.places.sums_by_latent(values, gradient), None


class _Encode(torch.autograd.Function):
    """Gives values that selection has computed the gradient of the matrix product they come from."""

    @staticmethod
    def forward(ctx, rows, W_enc, b_enc, values, places):
        ctx.save_for_backward(rows, W_enc)
        ctx.places = places
        return values.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (gradient,), (rows, W_enc) = grad_outputs, ctx.saved_tensors
        places = ctx.places
        of_rows = places.sums_by_token(gradient, W_enc.T.contiguous()) if ctx.needs_input_grad[0] else None
        of_bias = torch.zeros(places.latents, device=gradient.device).index_add_(0, places.latent, gradient)
        return of_rows, places.sums_by_latent(gradient, rows).T, of_bias, None, None


# -- selection ---------------------------------------------------------------------------------------------------------


class Screened:
    """Pre-activations rows [token, width] @ W_enc + b_enc, computed block by block and never held whole. Under autocast the
    product is taken in the low precision, and the codes that pass are computed again in float32."""

    def __init__(self, rows: Tensor, W_enc: Tensor, b_enc: Tensor):
        self.rows, self.W_enc, self.b_enc = rows, W_enc, b_enc
        device = rows.device.type
        self.low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    @property
    def latents(self) -> int:
        return len(self.b_enc)

    def part(self, latents: slice) -> Screened:
        """The pre-activations of some of the latents."""
        return Screened(self.rows, self.W_enc[:, latents], self.b_enc[latents])

    def limit_of_first_rows(self, norms: Tensor, k: float) -> float:
        """The smallest value * norm that is kept if the first block of rows is the whole batch."""
        with torch.no_grad():
            first = self.rows[:BLOCK]
            scores = (torch.addmm(self.b_enc, first, self.W_enc).float() * norms).flatten()
            return float(scores.topk(min(round(k * len(first)), len(scores)), sorted=False).values.min())

    def above(self, bar: Tensor) -> SparseCodes:
        """Selects the codes whose pre-activation is above the bar [latent]."""

        def passing(pre: Tensor) -> tuple[Tensor, Tensor]:
            places = (pre > bar.to(pre.dtype)).view(-1).nonzero()[:, 0]
            return places, pre.view(-1)[places]

        return self._screened(passing)

    def strongest(self, norms: Tensor, k: int) -> SparseCodes:
        """Selects the k codes of each token with the largest value * norm, and drops those that are not positive."""

        def passing(pre: Tensor) -> tuple[Tensor, Tensor]:
            chosen = (pre * norms.to(pre.dtype)).topk(k, dim=-1, sorted=False).indices
            places = (chosen + torch.arange(len(pre), device=pre.device)[:, None] * self.latents).view(-1)
            values = pre.view(-1)[places]
            positive = values > 0
            return places[positive], values[positive]

        return self._screened(passing)

    def _screened(self, passing) -> SparseCodes:
        with torch.no_grad(), torch.autocast(self.rows.device.type, enabled=False):
            rows, weight, bias = self.rows.detach(), self.W_enc.detach(), self.b_enc.detach()
            if self.low is not None:
                rows, weight, bias = (part.to(self.low) for part in (rows, weight, bias))
            places, values = [], []
            for n in range(0, len(rows), BLOCK):
                where, found = passing(torch.addmm(bias, rows[n : n + BLOCK], weight))
                places.append(where + n * self.latents)
                values.append(found)
            found = Places(torch.cat(places), len(rows), self.latents)
            if self.low is None:
                return SparseCodes(torch.cat(values), found)
            exact = found.products(self.rows.detach().float(), self.W_enc.detach().T.contiguous())
            return SparseCodes(exact + self.b_enc.detach()[found.latent], found)
