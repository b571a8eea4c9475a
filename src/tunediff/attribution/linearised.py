"""A model with transcoder adapters -> the same forward pass with a linear backward pass, in which what a latent or a
token contributes to a later latent or to a logit is a gradient (RelP: arXiv 2508.21258; as used in arXiv 2602.20904).

    norms        the denominator is held                          x / sqrt(mean x^2 + eps), as a linear function of x
    attention    the weights are held, values are not             weights.detach() @ values
    activation   the ratio of output to input is held             x * (act(x) / x).detach()
    gated MLP    each factor of a * u is given half the gradient  (a * u.detach() + a.detach() * u) / 2
    latents      are leaves: paths end at them

Values are those of the model to the last bit, except that attention is computed the plain way. What is held in this way
leaves an affine function of latents and embeddings, whose constant the biases make. Knows no graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from tunediff.dictionary import Transcoder
from tunediff.hookpoints import Point, decoder_layers, mlp_of, transcoder_of, writing
from tunediff.hookpoints.hooks import attention
from tunediff.shapes import TRANSCODER, Refused

HELD = "held_weights"  # the name of the attention, in transformers' register
BIASES = ("bias", "b_enc", "b_dec")
ACTIVATIONS_NOT = (nn.Dropout, nn.Identity)


@dataclass
class Seen:
    """Tensors of the last forward pass over one prompt; dictionaries have one entry a layer.

    embedded   [position, width]   what enters the first layer, a leaf
    places     [active, 2]         position and number of the active latents
    active     [active]            their values, a leaf
    pre        [position, latent]  pre-activations
    last       [width]             what enters the head at the last position
    biases                         the parameters that are added
    """

    biases: list[nn.Parameter]
    embedded: Tensor = field(init=False)
    places: dict[int, Tensor] = field(default_factory=dict)
    active: dict[int, Tensor] = field(default_factory=dict)
    pre: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor = field(init=False)


@contextmanager
def linearised(model: PreTrainedModel) -> Iterator[Seen]:
    """Context in which a forward pass over one prompt [1, position] fills the Seen it yields, and its backward pass is
    linear. Raises Refused for an architecture with parts that none of the rules is for."""
    seen = Seen([p for name, p in model.named_parameters() if name.rpartition(".")[-1] in BIASES])
    with ExitStack() as stack:
        for module, rule in _rules(model):
            stack.callback(module.register_forward_hook(rule).remove)
        stack.enter_context(attention(model, HELD))
        if model.config.get_text_config()._attn_implementation != HELD:
            raise Refused(
                f"The attention of {type(model).__name__} cannot be replaced, so that its weights cannot be held."
            )
        stack.enter_context(_learning(seen.biases))
        stack.enter_context(writing(model, Point("resid_pre", 0), functools.partial(_embedded, seen)))
        for layer, one in enumerate(decoder_layers(model)):
            see = functools.partial(_pre, seen, layer, cast(Transcoder, transcoder_of(one)))
            stack.enter_context(writing(model, Point("mlp_in", layer), see))
            stack.enter_context(writing(model, Point(TRANSCODER, layer), functools.partial(_latents, seen, layer)))
        head = head_of(model)
        stack.callback(head.register_forward_pre_hook(functools.partial(_last, seen)).remove)
        yield seen


def head_of(model: PreTrainedModel) -> nn.Module:
    """The module that computes logits. Raises Refused where a model has none."""
    head = model.get_output_embeddings()
    if head is None:
        raise Refused(f"{type(model).__name__} has no unembedding: attribution explains the logits that it gives.")
    return head


def held(value: Tensor, linear: Tensor) -> Tensor:
    """The value, with the gradient of `linear`."""
    return value.detach() + (linear - linear.detach())


# -- what is read, and where paths end ---------------------------------------------------------------------------------


def _embedded(seen: Seen, value: Tensor) -> Tensor:
    if len(value) != 1:
        raise Refused(f"{len(value)} prompts at once: attribution is of one prompt at a time.")
    seen.embedded = value[0].detach().requires_grad_()
    return seen.embedded[None]


def _pre(seen: Seen, layer: int, transcoder: Transcoder, value: Tensor) -> Tensor:
    seen.pre[layer] = transcoder.pre_activations(value)[0]
    return value


def _latents(seen: Seen, layer: int, value: Tensor) -> Tensor:
    value = value[0].detach()
    seen.places[layer] = value.nonzero()
    position, number = seen.places[layer].T
    seen.active[layer] = value[position, number].requires_grad_()
    return torch.zeros_like(value).index_put((position, number), seen.active[layer])[None]


def _last(seen: Seen, _: nn.Module, args: tuple) -> None:
    seen.last = args[0][0, -1]


@contextmanager
def _learning(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Context in which gradients flow to these parameters."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, asked in zip(parameters, before, strict=True):
            parameter.requires_grad_(asked)


# -- the rules ---------------------------------------------------------------------------------------------------------


def _rules(model: PreTrainedModel) -> Iterator[tuple[nn.Module, Callable]]:
    """Yields forward hooks, each with its module."""
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.LayerNorm):
            yield module, _layer_norm
        elif kind.endswith("RMSNorm"):
            yield module, _rms_norm
        elif kind.endswith("Norm"):
            raise Refused(f"{type(model).__name__} has a {kind}, which is neither a LayerNorm nor an RMSNorm.")
    for layer in decoder_layers(model):
        mlp = mlp_of(layer)
        gated = hasattr(mlp, "gate_proj") and hasattr(mlp, "up_proj")
        matrices = [m for m in mlp.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
        activations = [m for m in mlp.modules() if _computes_alone(m)]
        if len(activations) != 1 or not (gated or len(matrices) == 2):
            raise Refused(
                f"The MLP {type(mlp).__name__} is neither two matrices with an activation between them nor gate_proj, up_proj "
                "and down_proj with one: there is no rule for its gradient."
            )
        yield activations[0], functools.partial(_activation, 0.5 if gated else 1.0)
        if gated:
            yield mlp.get_submodule("up_proj"), _halved


def _computes_alone(module: nn.Module) -> bool:
    inner = next(module.children(), None) is not None or next(module.parameters(), None) is not None
    return not inner and not isinstance(module, ACTIVATIONS_NOT)


def _rms_norm(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    """The weights, whatever their offset, are what it makes of ones, up to a factor; the denominator goes into
    another."""
    x = args[0]
    with torch.no_grad():
        weights = module.forward(torch.ones_like(x[(0,) * (x.ndim - 1)])).to(
            torch.promote_types(x.dtype, torch.float32)
        )
        reached = x * weights
        factor = (out * reached).sum(-1, keepdim=True) / reached.square().sum(-1, keepdim=True).clamp(min=1e-30)
        scale = (weights * factor).to(x.dtype)
    return held(out, x * scale)


def _layer_norm(module: nn.LayerNorm, args: tuple, out: Tensor) -> Tensor:
    centred = args[0] - args[0].mean(-1, keepdim=True)
    linear = centred * (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt().detach()
    if module.weight is not None:
        linear = linear * module.weight.detach()
    return held(out, linear if module.bias is None else linear + module.bias)


def _activation(share: float, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    x = args[0]
    ratio = torch.where(x == 0, 0.0, out / x).detach()
    if (x == 0).any():
        origin = torch.zeros_like(x[x == 0]).detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(module.forward(origin).sum(), origin)
        ratio[x == 0] = slope  # the limit
    return held(out, share * x * ratio)


def _halved(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    return held(out, 0.5 * out)


# -- attention ---------------------------------------------------------------------------------------------------------


def _held_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **more,
) -> tuple[Tensor, Tensor]:
    """query [batch, head, position, width], key and value with fewer heads where groups share them -> [batch, position,
    head, width]. The arguments are those of transformers' attention functions."""
    if more.get("s_aux") is not None:
        raise Refused(f"{type(module).__name__} has attention sinks of its own, which attribution has no rule for.")
    group = query.shape[1] // key.shape[1]
    with torch.no_grad():
        scores = query @ key.repeat_interleave(group, dim=1).mT * (scaling or query.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    written = weights @ value.repeat_interleave(group, dim=1)
    return written.transpose(1, 2).contiguous(), weights


AttentionInterface.register(HELD, _held_attention)
AttentionMaskInterface.register(HELD, eager_mask)
