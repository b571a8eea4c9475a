"""Latents of a trained dictionary -> the edits of them in a model: one where a crosscoder reads it, or one a layer where a
transcoder adapter stands, in the model that it stands in (arXiv 2602.20904).

Which model that is follows from the dictionary where it is not said. Strength 1 is a latent's largest activation on the
held-out text, its mean is that over the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits import Edit, Everywhere, Gate, Latents, Operation, transcoder_edits
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.shapes import ADAPTER, BASE, DIFFERENCE, HYBRID, OTHER, TUNED, Refused, Stream

UNRESTORED = "unrestored"  # a mode beside those of an edit: replace, in the units of the dictionary
CONTRAST = {**OTHER, ADAPTER: HYBRID}  # the model beside which one that is edited is shown


def check_role(role: str | None, *, setting: str) -> None:
    """Raises Refused for a role whose model no latents are written into."""
    if role not in (None, *CONTRAST):
        raise Refused(f"{setting}.role={role}: choose base or tuned, or adapter for latents of a transcoder adapter.")


def role_of(trained: Trained, role: str | None, *, setting: str) -> str:
    """Role of the model whose latents are written: the one that was asked for, or else the dictionary's own, tuned where it
    reads both. Raises Refused for a model that the latents have no place in."""
    if isinstance(trained.dictionary, TranscoderAdapter):
        if role not in (None, ADAPTER):
            raise Refused(
                f"{setting}.role={role}: latents of a transcoder adapter are written in the adapter model: leave role out."
            )
        return ADAPTER
    if role == ADAPTER:
        raise Refused(
            f"{setting}.role=adapter is for latents of a transcoder adapter, and this dictionary reads "
            f"{', '.join(map(str, trained.dictionary.streams))}: choose base or tuned."
        )
    return role or (BASE if trained.roles == [BASE] else TUNED)


def latent_edits(
    trained: Trained,
    role: str,
    numbers: Sequence[int],
    operation: Operation,
    *,
    seen: LatentStatistics,
    gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
    mode: str = "delta",
    along: Tensor | None = None,
) -> tuple[Edit, ...]:
    """The edits of these latents in the model that `role_of` gives: one, or one a layer of a transcoder adapter. Raises
    Refused for what a transcoder adapter cannot have: it reads no other model, has no reconstruction, and each of its layers
    would need a direction of its own."""
    dictionary, gate = trained.dictionary, gate.of(trained.dictionary)
    if isinstance(dictionary, TranscoderAdapter):
        # its latents are computed while the model runs, so that they are changed in place, on the way to their decoders; a
        # crosscoder's are not, so that what it adds to a hidden vector is changed
        if operation.reads_other:
            raise Refused(
                f"{operation} takes what the other model has, and latents of a transcoder adapter stand in one model: set "
                "them to zero, to their mean, or scale them."
            )
        if mode != "delta":
            raise Refused(
                f"mode={mode}: a transcoder adapter reconstructs no hidden vector that could take its place: use delta."
            )
        if along is not None:
            raise Refused(
                "A change of a transcoder adapter's latents has as many directions as it has layers: leave `along` out."
            )
        return transcoder_edits(dictionary, numbers, operation, scale=seen.maximum, mean=seen.mean, gate=gate)
    chosen, device = torch.tensor(numbers), trained.pair.device(role)
    # strength 1 and the mean come from held-out text: from what is being written they would depend on the edit itself
    scale, mean = (values[chosen].to(device) for values in (seen.maximum, seen.mean))
    restored, mode = mode != UNRESTORED, "replace" if mode == UNRESTORED else mode
    part = Latents(trained.reconstructing, chosen.to(device), scale, mean, restored)
    return (Edit(written_at(trained, role), part, operation, gate, mode, along),)


def written_at(trained: Trained, role: str) -> Stream:
    """The place where the dictionary's latents of a model are written. Raises Refused where there is none."""
    streams = trained.dictionary.streams
    own = [stream for stream in streams if stream.role == role]
    # tuned - base has the units of both, and what is added to tuned is added to it; base is what it is a difference from
    if not own and streams[0].role == DIFFERENCE and role == TUNED:
        own = [streams[0]._replace(role=TUNED)]
    if not own and len(streams) == 1 and streams[0].role != DIFFERENCE:  # an SAE of one model reads the other as well
        own = [streams[0]._replace(role=role)]
    if len(own) != 1:
        raise Refused(
            f"Latents of a dictionary that reads {', '.join(map(str, streams))} cannot be written into the {role} model: "
            "that takes one layer of it."
        )
    return own[0]


def random_direction(at: Stream, generator: torch.Generator) -> Tensor:
    """A direction [width] of any length, uniform on the sphere."""
    return torch.randn(at.width, generator=generator)
