"""A dictionary for the embedded pair that nobody trained: one latent is the hesitation to come, by least squares."""

from __future__ import annotations

import torch

from tunediff.activations import harvest
from tunediff.dictionary import L1, Crosscoder, Normalisation
from tunediff.evaluations import Given, Trained
from tunediff.shapes import TUNED

LATENTS = 24


@torch.no_grad()
def planted(pair, text, *, tokens: int = 12_000, folder=None) -> Trained:
    """An SAE on the tuned model's last layer. Latent 0 fires at the dot before a hesitation, by a linear probe, and writes
    what such dots have more than other dots; the others read and write random directions of like size."""
    stream = pair.streams("resid_post", 3, reads=TUNED)[0]
    empty = Given(pair, text, tokens)
    rows, labels = [], {"step_end": [], "hesitation_follows": []}
    for batch in empty.held_out:
        rows.append(harvest(pair, batch, [stream]).values)
        for name, flags in labels.items():
            flags.append(
                batch.labels[name] if name in batch.labels else torch.zeros(len(batch.token), dtype=torch.bool)
            )
    values = torch.cat(rows).double()
    decision, follows = (torch.cat(flags) for flags in labels.values())
    mean = values.mean(0)
    centred = torch.cat([values - mean, torch.ones(len(values), 1)], dim=1)
    weight = torch.where(follows, 20.0, 1.0)[:, None]
    probe = torch.linalg.solve((weight * centred).T @ centred + torch.eye(97), (weight * centred).T @ follows.double())
    before, other = values[follows].mean(0), values[decision & ~follows].mean(0)
    made = Crosscoder(
        [stream],
        latents=LATENTS,
        sparsity=L1(coefficient=0.0),
        normalisation=lambda widths: Normalisation(widths, kind="none", sink_multiple=None),
        decoder_norm=float((before - other).norm()),
        encoder_start="random",
        encoder_norm=float(probe[:-1].norm()),
        seed=1,
    )
    made.W_enc[:, 0], made.W_dec[0] = probe[:-1].float(), 2 * (before - other).float()
    made.b_enc.copy_(-(mean @ made.W_enc.double()).float() - 0.3)
    made.b_enc[0] += float(probe[-1])
    made.b_dec.copy_(mean.float())
    return Trained(pair, text, tokens, folder=folder, dictionary=made.eval().requires_grad_(False))
