"""Cost of studies that share a pass of the models, before they start: memory, disk, and the time of a named device.

Memory and disk are counted from shapes. Time is a FLOP model at a share of the device's peak rate (devices.py). Training runs
both models to the highest layer read and takes five dense products a dictionary, or one where codes are sparse; AuxK and
padding are not in it. Of evaluations the products of models and dictionary are counted, at most (passes.py); what else they
count and sort is not. Writing reads all weights for each token of a batch, where that takes longer than computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig

from tunediff.dictionary import latents_of, sparse_pays
from tunediff.evaluations import KEPT
from tunediff.models import ModelPair
from tunediff.settings import build
from tunediff.shapes import BASE, ROLES, TUNED
from tunediff.study.companions import names_of
from tunediff.study.described import spelled
from tunediff.study.devices import Device, device_named
from tunediff.study.parts import agreed_upon, inside, learns
from tunediff.study.passes import (
    Flops,
    bytes_of,
    evaluation_cost,
    kind_of,
    learned_in,
    of_model,
    precision_on,
    reading,
)
from tunediff.study.rehearsal import rehearse
from tunediff.study.run import Run
from tunediff.study.trainer import not_here, processes_of, shares_out_layers
from tunediff.terminal import printable
from tunediff.training import MemoryEstimate
from tunediff.training.memory import GB, MB, adapter_memory, adapter_parameters


class Cost(NamedTuple):
    """Cost of a group: bytes on the device, bytes on disk, operations of training and of evaluations, and the bytes of
    weights that are read where evaluations write."""

    memory: float
    disk: float
    training: Flops
    evaluation: Flops
    read: float


def forecast(run: Run) -> str:
    """The estimate of one study, in lines. Everything that can be wrong is checked first."""
    cfg = run.cfg
    pair, text, agreed = agreed_upon(cfg, evaluated=bool(cfg.evaluation))
    run.build(pair, text, weights=False)
    rehearse(run, pair)
    device = device_named(cfg.launcher.device, cfg)
    notes = [*agreed.notes, *(said for source in pair.sources.values() for said in source.remarks()), *not_here(cfg)]
    items = f"memory of one device:\n{adapter_items(cfg, pair, device).table()}\n" if inside(cfg) else ""
    said = "".join(f"note: {note}\n" for note in notes)
    return said + items + table([([run], cost_of([run], pair, device))], device=device)


def cost_of(runs: Sequence[Run], pair: ModelPair, device: Device | None) -> Cost:
    """The cost of runs in one process on a device; None is one of this machine whose speed is not known."""
    cfg = runs[0].cfg
    evaluated, read = Flops(), 0.0
    for run in runs:
        flops, of_run = evaluation_cost(run, pair, device)
        evaluated, read = evaluated + flops, read + of_run
    if inside(cfg):
        return adapter_cost(cfg, pair, device)._replace(evaluation=evaluated, read=read)
    streams = list(dict.fromkeys(stream for run in runs for stream in run.streams))
    width = sum(stream.width for stream in streams)
    models = models_memory(cfg, pair, [role for stream in streams for role in stream.models], width)
    measuring = measuring_memory(cfg, pair, width) if cfg.evaluation else 0.0
    if not learns(cfg):
        return Cost(models + measuring, 0.0, Flops(), evaluated, read)
    activations = build(cfg.activations)
    tokens = cfg.budget.tokens + activations.fit_tokens
    training = reading(pair, streams, tokens, cfg, device)
    learning = activations.buffer * width * bytes_of(activations.dtype)
    disk = 3.0 * learning + activations.disk(tokens, width)  # a third checkpoint is written before the first is removed
    for run in runs:
        latents = latents_of(run.cfg.dictionary.latents, run.streams)
        mine = sum(stream.width for stream in run.streams)
        parameters = 2 * latents * mine * (1 + len(names_of(run.cfg, run.streams)))  # with its companions
        learning += 4 * (4 * parameters + 8 * cfg.optimizer.batch * latents)  # with gradient and both moments of Adam
        measuring += 4 * parameters
        disk += 4 * parameters * (1 + 2 * 3)
        products = 1 if goes_sparse(run.cfg, latents, device) else 5
        training[learned_in(cfg, device)] += products * run.cfg.budget.tokens * parameters
    return Cost(models + max(learning, measuring), disk, training, evaluated, read)


def goes_sparse(cfg: DictConfig, latents: int, device: Device | None) -> bool:
    """True where a dictionary computes its active latents alone while it learns, as Crosscoder.goes_sparse decides."""
    sparsity = build(cfg.dictionary.get("sparsity"))  # a dictionary of the user's own may have none
    if not getattr(sparsity, "few", False):
        return False
    on_cpu = device is not None and not device.is_gpu
    k = getattr(sparsity, "k", latents) + getattr(sparsity, "k_shared", 0)
    return sparse_pays(cfg.dictionary.get("sparse_codes"), k, latents, on_cpu=on_cpu, processes=processes_of(cfg))


def models_memory(cfg: DictConfig, pair: ModelPair, roles: Sequence[str], width: int) -> float:
    """The bytes of both models' weights, and of a batch at work in one layer of those that are read, with what is read."""
    block = cfg.text.get("tokens_per_batch", 8192)  # a text of the user's own may have none
    found = 4.0 * block * width
    for role in ROLES:
        source, config = pair.sources[role], pair.configs[role]
        held = source.added if pair.shares_weights(role) else source.size[0]
        working = 6 * block * (config.hidden_size + config.intermediate_size) if role in roles else 0
        found += bytes_of(source.dtype) * (held + working)
    return found


