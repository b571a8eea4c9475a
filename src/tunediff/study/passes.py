"""Floating-point operations of forward passes and of evaluations, by the kind of number that is multiplied.

A pass of a token takes two operations a weight, and in each layer 2 * width * context for attention, which sees half of the
context on average. Evaluations are counted at most: the held-out budget is read whole, and every response is as long as it
may be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from omegaconf import DictConfig

from tunediff.dictionary import latents_of
from tunediff.evaluations import KEPT, Needs, Work, declared
from tunediff.models import ModelPair
from tunediff.shapes import ROLES, Stream
from tunediff.study.devices import TF32, Device
from tunediff.study.parts import learns
from tunediff.study.run import Run
from tunediff.study.trainer import precision_of

MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
Flops = Counter[str]


def precision_on(cfg: DictConfig, device: Device | None) -> str:
    """The precision that a trainer would have on a device; None is one of this machine."""
    return precision_of(cfg, on_gpu=None if device is None else device.is_gpu)


def learned_in(cfg: DictConfig, device: Device | None) -> str:
    """The kind of number in which a dictionary's products are taken while it learns."""
    return MIXED.get(precision_on(cfg, device), "float32")


def single(cfg: DictConfig, device: Device | None) -> str:
    """The kind of number of a float32 product: TF32 where the precision is chosen here and is a GPU's."""
    chosen = cfg.trainer.get("precision") is None and precision_on(cfg, device) in MIXED
    return TF32 if chosen else "float32"


def kind_of(pair: ModelPair, role: str, cfg: DictConfig, device: Device | None) -> str:
    """The kind of number of a model's products: that of its weights."""
    dtype = pair.source(role).dtype
    return single(cfg, device) if dtype == "float32" else dtype


def reading(pair: ModelPair, streams: Iterable[Stream], tokens: float, cfg: DictConfig, device: Device | None) -> Flops:
    """The operations of the passes that read these streams, each model up to its highest layer."""
    found, streams = Flops(), list(streams)
    for role in dict.fromkeys(role for stream in streams for role in stream.models):
        layers = 1 + max(stream.layer for stream in streams if role in stream.models)
        found[kind_of(pair, role, cfg, device)] += int(tokens * layers * of_layer(pair, role, cfg))
    return found


def of_layer(pair: ModelPair, role: str, cfg: DictConfig) -> float:
    """The operations of a token in one decoder layer."""
    return 2 * pair.source(role).size[1] + 2 * pair.configs[role].hidden_size * cfg.text.get("context", 1024)


def of_model(pair: ModelPair, role: str, cfg: DictConfig) -> float:
    """The operations of a token in a whole model, logits included."""
    config = pair.configs[role]
    return config.num_hidden_layers * of_layer(pair, role, cfg) + 2 * config.vocab_size * config.hidden_size


def evaluation_cost(run: Run, pair: ModelPair, device: Device | None) -> tuple[Flops, float]:
    """The operations of a run's evaluations at most, and the bytes of weights that are read where they write."""
    cfg, found, read = run.cfg, Flops(), 0.0
    role = max(ROLES, key=lambda one: of_model(pair, one, cfg))  # the larger model stands for both
    whole, kind, tokens = of_model(pair, role, cfg), kind_of(pair, role, cfg, device), cfg.budget.evaluation_tokens
    readings = 0
    for evaluation in run.evaluations.values():
        work = getattr(evaluation, "work", None)  # a class of the user's own may have none
        asked = Work() if work is None else work(pair, run.streams)
        found[kind] += whole * (asked.passes * tokens + 2 * asked.written)
        read += asked.written / asked.together * pair.source(role).size[0] * bytes_of(pair.source(role).dtype)
        readings += 2 if declared(evaluation, "needs") is not Needs.PAIR else 0  # its statistics, and what it asks
    if learns(cfg) and readings:
        width = sum(stream.width for stream in run.streams)
        again = 1 if 4 * tokens * width <= KEPT else readings  # what fits into memory is read once
        streams = [stream for stream in run.streams if set(stream.models) <= {*ROLES}]
        if streams:
            found += reading(pair, streams, again * tokens, cfg, device)
        else:  # an adapter, read in the whole model that it stands in
            found[kind] += whole * again * tokens
        latents = latents_of(cfg.dictionary.latents, run.streams)
        found[single(cfg, device)] += 4 * readings * tokens * latents * width
    return found, read


def bytes_of(dtype: str) -> int:
    """The bytes of a number of this type."""
    return 4 if dtype == "float32" else 2
