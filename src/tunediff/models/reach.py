"""Places that a dictionary would read, tried on the models without their weights: is there a module, is it computed, and is
what it gives as wide as the hookpoint says?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunediff.hookpoints import HOOKPOINTS, LORA, ForwardStopped, Point, module_of, reading
from tunediff.models.pair import ModelPair
from tunediff.shapes import ROLES, TRANSCODER, Refused, Stream


def check_places(pair: ModelPair, streams: Sequence[Stream]) -> None:
    """Raises Refused where a model has no module at a place that is read."""
    for stream in streams:
        if HOOKPOINTS[stream.hookpoint].module and stream.hookpoint != TRANSCODER:
            for role in stream.models:
                module_of(pair.source(role).empty, Point(stream.hookpoint, stream.layer))


def check_widths(pair: ModelPair, streams: Sequence[Stream]) -> None:
    """Raises Refused where two tokens, passed through a model of shapes alone, give no hidden vectors at a place, or others
    than its width says. An architecture that cannot be computed without weights is not looked at."""
    for role in ROLES:
        mine = [stream for stream in streams if role in stream.models and stream.hookpoint not in (LORA, TRANSCODER)]
        points = [Point(stream.hookpoint, stream.layer) for stream in mine]
        model = pair.source(role).empty
        tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
        mask = torch.zeros(
            1, 1, 2, 2, dtype=next(model.parameters()).dtype, device="meta"
        )  # made here: making it asks for values
        try:
            with torch.no_grad(), reading(model, points) as found:
                model(input_ids=tokens, attention_mask=mask, use_cache=False)
        except ForwardStopped:
            pass
        except (NotImplementedError, RuntimeError):  # asks for a value
            return
        except (AttributeError, TypeError) as error:
            places = ", ".join(map(str, dict.fromkeys(mine)))
            raise Refused(
                f"{places}: what stands there is no hidden vector [batch, position, width] ({error})."
            ) from error
        for stream, point in zip(mine, points, strict=True):
            check_value(pair.source(role).path, stream, found.get(point))


def check_value(path: str, stream: Stream, value: torch.Tensor | None) -> None:
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
