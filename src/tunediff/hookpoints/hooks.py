"""Hooks that read and write hidden vectors inside a `with`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunediff.hookpoints.lora import Parts, lora_adapters
from tunediff.hookpoints.places import LORA, Point, decoder_layers, module_of
from tunediff.shapes import Refused


class ForwardStopped(Exception):
    """Raised inside a forward pass to end it, once every point that was asked for has been read."""


@contextmanager
def reading(
    model: nn.Module, points: Sequence[Point], *, stop: bool = True, detach: bool = True
) -> Iterator[dict[Point, Tensor]]:
    """Gives a dictionary that a forward pass inside the `with` fills with the hidden vectors [batch, position, width] of
    every point. With `stop` the pass ends at the last of them by raising ForwardStopped: no later layer and no LM head is
    computed. Without `detach` the vectors keep their gradient."""
    read: dict[Point, Tensor] = {}

    def keep(point: Point, value: Tensor) -> None:
        read[point] = value.detach() if detach else value
        if stop and len(read) == len(set(points)):
            raise ForwardStopped

    with ExitStack() as hooks:
        for point in points:
            see = functools.partial(keep, point)
            for hook in _gather(model, see) if point.hookpoint == LORA else [_hook(*module_of(model, point), see)]:
                hooks.enter_context(hook)
        yield read


@contextmanager
def writing(model: nn.Module, point: Point, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces the value [batch, position, width] at a point by change(value), in every forward pass inside the `with`. At
    lora `change` is called once for each adapter, with the values of that adapter in its columns and zeros elsewhere, and
    the adapter takes its columns of the result."""

    def of_columns(columns: slice, value: Tensor) -> Tensor:
        return change(value)[..., columns]

    at_lora = point.hookpoint == LORA
    with writing_pieces(model, point, of_columns) if at_lora else _hook(*module_of(model, point), change):
        yield


@contextmanager
def writing_pieces(
    model: nn.Module,
    point: Point,
    change: Callable[[slice, Tensor], Tensor],
    *,
    touches: Callable[[slice], bool] = lambda _: True,
) -> Iterator[None]:
    """Works as writing(...) does, with change(columns, value) -> those columns of the new value. The columns are all of them, but at
    lora, where each adapter's come when it is computed, with zeros elsewhere. Columns not touched stay unhooked."""
    with ExitStack() as hooks:
        if point.hookpoint == LORA:
            every = _adapters(model)
            width = every[-1].adapter.columns.stop
            for one in (one for one in every if touches(one.adapter.columns)):
                hooks.enter_context(_hook(one.down, False, functools.partial(_one_of, one, width, change)))
        else:
            hooks.enter_context(_hook(*module_of(model, point), functools.partial(change, slice(None))))
        yield


def _one_of(one: Parts, width: int, change: Callable[[slice, Tensor], Tensor], value: Tensor) -> Tensor:
    columns = one.adapter.columns
    whole = value.new_zeros(*value.shape[:-1], width)
    whole[..., columns] = value
    return change(columns, whole)


def _gather(model: nn.Module, see: Callable[[Tensor], None]) -> list:
    """Hooks that call see(value) once all adapters of a pass have been computed, in whatever order the model does it."""
    every, pieces = _adapters(model), {}

    def keep(place: int, value: Tensor) -> None:
        pieces[place] = value.detach()
        if len(pieces) == len(every):
            whole = torch.cat([pieces[n] for n in range(len(every))], dim=-1)
            pieces.clear()
            see(whole)

    return [_hook(one.down, False, functools.partial(keep, place)) for place, one in enumerate(every)]


def _adapters(model: nn.Module) -> list[Parts]:
    found = lora_adapters(model)
    if not found:
        raise Refused("The model has no adapters to read or write: a merged or fully tuned model has none.")
    return found


@contextmanager
def attending(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls see(layer, weights) with the attention weights [batch, head, query, key] of each layer as it is computed, in
    every forward pass inside the `with`, so that no two layers' are held at once. Fast implementations of attention give no
    weights: the model uses the eager one inside, and its own again afterwards."""

    def give(layer: int, _, __, output) -> None:
        if output[1] is None:
            raise Refused(f"Layer {layer} of {type(model).__name__} gives no attention weights.")
        see(layer, output[1].detach())

    with attention(model, "eager"), ExitStack() as hooks:
        for layer in range(len(decoder_layers(model))):
            module, _ = module_of(model, Point("attn_out", layer))
            hooks.enter_context(module.register_forward_hook(functools.partial(give, layer)))
        yield


@contextmanager
def attention(model: nn.Module, implementation: str) -> Iterator[None]:
    """Computes attention by this implementation of transformers' register inside the `with`, and by the model's own again
    afterwards."""
    whole = cast(Any, model)  # a model of transformers, which nothing here imports
    own = whole.config._attn_implementation or "eager"
    try:
        whole.set_attn_implementation(implementation)
        yield
    finally:
        whole.set_attn_implementation(own)


def _hook(module: nn.Module, is_input: bool, see: Callable[[Tensor], Tensor | None]):
    """Registers a hook that calls see(value) with the module's input or output, and replaces it by what see returns, if
    anything."""
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
