"""A model and an adapter's files -> the model with low-rank adapters (LoRA, arXiv 2106.09685) on its weights.

The base model and the adapted one are two modules over one set of tensors: no switch is turned between them, so none can
be left in the wrong position, and a pair takes the memory of one model.
"""

from __future__ import annotations

import copy
import importlib.resources
import itertools
import re
import warnings
from pathlib import Path

import huggingface_hub
import peft
import safetensors
from torch import nn

from tunediff.hookpoints import Adapter, adapters_of, decoder_layers, in_order
from tunediff.shapes import Refused

# PEFT 0.21 with transformers 5 asks for a property under its old name: nothing a user can act on
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(r"\.(\d+)\.(?:.*\.)?(\w+)\.lora_A\.weight$")


class PairError(Refused):
    """A pair of models that cannot be used as asked; the message says why and what to do."""


def located(path: str) -> str:
    """A Hub id or folder as it stands; pkg://package/folder as the folder of an installed package."""
    if not path.startswith("pkg://"):
        return path
    package, _, folder = path.removeprefix("pkg://").partition("/")
    return str(importlib.resources.files(package) / folder)


def shapes(place: str) -> list[Adapter]:
    """The adapters of a folder or Hub id in their order, from the header of its weights. Raises PairError for what is no
    plain LoRA."""
    check(place)
    file = Path(place) / WEIGHTS
    if not file.exists():
        file = Path(_fetched(place, WEIGHTS))
    with safetensors.safe_open(file, framework="pt") as content:
        keys = [key for key in content.keys() if ".lora_A." in key]  # noqa: SIM118 (no mapping)
        found = {key: content.get_slice(key).get_shape()[0] for key in keys}
    ranks = {}
    for key, rank in found.items():
        parts = KEY.search(key)
        if parts is None:
            raise PairError(f"The adapter {place} changes {key}, which is in no decoder layer: it cannot be read.")
        ranks[int(parts[1]), parts[2]] = rank
    return in_order(ranks)


def check(place: str) -> peft.PeftConfig:
    """adapter_config.json of a folder or Hub id. Raises PairError where the difference between adapter on and off would be
    more than scale * B A x of its modules."""
    try:
        config = peft.PeftConfig.from_pretrained(place)
    except (ValueError, OSError) as error:
        raise PairError(
            f"Cannot load the adapter '{place}': it is no local folder with adapter_config.json, and the Hub did not give it "
            "(no network, no such id, or no permission). Download it where there is a network and name the folder."
        ) from error
    if config.peft_type != peft.PeftType.LORA:
        raise PairError(f"The adapter {place} is of type {config.peft_type}; LoRA adapters are read.")
    extra = {name: getattr(config, name, None) for name in ("use_dora", "modules_to_save", "trainable_token_indices")}
    extra["bias"] = None if config.bias == "none" else config.bias
    given = {name: value for name, value in extra.items() if value}
    if given:
        name, value = next(iter(given.items()))
        raise PairError(
            f"The adapter {place} has {name}={value!r}, so it changes more than its low-rank products. Merge it into a "
            "folder of its own with PEFT, and give that folder as the tuned model."
        )
    return config


def twin(model: nn.Module) -> nn.Module:
    """Another module over the same tensors: what is added to it is not added to the first."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def adapted(model: nn.Module, place: str, *, merged: bool) -> nn.Module:
    """The model with the adapter of a folder or Hub id on it, beside the weights or merged into them. Raises PairError for
    an adapter that belongs to another model."""
    config = check(place)
    if not (Path(place) / WEIGHTS).exists() and Path(place).is_dir():
        raise PairError(f"The folder {place} has no {WEIGHTS}: only safetensors are read.")
    device = next(model.parameters()).device
    try:
        whole = peft.PeftModel.from_pretrained(model, place, config=config, torch_device=str(device))
    except (RuntimeError, ValueError) as error:
        raise PairError(f"The adapter {place} does not fit the model: {str(error).splitlines()[0]}") from error
    if merged:
        return whole.merge_and_unload(safe_merge=True)
    inside = whole.get_base_model()
    expected, found = shapes(place), [parts.adapter for parts in adapters_of(inside)]
    if expected != found:
        raise PairError(
            f"The adapter {place} has {len(expected)} modules, of which the model took {len(found)}: it was made for another "
            f"model ({config.base_model_name_or_path}), or changes modules outside the {len(decoder_layers(inside))} layers."
        )
    return inside


def _fetched(place: str, name: str) -> str:
    try:
        return huggingface_hub.hf_hub_download(place, name)
    except OSError as error:
        raise PairError(f"Cannot load {name} of the adapter '{place}': {error}") from error
