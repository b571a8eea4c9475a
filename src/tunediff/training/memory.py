"""Shapes and settings of a fine-tune -> the memory it takes of each device, item by item, before a weight is loaded.

Counted for a decoder layer of the Llama and Qwen kind as transformers computes it, with an attention that keeps no
matrix of weights (flash or memory-efficient). What the allocator wastes is not counted; else it is an upper estimate,
1.0 to 1.5 times what small models were seen to hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

from tunediff.hookpoints import decoder_layers
from tunediff.models import skeleton
from tunediff.training.recipe import Trainable

GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory on each device, by item."""

    items: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.items.values())

    def table(self) -> str:
        lines = [f"{name:<44} {size / GB:>9.2f} GB" for name, size in {**self.items, "total": self.total}.items()]
        return "\n".join(lines)


def memory(
    part: Trainable,
    config: transformers.PretrainedConfig,
    dtype: str,
    *,
    block: int,
    micro_batch: int,
    precision: str,
    gradient_checkpointing: bool,
    logits_mb: float,
    processes: int = 1,
    sharded: bool = False,
) -> MemoryEstimate:
    """Memory of a fine-tune on each device. The model is loaded as `dtype`; the weights that learn are float32."""
    config = config.get_text_config()
    model = skeleton(config)
    layers = decoder_layers(model)
    trained, frozen = part.parameters(config), part.frozen(config)
    everything = sum(p.numel() for p in model.parameters())
    in_layer = sum(p.numel() for p in layers[0].parameters())
    loaded = torch.finfo(getattr(torch, dtype)).bits / 8 if frozen else 4.0  # bytes of a weight in memory
    product = 2.0 if precision == "bf16-mixed" else loaded  # and of a factor of a matrix product
    share = processes if sharded else 1
    width, vocabulary, tokens = config.hidden_size, config.vocab_size, block * micro_batch
    kept, working = layer_activations(config, residual=loaded, product=product, adapter=frozen > 0)
    copies = in_layer * product if product != loaded else 0.0  # autocast's, kept with what the backward pass needs
    if gradient_checkpointing:
        held = len(layers) * tokens * width * loaded
        layer = tokens * (kept + working) + copies
    else:
        held = len(layers) * (tokens * kept + copies)
        layer = tokens * working + copies
    logits = min(logits_mb * MB, tokens * vocabulary * (12 + 2 * product))  # with log-softmax and gradients, of a block
    logits += vocabulary * width * (product if product != loaded else 0.0)
    items = {
        "frozen weights": frozen * loaded / share,
        "trained weights, float32": trained * 4.0 / share,
        "their gradients": trained * 4.0 / share,
        "Adam's moments": trained * 8.0 / share,
        f"activations kept, {'checkpointed' if gradient_checkpointing else 'whole'}": held,
        "at work: one layer, or a block of logits": max(layer, logits),
    }
    if share > 1:  # the next layer is gathered while one is at work; gradients are whole before they are cut
        gathered = everything - in_layer * (len(layers) - 2)
        items["gathered: two layers, embeddings and head"] = gathered * (loaded + (0.0 if frozen else 4.0))
    elif processes > 1:
        items["gradients as one message, and their sum"] = 2 * trained * 4.0
    return MemoryEstimate(items)


def adapter_memory(
    base: transformers.PretrainedConfig,
    tuned: transformers.PretrainedConfig,
    dtype: str,
    *,
    latents: int,
    block: int,
    micro_batch: int,
    precision: str,
    gradient_checkpointing: bool,
    logits_mb: float,
    residuals: bool,
    share: int = 1,
) -> MemoryEstimate:
    """Memory of one device that holds a pair and trains a transcoder adapter with `latents` per layer.

    residuals   the error of the residual stream is learned from, so that the tuned model's stream is held meanwhile
    share       number of devices over which layers are dealt out; each then also holds the two layers of both models that
                are gathered, and the adapter as it began
    """
    model = skeleton(tuned)
    layers, width, tokens = len(decoder_layers(model)), tuned.hidden_size, block * micro_batch
    frozen = sum(p.numel() for config in (base, tuned) for p in skeleton(config).parameters())
    learned = adapter_parameters(tuned, latents)
    loaded = torch.finfo(getattr(torch, dtype)).bits / 8
    product = 2.0 if precision == "bf16-mixed" else loaded
    kept, working = layer_activations(tuned, residual=loaded, product=product, adapter=False, frozen=True)
    kept += latents * (4.0 + 4.0 + 1.0) + width * 4.0  # latents before and after sparsity, which are active; the input
    working += latents * 5 * 4.0  # pre-activations, latents without and with padding, and gradients of both
    if gradient_checkpointing:
        again = 4 * tuned.intermediate_size * product + 4 * width * loaded  # inside the MLP; hidden vectors of KL
        held, layer = layers * tokens * width * loaded, tokens * (kept + working + again)
    else:
        held, layer = layers * tokens * kept, tokens * working
    logits = min(logits_mb * MB, tokens * tuned.vocab_size * (12 + 2 * product))  # both models', with probabilities
    items = {
        "frozen weights of both models": frozen * loaded / share,
        "adapter, float32": learned * 4.0,
        "its gradient": learned * 4.0 / share,
        "Adam's moments": learned * 8.0 / share,
        f"activations kept, {'checkpointed' if gradient_checkpointing else 'whole'}": held,
        "the tuned model's residual stream": (layers + 1) * tokens * width * loaded * residuals,
        "at work: one layer, or a block of logits": max(layer, logits),
    }
    if share > 1:
        of_layers = 2 * 2 * sum(p.numel() for p in decoder_layers(model)[0].parameters())
        ends = 2 * tuned.vocab_size * width
        items["gathered: layers, embeddings, head, adapter"] = (of_layers + ends) * loaded + learned * 4.0 * 3 / layers
    return MemoryEstimate(items)


def adapter_parameters(config: transformers.PretrainedConfig, latents: int) -> int:
    """Number of parameters of a transcoder adapter: encoders, decoders and both biases of all layers."""
    width = config.hidden_size
    return config.num_hidden_layers * (latents * (2 * width + 1) + width)


def layer_activations(
    config, *, residual: float, product: float, adapter: bool, frozen: bool = False
) -> tuple[float, float]:
    """Bytes per token that one layer keeps for its backward pass, and that it holds besides while at work. `residual` and
    `product` are the bytes of a number in the stream between layers, and in the inputs and outputs of matrix products."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    norms = 2 * width * ((4.0 if residual < 4 else 0.0) + 4.0 + residual)  # float32 inside, whatever comes in
    casts = 5 * width * (product if product != residual else 0.0)  # the inputs of q, k, v, gate and up
    attention = (2 * queries + 2 * keys + 2 * queries + queries) * product  # rotated, repeated for all heads, output
    mlp = 4 * inner * product  # gate, its activation, up, their product
    kept = norms + casts + attention + mlp + 2 * width * residual
    if frozen:  # no matrix learns, so that what it reads is not kept
        kept -= casts + (queries + inner) * product + 2 * width * residual
    if adapter and not residual == product == 4:  # each reads its input in a precision of its own
        kept += (5 * width + queries + inner) * product
    working = (2 * inner + 2 * width) * product + 2 * width * residual
    return kept, working


def is_of_memory(error: BaseException) -> bool:
    """True where memory ran out, the device's or the machine's."""
    said = ("can't allocate memory", "not enough memory", "out of memory")  # torch's, on the CPU, and the driver's
    of_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or of_torch
