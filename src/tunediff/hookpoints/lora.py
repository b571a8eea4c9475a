"""The low-rank adapters of a model, in their fixed order: by layer, and within a layer

    gate_proj  up_proj  down_proj  q_proj  k_proj  v_proj  o_proj

then any other module by its name (arXiv 2511.06739 stacks its 64 x 7 rank-1 adapters so). An adapter of rank r takes r
columns of the hookpoint `lora`, the vector A x; what it adds to its module's output is scale * B A x.

Knows the layout of PEFT's LoRA layers and nothing of PEFT.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from torch import nn

from tunediff.hookpoints.places import decoder_layers
from tunediff.shapes import Refused

MODULES = "gate_proj up_proj down_proj q_proj k_proj v_proj o_proj".split()
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "query_key_value", "qkv_proj", "dense", "out_proj"}


class LoraAdapter(NamedTuple):
    """One adapter: its layer, the last name of its module, and its columns of the hookpoint `lora`."""

    layer: int
    module: str
    columns: slice

    @property
    def type(self) -> str:
        """Part of the layer that the module belongs to: attention or mlp."""
        return "attention" if self.module in ATTENTION else "mlp"

    def __str__(self) -> str:
        return f"{self.layer}.{self.module}"


def in_order(ranks: dict[tuple[int, str], int]) -> list[LoraAdapter]:
    """Adapters in their fixed order, with their columns side by side, from (layer, module) -> rank."""

    def place(key: tuple[int, str]) -> tuple[int, int, str]:
        layer, module = key
        return layer, MODULES.index(module) if module in MODULES else len(MODULES), module

    keys = sorted(ranks, key=place)
    ends = itertools.accumulate(ranks[key] for key in keys)
    return [LoraAdapter(*key, slice(end - ranks[key], end)) for key, end in zip(keys, ends, strict=True)]


class Parts(NamedTuple):
    """An adapter in a loaded model: the module it adds to, and the two projections with their scale."""

    adapter: LoraAdapter
    module: nn.Module
    down: nn.Module
    up: nn.Module
    scale: float


def lora_adapters(model: nn.Module) -> list[Parts]:
    """All adapters of a model in their fixed order; an empty list where it has none or they are merged. Raises Refused for
    more than one adapter in a module."""
    found: dict[tuple[int, str], Any] = {}  # PEFT's layers: lora_A, lora_B and scaling, each by the adapter's name
    for number, layer in enumerate(decoder_layers(model)):
        for name, module in layer.named_modules():
            if len(getattr(module, "lora_A", ())):
                key = (number, name.rpartition(".")[2])
                if key in found:
                    raise Refused(
                        f"Layer {number} has several adapted modules named {key[1]}: they cannot be told apart."
                    )
                found[key] = module
    several = [key for key, module in found.items() if len(module.lora_A) > 1]
    if several:
        raise Refused(f"Module {several[0][1]} of layer {several[0][0]} has several adapters; one at a time is read.")
    named = {key: next(iter(module.lora_A)) for key, module in found.items()}
    ranks = {key: module.lora_A[named[key]].weight.shape[0] for key, module in found.items()}

    def parts(adapter: LoraAdapter) -> Parts:
        key = (adapter.layer, adapter.module)
        module, name = found[key], named[key]
        return Parts(adapter, module, module.lora_A[name], module.lora_B[name], float(module.scaling[name]))

    return [parts(adapter) for adapter in in_order(ranks)]
