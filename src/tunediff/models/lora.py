"""A model and an adapter's files -> the model with low-rank adapters (LoRA, arXiv 2106.09685) on its weights.

The base model and the adapted one are two modules over one set of tensors: no switch is turned between them, so none can
be left in the wrong position, and a pair takes the memory of one model.
"""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from pathlib import Path
from typing import TypeVar, cast

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from tunediff.hookpoints import LoraAdapter, decoder_layers, in_order, lora_adapters
from tunediff.models.files import ADAPTER_CONFIG, PairError, from_hub, headers_in, json_in
from tunediff.text.patterns import compiled

# PEFT 0.21 with transformers 5 asks for a property under its old name: nothing a user can act on
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

WEIGHTS = "adapter_model.safetensors"
# settings of PEFT's LoRA by which an adapter is, or asks for, something else than B A beside a module
MORE = (
    "use_dora modules_to_save trainable_token_indices lora_bias layer_replication target_parameters megatron_config "
    "alora_invocation_tokens use_qalora use_bdlora arrow_config kasa_config monteclora_config"
).split()
# other starts (pissa, olora, ...) begin by changing the base's weights
STARTS = (True, False, "gaussian", "orthogonal", "eva")
Module = TypeVar("Module", bound=nn.Module)
KEY = re.compile(r"\.(\d+)\.(?:.*\.)?(\w+)\.lora_A\.weight$")


def brought(place: str, revision: str | None = None) -> Path:
    """The folder of an adapter, local or from the Hub: its configuration and its safetensors, and nothing else of
    it."""
    if Path(place).is_dir():
        if not (Path(place) / ADAPTER_CONFIG).is_file():
            raise PairError(f"The folder {place} holds no adapter: it has no {ADAPTER_CONFIG}.")
        if not (Path(place) / WEIGHTS).is_file():
            raise PairError(f"The folder {place} has no {WEIGHTS}: only safetensors are read.")
        return Path(place)
    files = [from_hub("adapter", place, name, revision) for name in (ADAPTER_CONFIG, WEIGHTS)]
    return files[-1].parent


def shapes(folder: Path) -> list[LoraAdapter]:
    """The adapters of a folder in their order, from the header of its weights. Raises PairError for what is no plain
    LoRA."""
    check(folder)
    headers = headers_in(folder / WEIGHTS, f"The adapter {folder}")
    found = {key: header.shape[0] for key, header in headers.items() if ".lora_A." in key}
    ranks = {}
    for key, rank in found.items():
        parts = KEY.search(key)
        if parts is None:
            raise PairError(f"The adapter {folder} changes {key}, which is in no decoder layer: it cannot be read.")
        ranks[int(parts[1]), parts[2]] = rank
    return in_order(ranks)


def check(folder: Path) -> peft.LoraConfig:
    """The configuration of an adapter. Raises PairError where the difference between adapter on and off would be more
    than scale * B A x of its modules, or the base would not stay what it is."""
    json_in(folder / ADAPTER_CONFIG, f"The adapter {folder}")
    headers_in(folder / WEIGHTS, f"The adapter {folder}")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise PairError(
            f"The {ADAPTER_CONFIG} of {folder} is none that PEFT {peft.__version__} knows: {error}."
        ) from error
    if config.peft_type != peft.PeftType.LORA or not isinstance(config, peft.LoraConfig):
        raise PairError(f"The adapter {folder} is of type {config.peft_type}; LoRA adapters are read.")
    extra = {name: getattr(config, name, None) for name in MORE}
    extra["bias"] = None if config.bias == "none" else config.bias
    extra["init_lora_weights"] = None if config.init_lora_weights in STARTS else config.init_lora_weights
    for name, value in extra.items():
        if value:
            raise PairError(
                f"The adapter {folder} has {name}={value!r}, so it changes more than its low-rank products. Merge it into a "
                "folder of its own with PEFT, and give that folder as the tuned model."
            )
    return config


def _spell_out(config: peft.LoraConfig, names: list[str], of: str) -> None:
    """Puts the names of modules in the place of the regular expressions of an adapter, which PEFT would match without a limit of
    time. Raises Refused for one that takes too long."""
    for setting in ("target_modules", "exclude_modules"):
        expression = getattr(config, setting, None)
        if isinstance(expression, str) and expression != "all-linear":
            pattern = compiled(expression, of=f"{of}: {setting}")
            setattr(config, setting, {name for name in names if pattern.fullmatch(name)} or {"<none>"})
    ends = config.target_modules if isinstance(config.target_modules, set | list) else ()
    names = [name for name in names if not ends or any(f".{name}".endswith(f".{end}") for end in ends)]
    for setting in ("rank_pattern", "alpha_pattern"):
        said: dict[str, int] = getattr(config, setting, None) or {}
        keys = {compiled(rf"(.*\.)?({key})", of=f"{of}: {setting}"): value for key, value in said.items()}
        first = {name: next((value for key, value in keys.items() if key.fullmatch(name)), None) for name in names}
        setattr(config, setting, {re.escape(name): value for name, value in first.items() if value is not None})
    layers = config.layers_pattern or ()
    for pattern in [layers] if isinstance(layers, str) else layers:
        if not re.fullmatch(r"[\w.]*", pattern):
            raise PairError(f"{of} has layers_pattern={pattern!r:.80}, which is no name of a list of layers.")


def twin(model: Module) -> Module:
    """Another module over the same tensors: what is added to it is not added to the first."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def aligned(model: Module) -> Module:
    """The model with each tensor contiguous and at a multiple of 64 bytes, where allocations begin: tensors mapped from a
    file lie where the file has them, and the last bits of their products follow. Tied tensors stay tied."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.data_ptr() % 64 or not tensor.is_contiguous():
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return model


def adapted(model: PreTrainedModel, folder: Path, *, merged: bool) -> PreTrainedModel:
    """The model with the adapter of a folder on it, beside the weights or merged into them. Raises PairError for an
    adapter that belongs to another model."""
    config, expected = check(folder), [] if merged else shapes(folder)
    device = next(model.parameters()).device
    _spell_out(config, [name for name, _ in model.named_modules() if name], f"The adapter {folder}")
    try:
        whole = peft.PeftModel.from_pretrained(model, str(folder), config=config, torch_device=str(device))
    except (RuntimeError, ValueError) as error:
        raise PairError(f"The adapter {folder} does not fit the model: {str(error).splitlines()[0]}") from error
    if merged:
        return whole.merge_and_unload(safe_merge=True)
    inside = whole.get_base_model()
    found = [parts.adapter for parts in lora_adapters(inside)]
    if expected != found:
        raise PairError(
            f"The adapter {folder} has {len(expected)} modules, of which the model took {len(found)}: it was made for another "
            f"model ({config.base_model_name_or_path}), or changes modules outside the {len(decoder_layers(inside))} layers."
        )
    return cast(PreTrainedModel, inside)
