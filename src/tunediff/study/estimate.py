"""Cost of studies that share a pass of the models, before they start: memory, disk, and a lower bound of the time.

Memory and disk are counted from shapes. Time is a FLOP model of training (both models to the highest layer read; five
dense products a dictionary, or one where codes are sparse) at the rate of one matrix product measured here; AuxK and
evaluations are not in it, and no run reaches that rate with everything, so it says "at least". A study of a pair alone is
one pass of both models over the held-out tokens.
"""

from __future__ import annotations

import functools
import os
import timeit
from collections.abc import Sequence
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from tunediff.dictionary import latents_of
from tunediff.models import ModelPair
from tunediff.settings import build
from tunediff.shapes import BASE, TUNED
from tunediff.study.described import spelled
from tunediff.study.parts import agreed_upon, inside, learns
from tunediff.study.run import Run
from tunediff.study.trainer import precision_of, processes_of, shares_out_layers
from tunediff.training import MemoryEstimate
from tunediff.training.memory import GB, adapter_memory, adapter_parameters


class Cost(NamedTuple):
    """Cost of a group: bytes on the device, bytes on disk, floating-point operations."""

    memory: float
    disk: float
    flops: float


def forecast(run: Run) -> str:
    """The estimate of one study, in lines. Everything that can be wrong is checked first."""
    pair, text, _ = agreed_upon(run.cfg, evaluated=bool(run.cfg.evaluation))
    run.build(pair, text, weights=False)
    items = f"memory of one device:\n{adapter_items(run.cfg, pair).table()}\n" if inside(run.cfg) else ""
    return items + table([([run], cost_of([run], pair))], device=device_of(run.cfg))


def cost_of(runs: Sequence[Run], pair: ModelPair) -> Cost:
    cfg = runs[0].cfg
    if inside(cfg):
        return adapter_cost(cfg, pair)
    streams = dict.fromkeys(stream for run in runs for stream in run.streams)
    width = sum(stream.width for stream in streams)
    activations = build(cfg.activations) if learns(cfg) else None
    tokens = cfg.budget.evaluation_tokens if activations is None else cfg.budget.tokens + activations.fit_tokens
    block = cfg.text.get("tokens_per_batch", 8192)  # a text of the user's own may have none
    memory, flops = 4.0 * block * width, 0.0
    for role in dict.fromkeys(role for stream in streams for role in stream.models):
        (total, one_layer), config = pair.sources[role].size, pair.configs[role]
        value = torch.empty(0, dtype=getattr(torch, pair.sources[role].dtype)).element_size()
        held = pair.sources[role].added if pair.shares_weights(role) else total
        memory += value * (held + 6 * block * (config.hidden_size + config.intermediate_size))
        layers = 1 + max(stream.layer for stream in streams if role in stream.models)
        flops += 2 * tokens * layers * one_layer
    if activations is None:
        return Cost(memory, 0.0, flops)
    value = torch.empty(0, dtype=getattr(torch, activations.dtype)).element_size()
    buffer = activations.buffer * width * value
    memory += buffer
    disk = 2.0 * buffer + activations.disk(tokens, width)  # a checkpoint is written before the last is removed
    for run in runs:
        latents = latents_of(run.cfg.dictionary.latents, run.streams)
        mine = sum(stream.width for stream in run.streams)
        parameters = 2 * latents * mine
        memory += 4 * (4 * parameters + 8 * cfg.optimizer.batch * latents)  # with gradient and both moments of Adam
        disk += 4 * parameters * (1 + 2 * 3)
        sparsity = build(run.cfg.dictionary.get("sparsity"))  # a dictionary of the user's own may have none
        products = 1 if getattr(sparsity, "few", False) else 5
        flops += 2 * products * run.cfg.budget.tokens * latents * mine
    return Cost(memory, disk, flops)


