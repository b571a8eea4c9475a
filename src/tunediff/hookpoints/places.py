"""Names of hookpoints, each one row of a table, and the decoder layers of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from tunediff.shapes import LORA, TRANSCODER, Refused


class Place(NamedTuple):
    """Place of a hookpoint in a decoder layer.

    module   path of the module within the layer; "a|b" stands for the first of these names that exists
    read     input or output of the module
    width    a number, or names in the model's configuration such as num_attention_heads*head_dim; "a|b" again stands for
             the first that exists
    before   the next hookpoint in the order in which a layer computes them; null: the output of the attention or MLP that
             the module is a part of, else resid_post
    """

    module: str
    read: str = "output"
    width: int | str = "hidden_size"
    before: str | None = None


ATTENTION = "self_attn|attn|attention"
LAST_PROJECTION = "down_proj|c_proj|dense_4h_to_h|fc2|w2"
HOOKPOINTS = {  # in the order in which a layer computes them; the adapters of lora stand in all of its modules
    "resid_pre": Place("", "input"),
    "attn_out": Place(ATTENTION),
    "mlp_in": Place("mlp", "input"),
    "mlp_neurons": Place(f"mlp.{LAST_PROJECTION}", "input", "intermediate_size|n_inner|4*hidden_size"),
    TRANSCODER: Place(f"mlp.{TRANSCODER}.kept"),  # as wide as the adapter that stands there has latents
    "mlp_out": Place("mlp"),
    "resid_post": Place(""),
    LORA: Place(""),  # of the whole model: see lora.py
}


def add_hookpoint(name: str, row: Mapping[str, Any]) -> None:
    """Adds a user's row to the table of hookpoints. Raises Refused where the name belongs to another place, or the row has
    an unknown key or value."""
    if unknown := sorted(set(row) - set(Place._fields)):
        raise Refused(f"dictionary.hookpoint.{unknown[0]} is not a setting: a row has {', '.join(Place._fields)}.")
    if "module" not in row:
        raise Refused(f"dictionary.hookpoint.module is not set: where in a decoder layer does {name} lie?")
    place = Place(**row)
    for key, kinds in (("module", str), ("width", int | str), ("before", str | None)):
        value = getattr(place, key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise Refused(
                f"dictionary.hookpoint.{key}={value!r}: give {'a number or a word' if key == 'width' else 'a word'}."
            )
    if place.read not in ("input", "output"):
        raise Refused(f"dictionary.hookpoint.read='{place.read}': choose input or output.")
    part = place.module.partition(".")[0]
    follows = place.before or {"mlp": "mlp_out"}.get(part, "attn_out" if part in ATTENTION.split("|") else "resid_post")
    if follows not in HOOKPOINTS:
        raise Refused(f"dictionary.hookpoint.before='{follows}': the hookpoints are {list(HOOKPOINTS)}.")
    if HOOKPOINTS.get(name, place) != place:
        raise Refused(f"dictionary.hookpoint.name={name} stands for another place already: give yours another name.")
    if name not in HOOKPOINTS:
        rows = list(HOOKPOINTS.items())
        rows.insert(list(HOOKPOINTS).index(follows), (name, place))
        HOOKPOINTS.clear()
        HOOKPOINTS.update(rows)


class Point(NamedTuple):
    """A hookpoint of one layer; lora is the whole model's, at the last layer that has an adapter."""

    hookpoint: str
    layer: int


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a model: the one ModuleList of MLP layers as long as the configuration says. Raises Refused
    where there is none or more than one."""
    count = cast(Any, model).config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count and hasattr(m[0], "mlp")]
    if len(lists) != 1:
        raise Refused(f"{type(model).__name__} has {len(lists)} lists of {count} decoder layers; expected one.")
    return lists[0]


def check_hookpoint(hookpoint: str) -> None:
    if hookpoint not in HOOKPOINTS:
        raise Refused(f"hookpoint '{hookpoint}' is unknown; the hookpoints are {list(HOOKPOINTS)}.")


def module_of(model: nn.Module, point: Point) -> tuple[nn.Module, bool]:
    """The module of a point, and true if the point is its input, false if its output. Not for lora, which has many."""
    check_hookpoint(point.hookpoint)
    module, place = decoder_layers(model)[point.layer], HOOKPOINTS[point.hookpoint]
    if point.hookpoint == TRANSCODER:
        transcoder_of(module)
    for names in place.module.split(".") if place.module else ():
        found = [name for name in names.split("|") if hasattr(module, name)]
        if not found and hasattr(module, TRANSCODER):  # the MLP's own modules, where an adapter stands beside it
            module = module.get_submodule("mlp")
            found = [name for name in names.split("|") if hasattr(module, name)]
        if not found:
            raise Refused(
                f"{type(module).__name__} has no module under one of the names {', '.join(names.split('|'))}, where "
                f"{point.hookpoint} of this model is looked for."
            )
        module = getattr(module, found[0])
    return module, place.read == "input"


def width_of(config: Any, hookpoint: str) -> int:
    """Width of a hidden vector at a hookpoint, from the configuration of the model. Raises Refused where that lacks it."""
    width = HOOKPOINTS[hookpoint].width
    for product in str(width).split("|"):
        factors: list[Any] = [
            int(word) if word.isdecimal() else getattr(config, word, None) for word in product.split("*")
        ]
        if all(type(factor) is int and factor > 0 for factor in factors):
            return math.prod(factors)
    raise Refused(f"dictionary.hookpoint.width={width}: the configuration of the model does not say; give a number.")


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP of a decoder layer, without the adapter that may stand beside it."""
    return layer.get_submodule("mlp.mlp" if hasattr(layer.mlp, TRANSCODER) else "mlp")


def transcoder_of(layer: nn.Module) -> nn.Module:
    """The adapter beside the MLP of a decoder layer. Raises Refused where none stands there."""
    if not hasattr(layer.mlp, TRANSCODER):
        raise Refused("No transcoder adapter stands beside the MLPs of this model: read the role adapter.")
    return layer.get_submodule(f"mlp.{TRANSCODER}")
