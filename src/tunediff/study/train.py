"""The stories: train, reevaluate, compare. Each reads as what happens, in order.

Everything below this floor takes plain values and objects.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tunediff import folders
from tunediff.activations import ActivationSource, ShuffledRows, Wanted, take
from tunediff.folders import RUNNING
from tunediff.models import ModelPair
from tunediff.schedules import Length
from tunediff.settings import build, digest, material
from tunediff.shapes import Refused, Stream, Table
from tunediff.study.described import curves_of
from tunediff.study.parts import inside, learns
from tunediff.study.run import Run
from tunediff.study.trainer import make_trainer
from tunediff.text import Text
from tunediff.training import (
    Checkpoints,
    DictionaryTraining,
    FineTuningCheckpoints,
    Pulse,
    TokenProgress,
    latest_checkpoint,
    load_checkpoint,
    load_state,
)

log = logging.getLogger(__name__)


def train(runs: Sequence[Run], checkpoints: Path, *, resume_from: Path | None = None) -> None:
    """Trains the dictionaries of runs that share a stream, in one pass of both models, or none where they measure their
    pair alone; measures each and writes its page. A run that fails keeps its error; the others become what they would
    have become alone."""
    cfg = runs[0].cfg
    text: Text = build(cfg.text)
    pair: ModelPair = build(cfg.model_pair)
    text.check(evaluated=any(run.cfg.evaluation for run in runs))
    notes = [
        *pair.check_tokens(text.samples()),
        *(said for source in pair.sources.values() for said in source.remarks()),
    ]
    for run in runs:
        with run.on_its_own():
            run.build(pair)
    runs = going(runs)
    trainer = make_trainer(cfg, checkpoints)
    shards = getattr(trainer.strategy, "shares_out_layers", False)
    if shards and not inside(cfg):
        raise Refused(
            "trainer=fsdp shares out the layers of models that a dictionary stands in; others are trained with trainer=ddp."
        )
    device = trainer.strategy.root_device
    pair.load("cpu" if shards else device)
    left_out: dict[str, str] = {}
    if inside(cfg):
        adapt(runs[0], pair, text, trainer, checkpoints, resume_from=resume_from)
    elif learns(cfg):
        runs, left_out = learn(runs, pair, text, trainer, checkpoints, resume_from=resume_from)
    if trainer.global_rank > 0:
        return

    # what was found
    if shards:
        pair.load(device)
    for run in runs:
        if run.error is not None:
            continue
        with run.on_its_own():
            if run.dropped is not None:
                raise run.dropped
            own = left_out.get(run.identity)
            run.finish(pair, text, device, [*notes, *([own] if own else [])])
    if all(run.error is None or run.error is run.dropped for run in runs):  # else what was trained is kept
        shutil.rmtree(checkpoints, ignore_errors=True)


def learn(
    runs: Sequence[Run], pair: ModelPair, text: Text, trainer: Any, checkpoints: Path, *, resume_from: Path | None
) -> tuple[list[Run], dict[str, str]]:
    """Both models run; the dictionaries learn from what they read. Returns the runs that began, and by identity a
    sentence about what the normalisation of a run left out."""
    cfg = runs[0].cfg
    device, rank, world = trainer.strategy.root_device, trainer.global_rank, trainer.world_size
    streams = list(dict.fromkeys(stream for run in runs for stream in run.streams))
    log.info("%s on %s, reading %s", described(runs), device, ", ".join(map(str, streams)))
    source = functools.partial(source_of, cfg, pair, text, streams, any(r.learner.reader().moments for r in runs))
    saved = latest_checkpoint(checkpoints) or resume_from
    if saved is None:
        state = position = None
        sample = source()
        rows = take(sample, cfg.activations.fit_tokens)
        for run in runs:
            with run.on_its_own():
                run.fit(rows, sample)
        runs = going(runs)
    else:
        state, position = load_checkpoint(saved, rank=rank, world=world)
        log.info("going on from step %s of %s", f"{state['step']:,}", f"{runs[0].steps:,}")
    if rank > 0:  # one process speaks for all
        for run in runs:
            run.loggers = []
    loggers = {run.identity: run.loggers for run in runs}
    module = DictionaryTraining([run.learner for run in runs], length=runs[0].length, state=state, loggers=loggers)
    stream = ShuffledRows(
        source(rank, world),
        [run.learner.reader() for run in runs],
        batch=cfg.optimizer.batch,
        capacity=cfg.activations.buffer,
        steps=module.steps,
        seed=text.seed,
        device=device,
    )
    if position is not None:
        stream.load_state_dict(position, [state["readers"].index(run.identity) for run in runs])
    for run in runs:
        run.open_loggers()
    if module.step < module.steps:
        trainer.callbacks += [
            TokenProgress(module.steps * stream.batch),
            Checkpoints(checkpoints, stream, seconds=cfg.checkpoint_every),
            Pulse(functools.partial(beat, runs), seconds=min(10.0, cfg.checkpoint_every)),
        ]
        trainer.fit(module, train_dataloaders=stream)
        if world > 1:
            torch.distributed.destroy_process_group()
    return runs, {run.identity: stream.left_out(n) for n, run in enumerate(runs)}


def adapt(run: Run, pair: ModelPair, text: Text, trainer: Any, checkpoints: Path, *, resume_from: Path | None) -> None:
    """An adapter learns inside the models, from whole sequences."""
    cfg, learner, rank, world = run.cfg, run.learner, trainer.global_rank, trainer.world_size
    if cfg.budget.tokens == 0:  # it is measured as it began
        run.open_loggers()
        return
    learned, held_out = learner.sequences.read(text, pair.tokenizers[0], cfg.budget.tokens)
    log.info("%s; %s", described([run]), learned.report())
    place = {"rank": rank, "world": world}
    steps = learner.sequences.batches(learned, tokens=cfg.budget.tokens, seed=text.seed, **place)
    run.length = Length(len(steps), steps.tokens_of_a_step)
    saved = latest_checkpoint(checkpoints) or resume_from
    stands_for = f"{run.identity} {learned.digest}"
    state = None if saved is None else load_state(saved, digest=stands_for)
    if state is not None:
        log.info("going on from step %s of %s", f"{state['step']:,}", f"{run.steps:,}")
    if rank > 0:  # one process speaks for all
        run.loggers = []
    measured = None if held_out is None else learner.sequences.batches(held_out, **place)
    module = learner.module(pair, steps, held_out=measured, loggers=run.loggers, state=state, seed=cfg.seed)
    if getattr(trainer.strategy, "shares_out_layers", False):
        pair.models.clear()  # sharding moves tensors to the device in place: the pair would hold them all there, whole
    run.open_loggers()
    if module.step < module.steps:
        trainer.callbacks += [
            TokenProgress(steps.tokens),
            FineTuningCheckpoints(checkpoints, seconds=cfg.checkpoint_every, digest=stands_for, name=run.identity),
            Pulse(functools.partial(beat, [run]), seconds=min(10.0, cfg.checkpoint_every)),
        ]
        trainer.fit(module)
        learner.bring_back(module.model)
        if world > 1:
            torch.distributed.destroy_process_group()


# -- parts of the stories --------------------------------------------------------------------------------------------


def going(runs: Sequence[Run]) -> list[Run]:
    """Those that have not failed. With none left there is nothing to go on with."""
    left = [run for run in runs if run.error is None]
    if not left:
        raise runs[-1].error
    return left


def described(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].cfg.dictionary._target_.rpartition(".")[2]
    return f"{len(runs)} dictionaries"


def beat(runs: Sequence[Run], step: int) -> None:
    """How far each run is, with its curves, for whoever looks at its folder; a run that was dropped says why at once."""
    for run in runs:
        if run.learner.error is None:
            if run.learner.history:
                folders.write_table(run.folder, Table("training", curves_of(run.learner.history)))
            last = run.learner.history[-1] if run.learner.history else {}
            folders.say(
                run.folder,
                state=RUNNING,
                step=step,
                steps=run.steps,
                explained_variance=last.get("explained_variance/pooled"),
            )
        elif run.error is None:
            run.fail(run.learner.error)


def source_of(
    cfg: DictConfig,
    pair: ModelPair,
    text: Text,
    streams: Sequence[Stream],
    moments: bool,
    rank: int = 0,
    world: int = 1,
) -> ActivationSource:
    activations = build(cfg.activations)
    tokens = cfg.budget.tokens + activations.fit_tokens
    settings = material(cfg)
    rows = {"model_pair": settings["model_pair"], "text": settings["text"], "tokens": tokens, "moments": moments}
    key = digest({**rows, "streams": [str(stream) for stream in streams]})
    return activations.source(pair, text, Wanted(streams, tokens, moments, key, rank, world))
