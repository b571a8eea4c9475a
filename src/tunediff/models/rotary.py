"""Rotary embeddings whose frequencies follow the length of a text -> those of each text by itself, whatever stands beside it.

transformers takes them from the largest position of a whole batch: longrope (Ding et al. 2024, arXiv 2402.13753; Phi-3 and
Phi-4) has short factors up to the context of its first training and long ones beyond it, dynamic NTK scaling other
frequencies for every length beyond it. A short document would then be read otherwise beside a long one, and in generation the
keys of a longrope model would be short and long ones side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

LONGROPE, DYNAMIC = "longrope", "dynamic"


def follows_length(config: PretrainedConfig) -> bool:
    """True where the frequencies of the model's rotary embedding depend on the length of what it reads."""
    return any(_of_length(one["rope_type"]) for one in _parameters(config))


def crosses_switch(config: PretrainedConfig, before: Tensor, after: Tensor) -> bool:
    """True where one of the texts [batch], of `before` tokens so far and `after` with those that come, leaves the short
    factors of longrope: the keys of its tokens so far are then to be computed again, as transformers does for Phi-3."""
    switches = [one["original_max_position_embeddings"] for one in _parameters(config) if one["rope_type"] == LONGROPE]
    return any(bool(((before <= switch) & (after > switch)).any()) for switch in switches)


def by_own_length(model: PreTrainedModel) -> PreTrainedModel:
    """The model, in which every text is read with the frequencies of its own length. Where positions are not given they
    are counted over the real tokens, so that padding makes no text longer."""
    found = [(name, one) for name, one in model.named_modules() if _of_length(getattr(one, "rope_type", None))]
    for name, rotary in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, OwnLength(rotary))
    if found:
        model.base_model.register_forward_pre_hook(_with_positions, with_kwargs=True)
    return model


class OwnLength(nn.Module):
    """A rotary embedding, asked for the texts of each length by themselves."""

    def __init__(self, rotary: nn.Module):
        super().__init__()
        self.rotary = rotary

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [batch, position, dimension] for positions [batch, position]; where these begin again at 0
        another text begins."""
        given: dict[str, Any] = {} if layer_type is None else {"layer_type": layer_type}
        config = cast(PretrainedConfig, self.rotary.config)
        (here,) = _parameters(config, layer_type)
        if not _of_length(here["rope_type"]):
            return self.rotary(x, position_ids, **given)
        lengths, longrope = text_lengths(position_ids), here["rope_type"] == LONGROPE
        switch = here["original_max_position_embeddings"] if longrope else config.max_position_embeddings
        kinds = (lengths > switch).long() if longrope else lengths.clamp(min=switch)
        parts = []
        for kind in kinds.unique():
            if not longrope:  # it remembers the longest text so far, until one of a single token comes
                self.rotary(x, torch.zeros_like(position_ids[:1, :1]), **given)
            parts.append((kinds == kind, self.rotary(x, position_ids[kinds == kind][None], **given)))
        cosines, sines = (one.new_empty(*position_ids.shape, one.shape[-1]) for one in parts[0][1])
        for of_kind, (cosine, sine) in parts:
            cosines[of_kind], sines[of_kind] = cosine[0], sine[0]
        return cosines, sines


def text_lengths(position_ids: Tensor) -> Tensor:
    """Length so far [batch, position] of the text that each token belongs to."""
    texts = (position_ids == 0).cumsum(1)
    longest = torch.zeros_like(position_ids[:, :1]).repeat(1, int(texts.max()) + 1)
    return longest.scatter_reduce(1, texts, position_ids, "amax").gather(1, texts) + 1


def _with_positions(model: nn.Module, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A hook before the model: positions counted over real tokens where none are given."""
    mask, ids = given.get("attention_mask"), given.get("input_ids", args[0] if args else None)
    if given.get("position_ids") is not None or ids is None or mask is None or mask.ndim != 2:
        return None
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return args, {**given, "position_ids": positions}


def _of_length(rope_type: Any) -> bool:
    """True for the type of a rotary embedding, or one of its types by kind of layer, that follows the length."""
    types = rope_type.values() if isinstance(rope_type, Mapping) else [rope_type]
    return any(isinstance(one, str) and (one == LONGROPE or DYNAMIC in one) for one in types)


def _parameters(config: PretrainedConfig, layer_type: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Parameters of the model's rotary embeddings: one set, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        yield found
    else:
        of_kinds = found.values() if layer_type is None else [found[layer_type]]
        yield from (one for one in of_kinds if isinstance(one, Mapping) and "rope_type" in one)
