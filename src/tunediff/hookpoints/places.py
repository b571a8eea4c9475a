"""Names of hookpoints, and the decoder layers of a model."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tunediff.shapes import LORA, TRANSCODER, Refused

# in the order a layer computes them; adapters stand in all of its modules
HOOKPOINTS = ("resid_pre", "attn_out", "mlp_in", "mlp_neurons", TRANSCODER, "mlp_out", "resid_post", LORA)
ATTENTION_NAMES = ("self_attn", "attn", "attention")
LAST_PROJECTIONS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "w2")


class Point(NamedTuple):
    """A hookpoint of one layer; lora is the whole model's, at the last layer that has an adapter."""

    hookpoint: str
    layer: int


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: the one ModuleList as long as the configuration says."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count and hasattr(m[0], "mlp")]
    if len(lists) != 1:
        raise Refused(f"{type(model).__name__} has {len(lists)} lists of {count} decoder layers; expected one.")
    return lists[0]


def check_hookpoint(hookpoint: str) -> None:
    if hookpoint not in HOOKPOINTS:
        raise Refused(f"hookpoint '{hookpoint}' is unknown; the hookpoints are {list(HOOKPOINTS)}.")


def module_of(model: nn.Module, point: Point) -> tuple[nn.Module, bool]:
    """The module of a point, and whether the point is its input (else its output). Not for lora, which has many."""
    check_hookpoint(point.hookpoint)
    layer = decoder_layers(model)[point.layer]
    if point.hookpoint in ("resid_pre", "resid_post"):
        return layer, point.hookpoint == "resid_pre"
    if point.hookpoint in ("mlp_in", "mlp_out"):
        return layer.mlp, point.hookpoint == "mlp_in"
    if point.hookpoint == "mlp_neurons":
        return _first(mlp_of(layer), LAST_PROJECTIONS, "last projection of the MLP"), True
    if point.hookpoint == TRANSCODER:
        return transcoder_of(layer).kept, False
    return _first(layer, ATTENTION_NAMES, "attention"), False


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP of a decoder layer, without the adapter that may stand beside it."""
    return layer.mlp.mlp if hasattr(layer.mlp, TRANSCODER) else layer.mlp


def transcoder_of(layer: nn.Module) -> nn.Module:
    """The adapter beside the MLP of a decoder layer. Raises Refused where none stands there."""
    if not hasattr(layer.mlp, TRANSCODER):
        raise Refused("No transcoder adapter stands beside the MLPs of this model: read the role adapter.")
    return layer.mlp.transcoder


def _first(module: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    found = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if found is None:
        raise Refused(f"{type(module).__name__} has no {what} under one of the names {', '.join(names)}.")
    return found
