"""Reading and writing hidden vectors inside a `with`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunediff.hookpoints.lora import Parts, lora_adapters
from tunediff.hookpoints.places import LORA, Point, decoder_layers, module_of
from tunediff.shapes import Refused


class ForwardStopped(Exception):
    """Raised inside a forward pass once everything that was asked for has been read."""


@contextmanager
def reading(
    model: nn.Module, points: Sequence[Point], *, stop: bool = True, detach: bool = True
) -> Iterator[dict[Point, Tensor]]:
    """Inside, a forward pass fills the dictionary with [batch, position, width] of every point. With `stop` it ends at
    the last of them by raising ForwardStopped: no later layer and no LM head is computed. Without `detach` a loss can be
    taken of what was read."""
    read: dict[Point, Tensor] = {}
    handles = []

    def keep(point: Point, value: Tensor) -> None:
        read[point] = value.detach() if detach else value
        if stop and len(read) == len(set(points)):
            raise ForwardStopped

    try:
        for point in points:
            see = functools.partial(keep, point)
            handles += _gather(model, see) if point.hookpoint == LORA else [_hook(*module_of(model, point), see)]
        yield read
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def writing(model: nn.Module, point: Point, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every forward pass goes on with change(value) in place of the value [batch, position, width]. At lora it is
    called once for each adapter, with that adapter's columns in place and zeros elsewhere, and that adapter takes its own
    columns of what comes back."""
    if point.hookpoint == LORA:

        def of_columns(columns: slice, value: Tensor) -> Tensor:
            return change(value)[..., columns]

        with writing_pieces(model, point, of_columns):
            yield
        return
    handle = _hook(*module_of(model, point), change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def writing_pieces(
    model: nn.Module,
    point: Point,
    change: Callable[[slice, Tensor], Tensor],
    *,
    touches: Callable[[slice], bool] = lambda _: True,
) -> Iterator[None]:
    """As writing(...): change(columns, value) -> those columns of the new value. The columns are all but at lora, where
    each adapter's come at its own time and the value holds zeros elsewhere; those that are not touched stay unhooked."""
    handles = []
    try:
        if point.hookpoint == LORA:
            every = _adapters(model)
            width = every[-1].adapter.columns.stop
            for one in (one for one in every if touches(one.adapter.columns)):
                handles.append(_hook(one.down, False, functools.partial(_one_of, one, width, change)))
        else:
            handles.append(_hook(*module_of(model, point), functools.partial(change, slice(None))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _one_of(one: Parts, width: int, change: Callable[[slice, Tensor], Tensor], value: Tensor) -> Tensor:
    columns = one.adapter.columns
    whole = value.new_zeros(*value.shape[:-1], width)
    whole[..., columns] = value
    return change(columns, whole)


def _gather(model: nn.Module, see: Callable[[Tensor], None]) -> list:
    """Hooks that call see(value) once all adapters of a pass have been computed, in whatever order the model does."""
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
            module, _ = module_of(model, Point("attn_out", layer))
            handles.append(module.register_forward_hook(functools.partial(give, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(own)


def _hook(module: nn.Module, is_input: bool, see: Callable[[Tensor], Tensor | None]):
    """see(value) sees what enters or leaves the module; what it gives, if anything, takes its place."""
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
