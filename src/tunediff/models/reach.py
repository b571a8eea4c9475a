"""Places that a dictionary would read, tried on the models without their weights: is there a module, is it computed, and is
what it gives as wide as the hookpoint says?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunediff.hookpoints import HOOKPOINTS, LORA, ForwardStopped, Point, decoder_layers, module_of, reading
from tunediff.models.pair import ModelPair
from tunediff.shapes import ROLES, TRANSCODER, Refused, Stream


def check_places(pair: ModelPair, streams: Sequence[Stream]) -> None:
    """Raises Refused where a model has no module at a place that is read."""
    for stream in streams:
        if HOOKPOINTS[stream.hookpoint].module and stream.hookpoint != TRANSCODER:
            for role in stream.models:
                module_of(pair.source(role).empty, Point(stream.hookpoint, stream.layer))


def check_widths(pair: ModelPair, streams: Sequence[Stream]) -> None:
    """Raises Refused where a layer of a model of shapes alone, given two tokens, gives no hidden vectors at a place, or others
    than its width says. An architecture that cannot be computed without weights is not looked at."""
    for role in ROLES:
        mine = [stream for stream in streams if role in stream.models and stream.hookpoint not in (LORA, TRANSCODER)]
        for layer in sorted({stream.layer for stream in mine}):
            here = [stream for stream in mine if stream.layer == layer]
            try:
                found = _of_layer(pair.source(role).empty, layer, [Point(stream.hookpoint, layer) for stream in here])
            except (NotImplementedError, RuntimeError):  # asks for a value
                break
            except (AttributeError, TypeError) as error:
                raise Refused(
                    f"{', '.join(map(str, here))}: what stands there is no hidden vector [batch, position, width] ({error})."
                ) from error
            for stream in here:
                check_value(pair.source(role).path, stream, found.get(Point(stream.hookpoint, layer)))


@torch.no_grad()
def _of_layer(model: PreTrainedModel, layer: int, points: Sequence[Point]) -> dict[Point, Tensor]:
    """The vectors at points of one layer, which is given what the first layer is."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, 2, 2, dtype=model.dtype, device="meta")  # made here: making it asks for values
    layers, given = decoder_layers(model), {}

    def keep(_, args: tuple, kwargs: dict) -> None:
        given.update(args=args, kwargs=kwargs)
        raise ForwardStopped

    hook = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with suppress(ForwardStopped):
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
    finally:
        hook.remove()
    with reading(model, points) as found, suppress(ForwardStopped):
        layers[layer](*given["args"], **given["kwargs"])
    return dict(found)


def check_value(path: str, stream: Stream, value: Tensor | None) -> None:
    """Raises Refused for a value that is none, or is not [1, 2, width]."""
    if value is None:
        raise Refused(f"{stream}: {path} does not compute its module, so that there is nothing to read.")
    if value.dim() != 3 or value.shape[:2] != (1, 2):
        raise Refused(f"{stream}: {path} gives {list(value.shape)} there, and no vector [batch, position, width].")
    if value.shape[-1] != stream.width:
        raise Refused(
            f"{stream}: {path} gives vectors of width {value.shape[-1]}, and the hookpoint says {stream.width}: set "
            f"dictionary.hookpoint.width={value.shape[-1]}."
        )
