"""Comparison of each latent's decoder rows between the two models."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunediff.evaluations.given import Trained
from tunediff.shapes import BASE, TUNED


def role_norms(trained: Trained, role: str) -> Tensor:
    """Joint decoder norm [latent] over a model's streams."""
    return trained.dictionary.decoder_norms().detach()[trained.streams_of(role)].norm(dim=0).cpu()


def relative_decoder_norm(trained: Trained) -> Tensor:
    """Relative decoder norm [latent]: |tuned| / (|base| + |tuned|)."""
    base, tuned = (role_norms(trained, role) for role in (BASE, TUNED))
    return tuned / (base + tuned)


def called_exclusive(trained: Trained, exclusive: float) -> dict[str, Tensor]:
    """Masks [latent] of the latents that are called base_only, with a relative decoder norm below `exclusive`, and tuned_only,
    with one above 1 - exclusive."""
    relative = relative_decoder_norm(trained)
    return {"base_only": relative < exclusive, "tuned_only": relative > 1 - exclusive}


def both_decoders(trained: Trained) -> tuple[Tensor, Tensor]:
    """Decoder rows [latent, width] of base and of tuned."""
    base, tuned = (trained.part(trained.dictionary.W_dec.detach(), role).cpu() for role in (BASE, TUNED))
    return base, tuned


def decoder_cosine(trained: Trained) -> Tensor | None:
    """Cosine [latent] of the two decoder rows of each latent; None for unequal widths."""
    base, tuned = both_decoders(trained)
    return cosine_similarity(base, tuned, dim=-1) if base.shape == tuned.shape else None
