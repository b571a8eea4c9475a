"""Predictions of a model whose activations are replaced by their reconstruction."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from tunediff.evaluations.given import Reading, Trained
from tunediff.hookpoints import Point, writing
from tunediff.measures.next_tokens import predicted
from tunediff.shapes import DIFFERENCE, TUNED


@torch.no_grad()
def predictions(trained: Trained, reading: Reading, role: str, replacement: Tensor | None) -> tuple[Tensor, Tensor]:
    """Last hidden vectors [scored token, width] at the position before each kept token, with the activations of the admitted
    tokens replaced; and which kept tokens are scored, [token] bool (not a first one)."""
    pair, batch, model = trained.pair, reading.batch, model_of(role)
    before, _, _, scored = predicted(pair, model, batch)
    places = pair.places(model, batch)
    with ExitStack() as edits:
        if replacement is not None:
            if role == DIFFERENCE:  # what is written is the change of the difference
                replacement = replacement - trained.part(reading.rows.values, role).to(replacement)
            pieces = replacement.split([trained.dictionary.widths[n] for n in trained.streams_of(role)], dim=-1)
            admitted = reading.admitted.to(places.device)
            for n, piece in zip(trained.streams_of(role), pieces, strict=True):
                stream = trained.dictionary.streams[n]

                def splice(value: Tensor, piece=piece) -> Tensor:
                    flat = value.flatten(0, 1).clone()
                    kept = flat[places[admitted]] if role == DIFFERENCE else 0.0
                    flat[places[admitted]] = kept + piece.to(flat)[admitted]
                    return flat.view_as(value)

                edits.enter_context(writing(pair.models[model], Point(stream.hookpoint, stream.layer), splice))
        hidden = pair.last_hidden(model, batch).flatten(0, 1)
    return hidden[before], scored


def spread_out(values: Tensor, scored: Tensor) -> Tensor:
    """Values of the scored tokens at their places among all kept tokens, zero elsewhere; float64 on the host."""
    whole = torch.zeros(len(scored), dtype=torch.float64)
    whole[scored] = values.cpu().double()
    return whole


def model_of(role: str) -> str:
    """The model that a reconstruction of a role's streams is written into."""
    return TUNED if role == DIFFERENCE else role