def measuring_memory(cfg: DictConfig, pair: ModelPair, width: int) -> float:
    """The bytes of held-out activations that are kept, and of a block of logits with what is computed of it."""
    vocabulary = max(config.vocab_size for config in pair.configs.values())
    return min(MB * cfg.logits_mb, 20 * 2048 * vocabulary) + min(KEPT, 4 * cfg.budget.evaluation_tokens * width)


def adapter_cost(cfg: DictConfig, pair: ModelPair, device: Device | None) -> Cost:
    """The cost of an adapter that learns inside the models, in a process for itself: the tuned model runs once, the adapted
    one in each pass, and for each cutoff two mixtures, of which the second learns in half of its layers on average. Frozen
    weights have no gradient."""
    latents = latents_of(cfg.dictionary.latents, pair.streams("mlp_in", 0, reads=TUNED))
    learned = adapter_parameters(pair.configs[TUNED], latents)
    objective, again = cfg.dictionary.objective, 2 if cfg.activations.gradient_checkpointing else 1
    passes, cutoffs = 2 if objective.separately else 1, objective.cutoffs if objective.bridge else 0
    forward = backward = of_model(pair, TUNED, cfg)
    frozen = forward * (1 + (passes + 2 * cutoffs) * again) + backward * (passes + 1.5 * cutoffs)
    training = Flops({kind_of(pair, TUNED, cfg, device): cfg.budget.tokens * frozen})
    training[learned_in(cfg, device)] += cfg.budget.tokens * 6.0 * learned * (passes + cutoffs)
    return Cost(adapter_items(cfg, pair, device).total, 4.0 * learned * (1 + 2 * 3), training, Flops(), 0.0)


def adapter_items(cfg: DictConfig, pair: ModelPair, device: Device | None) -> MemoryEstimate:
    """The memory of an adapter, item by item."""
    return adapter_memory(
        pair.configs[BASE],
        pair.configs[TUNED],
        pair.sources[TUNED].dtype,
        latents=latents_of(cfg.dictionary.latents, pair.streams("mlp_in", 0, reads=TUNED)),
        block=cfg.text.context,
        micro_batch=cfg.activations.micro_batch,
        precision=precision_on(cfg, device),
        gradient_checkpointing=cfg.activations.gradient_checkpointing,
        logits_mb=cfg.dictionary.objective.logits_mb,
        residuals=cfg.dictionary.objective.nmse > 0,
        share=processes_of(cfg) if shares_out_layers(cfg) else 1,
    )


def table(groups: Sequence[tuple[Sequence[Run], Cost]], *, device: Device | None) -> str:
    """The table of estimates, one line per group, and what its times are of. With no device at hand (a login node)
    operations replace time."""
    rows = [["group", "members", "layers", "tokens", "memory", "disk", "training", "evaluations"]]
    for n, (runs, cost) in enumerate(groups):
        cfg = runs[0].cfg
        layers = sorted({stream.layer for run in runs for stream in run.streams})
        tokens = cfg.budget.tokens if learns(cfg) else cfg.budget.evaluation_tokens
        sizes = [f"{size / GB:.2f} GB" for size in (cost.memory, cost.disk)]
        rows.append([str(n), str(len(runs)), spelled(layers), f"{tokens:,}", *sizes, *times(cost, device)])
    unknown = "operations; launcher.device=h200, h100, a100 or cpu gives hours"
    counted = "of evaluations the products of models and dictionary, at most"
    return f"{columns(rows)}\n{unknown if device is None else device.described}; {counted}"


def times(cost: Cost, device: Device | None) -> list[str]:
    """The time of training and of evaluations, in words."""
    if device is None:
        return [operations(sum(flops.values())) for flops in (cost.training, cost.evaluation)]
    return [duration(device.seconds(cost.training)), duration(device.seconds(cost.evaluation, cost.read))]


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
    return printable(
        "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
    )
