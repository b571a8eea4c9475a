"""Gradients that are looked at, or changed, on their way back through a hidden vector; the forward pass is left as it is, to
the bit.

    neutral     g - <g, v^> v^                      the gradient has no component along v
    attenuate   the component becomes  |<g, v^>|    descent, which moves along -g, lowers the activation along v at every token
    amplify     the component becomes -|<g, v^>|    and here raises it

The three interventions are those that "Shifting the Gradient" (arXiv 2604.16423) tells of; its equations were not to be had,
and these are ours. Computed in float32, whatever the precision of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# <g, v^> of each token -> what takes its place
OPERATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "neutral": torch.zeros_like,
    "attenuate": torch.abs,
    "amplify": lambda component: -component.abs(),
}


def edited(gradient: Tensor, unit: Tensor, operation: str) -> Tensor:
    """The gradient [..., width] with another component along `unit` [width], in its own precision. A token whose component is
    as it should be keeps its gradient to the bit."""
    unit = unit.to(gradient.device, torch.float32)
    component = gradient.float() @ unit
    change = OPERATIONS[operation](component) - component
    return (gradient.float() + change[..., None] * unit).to(gradient.dtype)


def passing(hidden: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The hidden vectors as they are. In the backward pass change(gradient) takes the place of their gradient, once, also
    where a checkpointed layer is computed again. One that nothing below learns from gets a gradient as well."""
    if not torch.is_grad_enabled():
        return hidden
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return _Passing.apply(hidden, change)


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        with torch.autocast(gradient.device.type, enabled=False):  # which would project in bfloat16
            return ctx.change(gradient), None