def adapter_cost(cfg: DictConfig, pair: ModelPair) -> Cost:
    """The cost of an adapter that learns inside the models, in a process for itself: the tuned model runs once, the adapted
    one in each pass, and for each cutoff two mixtures, of which the second learns in half of its layers on average. Frozen
    weights have no gradient."""
    latents = latents_of(cfg.dictionary.latents, pair.streams("mlp_in", 0, reads=TUNED))
    learned = adapter_parameters(pair.configs[TUNED], latents)
    objective, again = cfg.dictionary.objective, 2 if cfg.activations.gradient_checkpointing else 1
    passes, cutoffs = 2 if objective.separately else 1, objective.cutoffs if objective.bridge else 0
    forward = backward = 2.0 * pair.sources[TUNED].size[0]
    frozen = forward * (1 + (passes + 2 * cutoffs) * again) + backward * (passes + 1.5 * cutoffs)
    flops = cfg.budget.tokens * (frozen + 6.0 * learned * (passes + cutoffs))
    return Cost(adapter_items(cfg, pair).total, 4.0 * learned * (1 + 2 * 3), flops)


def adapter_items(cfg: DictConfig, pair: ModelPair) -> MemoryEstimate:
    """The memory of an adapter, item by item."""
    return adapter_memory(
        pair.configs[BASE],
        pair.configs[TUNED],
        pair.sources[TUNED].dtype,
        latents=latents_of(cfg.dictionary.latents, pair.streams("mlp_in", 0, reads=TUNED)),
        block=cfg.text.context,
        micro_batch=cfg.activations.micro_batch,
        precision=precision_of(cfg),
        gradient_checkpointing=cfg.activations.gradient_checkpointing,
        logits_mb=cfg.dictionary.objective.logits_mb,
        residuals=cfg.dictionary.objective.nmse > 0,
        share=processes_of(cfg) if shares_out_layers(cfg) else 1,
    )


def device_of(cfg: DictConfig) -> torch.device | None:
    """The device of this machine that a trainer would take; None where a GPU is asked for and none is here."""
    asked = cfg.trainer.accelerator
    if asked in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if asked in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu") if asked in ("auto", "cpu") else None


def memory_of(device: torch.device | None, *, given_gb: float | None = None) -> float:
    """Bytes of one device: as given, else as found on this machine; infinite for a device that is not here."""
    if given_gb is not None:
        return given_gb * GB
    if device is None:
        return float("inf")
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@functools.cache
def rate_of(device: torch.device) -> float:
    """Floating-point operations a second of a float32 matrix product, measured now."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    seconds = timeit.repeat("float((a @ a)[0, 0])", globals={"a": a}, repeat=4, number=1)
    return 2 * size**3 / min(seconds)


def table(groups: Sequence[tuple[Sequence[Run], Cost]], *, device: torch.device | None) -> str:
    """The table of estimates, one line per group. With no device at hand (a login node) operations replace time."""
    rows = [["group", "members", "layers", "tokens", "memory", "disk", "time, at least" if device else "operations"]]
    for n, (runs, cost) in enumerate(groups):
        cfg = runs[0].cfg
        layers = sorted({stream.layer for run in runs for stream in run.streams})
        tokens = cfg.budget.tokens if learns(cfg) else cfg.budget.evaluation_tokens
        spent = duration(cost.flops / rate_of(device)) if device else operations(cost.flops)
        sizes = [f"{size / GB:.2f} GB" for size in (cost.memory, cost.disk)]
        rows.append([str(n), str(len(runs)), spelled(layers), f"{tokens:,}", *sizes, spent])
    said = columns(rows)
    if device:
        said += f"\ntime: FLOP model of training at {rate_of(device) / 1e9:,.0f} GFLOP/s, one product measured on this {device.type}"
    return said


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def operations(count: float) -> str:
    unit, name = next(
        (u, n) for u, n in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (0, "GFLOP")) if count >= u
    )
    return f"{count / (unit or 1e9):.3g} {name}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
