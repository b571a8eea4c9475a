"""The settings of a fine-tune except model and text; and a causal language model -> the part of it that learns: all
weights, or a low-rank adapter beside frozen ones.

What learns is kept in float32 whatever the precision of the model; what does not stays as it was loaded. Low-rank
adapters: Hu et al. 2021, arXiv 2106.09685; rank-stabilised scale: Kalajdzievski 2023, arXiv 2312.03732.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import peft
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tunediff import processes, randomness
from tunediff.folders import flush
from tunediff.hookpoints import decoder_layers
from tunediff.models import skeleton
from tunediff.objectives import Imitation
from tunediff.schedules import Schedule
from tunediff.shapes import Refused
from tunediff.training.under_edit import Added, GradientAlong, Watched

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AllWeights:
    """Every weight learns, in float32, and is written as `dtype`: 16 bytes per weight with its gradient and both moments of
    Adam. Training starts from the given weights, so a seed changes nothing. A head that shares the embedding's matrix still
    does so afterwards. The baseline of low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    dtype: str = "bfloat16"

    def prepare(self, model: nn.Module, seed: int) -> nn.Module:
        return model.float().requires_grad_(True)

    def parameters(self, config: transformers.PretrainedConfig) -> int:
        """Number of weights that learn, counted without loading one."""
        return sum(parameter.numel() for parameter in skeleton(config).parameters())

    def frozen(self, config: transformers.PretrainedConfig) -> int:
        """Number of weights that do not learn."""
        return 0

    def save(self, model: nn.Module, folder: Path, base_path: str | None = None) -> None:
        """Writes a folder in transformers' format. Every process calls it, the first writes."""
        weights = trained_weights(model)
        if processes.rank() == 0:
            trained = cast(transformers.PreTrainedModel, model)
            dtype = getattr(torch, self.dtype)
            written = skeleton(trained.config).to(dtype)
            written.load_state_dict({name: w.to(dtype) for name, w in weights.items()}, assign=True)
            written.tie_weights()
            written.generation_config = trained.generation_config
            _replaced(folder, written.save_pretrained)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters B A beside the named linear maps W of every decoder layer, or of `layers` (Hu et al., arXiv
    2106.09685): W x + s B A x with s = alpha / rank, or alpha / sqrt(rank) with `rslora` (arXiv 2312.03732), so that the
    size of an update does not fall with the rank. A begins random and B at 0, so that training starts from the base.
    `dropout` is the share of x that A does not see. There are no biases; every A and B is float32."""

    rank: int = 1
    alpha: float = 16.0
    rslora: bool = True
    dropout: float = 0.0
    modules: Sequence[str] = PROJECTIONS
    layers: Sequence[int] | None = None

    def prepare(self, model: nn.Module, seed: int) -> nn.Module:
        """Adds an adapter beside each target of the model, and freezes everything else."""
        self.targets(model)  # refuses what PEFT would pass over in silence
        settings = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType] (hinted as int, computed with as float)
            use_rslora=self.rslora, lora_dropout=self.dropout, bias="none",
            target_modules=list(self.modules), layers_to_transform=None if self.layers is None else list(self.layers),
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 by a name that goes in version 6
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            torch.manual_seed(randomness.seed_for(seed, "start of LoRA"))
            model = peft.inject_adapter_in_model(settings, model.requires_grad_(False))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return model

    def targets(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The linear maps that get an adapter, by name. Raises Refused for a module or layer that does not exist."""
        layers = decoder_layers(model)
        wanted = range(len(layers)) if self.layers is None else sorted(set(self.layers))
        outside = [layer for layer in wanted if not 0 <= layer < len(layers)]
        if outside:
            raise Refused(f"layers {outside}: the model has layers 0 to {len(layers) - 1}.")
        if self.rank < 1 or not wanted or not self.modules:
            raise Refused(
                f"rank={self.rank}, modules={list(self.modules)}, layers={wanted}: give a rank from 1, and at least one "
                "module and layer."
            )
        names = {id(module): name for name, module in model.named_modules()}
        linear = [m for layer in wanted for m in layers[layer].modules() if isinstance(m, nn.Linear)]
        there = sorted({names[id(module)].rpartition(".")[2] for module in linear})
        if missing := sorted(set(self.modules) - set(there)):
            raise Refused(
                f"{type(model).__name__} has no linear map {', '.join(missing)} in its layers; there are {', '.join(there)}. "
                "Name some of them as modules."
            )
        return {name: m for m in linear if (name := names[id(m)]).rpartition(".")[2] in self.modules}

    def parameters(self, config: transformers.PretrainedConfig) -> int:
        """Number of weights that learn, counted without loading one."""
        targets = self.targets(skeleton(config)).values()
        return sum(self.rank * (module.in_features + module.out_features) for module in targets)

    def frozen(self, config: transformers.PretrainedConfig) -> int:
        """Number of weights that do not learn."""
        return sum(parameter.numel() for parameter in skeleton(config).parameters())

    def save(self, model: nn.Module, folder: Path, base_path: str | None = None) -> None:
        """Writes adapter_config.json, which names `base_path`, and adapter_model.safetensors, as
        PeftModel.from_pretrained(model, folder) reads them. Every process calls it, the first writes."""
        weights = trained_weights(model)
        if processes.rank() == 0:
            settings: peft.LoraConfig = copy.copy(cast(Any, model).peft_config["default"])
            settings.base_model_name_or_path, settings.inference_mode = base_path, True
            settings.target_modules = sorted(self.modules)  # a set has another order in every process

            def write(partial: Path) -> None:
                settings.save_pretrained(str(partial))
                named = {f"base_model.model.{name.replace('.default.', '.')}": w for name, w in weights.items()}
                safetensors.torch.save_file(named, partial / "adapter_model.safetensors", metadata={"format": "pt"})

            _replaced(folder, write)


