"""The published autoencoders of DeepSeek R1 (Goodfire 2025; Goodfire/DeepSeek-R1-SAE-l37) -> a Crosscoder over one stream.

    f = BatchTopK(ReLU(x W + b_enc))     x_hat = f W^T + b_dec     W [width, latent], b_enc [latent], b_dec [width]

Their file is the state of that module, saved by torch. k is not in it: 128 for the one of mathematics, 64 for the general one. They
select over whichever batch they are given; here a threshold does outside training, which is fitted on a sample, so that a latent does
not depend on its neighbours. Activations are taken as they are: of a scaling nothing was published, nor of the side of the stream.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tunediff.dictionary.crosscoder import Crosscoder
from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.sparsity import BatchTopK
from tunediff.shapes import Refused, Rows, Stream

PARTS = ("W", "b_enc", "b_dec")


def published_sae(file: str | Path, stream: Stream, *, k: int, sample: Tensor) -> Crosscoder:
    """The autoencoder of a file, reading this stream; `sample` [token, width] are activations that its threshold is fitted on. Raises
    Refused for a file of another form and a stream of another width."""
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever else lies there
        raise Refused(f"'{file}' cannot be read as tensors that torch saved: {error}") from error
    if (
        not isinstance(state, dict)
        or {*state} != {*PARTS}
        or not all(isinstance(one, Tensor) for one in state.values())
    ):
        raise Refused(f"'{file}' does not hold {', '.join(PARTS)} alone, as the published autoencoders do.")
    weights, encoder, decoder = (state[name].float() for name in PARTS)
    if weights.ndim != 2 or (*weights.shape,) != (*decoder.shape, *encoder.shape):
        raise Refused(f"'{file}' has shapes that do not fit together: {[(*state[name].shape,) for name in PARTS]}.")
    if len(decoder) != stream.width:
        raise Refused(f"'{file}' reads a width of {len(decoder)}, and {stream} has {stream.width}.")
    sae = Crosscoder(
        [stream],
        latents=len(encoder),
        sparsity=BatchTopK(k),
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
        encoder_start="tied",
        code_norm="none",
        decoder_bias="zero",
    )
    with torch.no_grad():
        for ours, theirs in ((sae.W_dec, weights.T), (sae.b_enc, encoder), (sae.b_dec, decoder)):
            ours.copy_(theirs)
        sae.fit(Rows(sample))
        sae.sparsity.select(sae.pre_activations(sample.float()), torch.ones(len(encoder)), {"k": float(k)})
        sae.sparsity.settle()
    return sae.eval()
