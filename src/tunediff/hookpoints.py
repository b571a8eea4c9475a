"""A name and a layer -> the module where a hidden vector can be read or written, in any transformers causal LM.

    resid_pre   what enters decoder layer l           mlp_in    what enters its MLP (after the norm)
    resid_post  what leaves it                        mlp_out   what the MLP gives, before it is added
    attn_out    what attention gives, before it is added (Gemma norms it once more afterwards: this is before that)

Layer l is counted from 0, and resid_post of layer l is resid_pre of layer l+1: a published "layer l" must say which.
Hooks live inside a `with` and are gone afterwards, also when the body raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from tunediff.shapes import Refused

HOOKPOINTS = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")  # in the order a layer computes them
ATTENTION_NAMES = ("self_attn", "attn", "attention")


class Point(NamedTuple):
    """A hookpoint of one layer."""

    hookpoint: str
    layer: int


class ForwardStopped(Exception):
    """Raised inside a forward pass once everything that was asked for has been read."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: the one ModuleList as long as the configuration says."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count and _has_mlp(m[0])]
    if len(lists) != 1:
        raise Refused(f"{type(model).__name__} has {len(lists)} lists of {count} decoder layers; expected one.")
    return lists[0]


def _has_mlp(layer: nn.Module) -> bool:
    return hasattr(layer, "mlp")


def check_hookpoint(hookpoint: str) -> None:
    if hookpoint not in HOOKPOINTS:
        raise Refused(f"hookpoint '{hookpoint}' is unknown; the hookpoints are {list(HOOKPOINTS)}.")


def _module(model: nn.Module, point: Point) -> tuple[nn.Module, bool]:
    """The module of a point, and whether the point is its input (else its output)."""
    check_hookpoint(point.hookpoint)
    layer = decoder_layers(model)[point.layer]
    if point.hookpoint in ("resid_pre", "resid_post"):
        return layer, point.hookpoint == "resid_pre"
    if point.hookpoint in ("mlp_in", "mlp_out"):
        return layer.mlp, point.hookpoint == "mlp_in"
    return next(getattr(layer, name) for name in ATTENTION_NAMES if hasattr(layer, name)), False


@contextmanager
def reading(model: nn.Module, points: Sequence[Point], *, stop: bool = True) -> Iterator[dict[Point, Tensor]]:
    """Inside, a forward pass fills the dictionary with [batch, position, width] of every point. With `stop` it ends at
    the last of them by raising ForwardStopped: no later layer and no LM head is computed."""
    read: dict[Point, Tensor] = {}
    handles = []

    def keep(point: Point, value: Tensor) -> None:
        read[point] = value.detach()
        if stop and len(read) == len(set(points)):
            raise ForwardStopped

    try:
        for point in points:
            handles.append(_hook(model, point, lambda value, point=point: keep(point, value)))
        yield read
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def writing(model: nn.Module, point: Point, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every forward pass goes on with change(value) in place of the value [batch, position, width]."""
    handle = _hook(model, point, change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attending(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls see(layer, weights) with the attention weights [batch, head, query, key] of each
    layer as it is computed, so that no two layers' are held at once. The faster ways of computing attention give no
    weights: the model takes the plain one inside, and its own again afterwards."""
    own = model.config._attn_implementation
    handles = []

    def give(layer: int, _, __, output) -> None:
        if output[1] is None:
            raise Refused(f"Layer {layer} of {type(model).__name__} gives no attention weights.")
        see(layer, output[1].detach())

    try:
        model.set_attn_implementation("eager")
        for layer in range(len(decoder_layers(model))):
            module, _ = _module(model, Point("attn_out", layer))
            handles.append(module.register_forward_hook(functools.partial(give, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(own)


def _hook(model: nn.Module, point: Point, see: Callable[[Tensor], Tensor | None]):
    module, is_input = _module(model, point)
    if is_input:

        def before(_, args, kwargs):
            if args:
                changed = see(args[0])
                return None if changed is None else ((changed, *args[1:]), kwargs)
            changed = see(kwargs["hidden_states"])
            return None if changed is None else (args, {**kwargs, "hidden_states": changed})

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_, __, output):
        inside_tuple = isinstance(output, tuple)
        changed = see(output[0] if inside_tuple else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if inside_tuple else changed

    return module.register_forward_hook(after)