Trainable = AllWeights | Lora


@dataclass(frozen=True)
class Recipe:
    """Settings of a fine-tune; conf/recipe has the values.

    part, objective      the weights that learn, and their loss
    examples, held_out   number of rows that are learned, and on which the loss is measured; None: all, of a finite text
    block         tokens per sequence
    packing       true: several examples in a sequence, none of which sees another
    batch         number of sequences per step, over all processes
    micro_batch   number of sequences in one forward pass
    edit          done to the model while it learns, and at no other time; None: nothing
    watch         the direction that gradients are measured along; None: that of the edit, where there is one
    """

    part: Trainable
    objective: Imitation
    block: int
    epochs: int
    batch: int
    micro_batch: int
    learning_rate: float
    learning_rate_schedule: Schedule
    betas: Sequence[float]
    weight_decay: float
    clip_norm: float | None
    gradient_checkpointing: bool
    packing: bool
    examples: int | None
    held_out: int | None
    edit: Added | GradientAlong | None = None
    watch: Watched | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("edit", (Added, GradientAlong)), ("watch", (Watched,))):
            given = getattr(self, name)
            if given is not None and not isinstance(given, kinds):
                raise Refused(
                    f"recipe.{name} is {type(given).__name__}: give null, or one of tunediff.training."
                    f"{', tunediff.training.'.join(kind.__name__ for kind in kinds)}."
                )
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Refused(f"recipe.{name}={getattr(self, name)}: give a number from 0.")
        for name in ("block", "epochs", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise Refused(f"recipe.{name}={getattr(self, name)}: give a number from 1.")
        if self.examples is not None and self.examples < 1:
            raise Refused(f"recipe.examples={self.examples}: give a number from 1, or null for all.")
        if self.held_out is not None and self.held_out < 0:
            raise Refused(f"recipe.held_out={self.held_out}: give a number from 0, or null for all that is held out.")


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name, whole and on the CPU. Every process calls it; the result is complete in the first."""
    # with a frozen head too, where it is the embedding's matrix
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=WHOLE))
    learned = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return {name: weight.contiguous() for name, weight in weights.items() if name in learned}


def _replaced(folder: Path, write) -> None:
    """Replaces `folder` by a new one that write(path) fills, once it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    flush(folder.parent)
