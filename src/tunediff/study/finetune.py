"""The story of a fine-tune: a model learns a text by a recipe, and the folder it leaves is a pair.

config.yaml  identity.json  state.json  checkpoints/  tables/training.parquet  run.log  direction.safetensors
model/       the tuned model in transformers' format, or its adapter in PEFT's; README.md is its card
pair.yaml    base and tuned: python train.py model_pair=<run folder>/pair.yaml
findings.json  figures.json  report.html   what evaluations of that pair found, where some are asked    finetuned.py
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tunediff import folders, hub, processes
from tunediff.evaluations import Evaluation
from tunediff.models import ModelSource, placed
from tunediff.schedules import Length, steps_of
from tunediff.settings import begun, build, check, identity, material, pinned, plain, refuse_unset, within, words_typed
from tunediff.shapes import Refused, Table
from tunediff.study import faults, finetuned
from tunediff.study.described import beat, close_loggers, curves_of, open_loggers
from tunediff.study.devices import device_named, memory_of
from tunediff.study.learned_directions import check_directions, edits_of, forget
from tunediff.study.model_card import card, line_of, pair_of
from tunediff.study.parts import commits_kept, other_settings, refuse_toy_text, write_claims, write_config
from tunediff.study.trainer import (
    fit,
    in_processes,
    make_trainer,
    precision_of,
    processes_of,
    shares_out_layers,
    stoppable,
)
from tunediff.text import Batches, Examples, Text, TextError, examples, packed
from tunediff.training import (
    Checkpoints,
    FineTuning,
    Lora,
    Recipe,
    interval,
    latest_checkpoint,
    load_checkpoint,
    whole_checkpoint,
)
from tunediff.training.memory import GB, memory

log = logging.getLogger(__name__)

FINE_TUNE = "model text recipe trainer logger seed trust commits checkpoint_every evaluate_every sweep dry_run device memory_gb logits_mb evaluation task direction claims evaluation_tokens".split()


def finetune(cfg: DictConfig, folder: Path) -> None:
    """Runs a fine-tune in its folder. One that is finished there is left as it is; one that was interrupted resumes."""
    rank = int(os.environ.get("RANK", 0))
    if rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # one process speaks for all
    # whoever started torchrun cleans up, after having read why: one process must not, while others still write
    keeps = "TORCHELASTIC_RUN_ID" in os.environ or cfg.get("dry_run")  # whose folder is no run's
    with nullcontext() if keeps else folders.unless_refused(folder), faults.said():
        refuse_unset(cfg, FINE_TUNE)
        check(cfg, FINE_TUNE)
        typed, saved = cfg, latest_checkpoint(folder / "checkpoints") is not None or (folder / "pair.yaml").exists()
        cfg = pinned(cfg, {} if cfg.dry_run else commits_kept(folder, saved=saved))
        source, recipe = build(cfg.model), build(cfg.recipe)
        check_adapter(source, recipe)
        evaluations = finetuned.evaluations_after(cfg, recipe)
        if cfg.evaluate_every is not None:
            steps_of("evaluate_every", cfg.evaluate_every, Length(2**62, 1))  # of what length the run is comes later
        source.check()
        fits(cfg, source, recipe)
        if folders.is_finished(folder, identity(cfg)):
            folders.check_whole(folder)
            print(f"finished already: {folder / 'pair.yaml'}. Remove the folder to train it again.")
            return
        refuse_toy_text(cfg, source.tokenizer(), source.path)
        check_directions(source, recipe, text := build(cfg.text))
        finetuned.check_before(evaluations, source, text, cfg.evaluation_tokens)
        if evaluations and not cfg.dry_run and finetuned.is_trained(cfg, folder):
            if rank == 0:
                evaluate_alone(cfg, folder, evaluations)
            return
        learned, held_out = examples_of(source, recipe, text)
        if cfg.dry_run:
            return
        if processes_of(cfg) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            begun()
            in_processes(command_again(typed, cfg, folder), cfg, folder, "The fine-tune")
            return
        folders.make_folder(folder)
        processes.end_with_launcher()
        if rank > 0:
            tune(cfg, folder, source, recipe, learned, held_out, evaluations)
            return
        with folders.held(folder, "The fine-tune"), stoppable(folder):
            begin(cfg, folder)
            with failing(folder):
                tune(cfg, folder, source, recipe, learned, held_out, evaluations)


def evaluate_alone(cfg: DictConfig, folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Goes on with the evaluations of a fine-tune that has learned all it learns."""
    log.info("%s is trained: going on with %s", folder, ", ".join(evaluations))
    history = folders.read_table(folder / "tables" / "training.parquet").to_pylist()
    alone = cfg.copy()
    alone.trainer.devices = 1
    device = make_trainer(alone, folder / "checkpoints").strategy.root_device
    with folders.held(folder, "The fine-tune"), stoppable(folder):
        begun()
        with failing(folder), within(folder):
            loggers = open_loggers([build(node) for node in (cfg.logger or {}).values()], cfg, history, {})
            end(cfg, folder, evaluations, device, loggers, history)


@contextmanager
def failing(folder: Path) -> Iterator[None]:
    """Context in which an error is written into the state of the fine-tune."""
    try:
        yield
    except Exception as error:
        said = faults.in_words(error)
        with faults.unwritten(folder):
            folders.say(folder, state=folders.FAILED, error=str(said) or type(said).__name__)
        raise


# -- before a weight is loaded ---------------------------------------------------------------------------------------


def check_adapter(source: ModelSource, recipe: Recipe) -> None:
    """Raises Refused for a model with an adapter whose fine-tune pair.yaml could not name, or that transformers could not
    save."""
    if source.beside is not None:
        raise Refused(f"model.path={source.path} has transcoder adapters, beside which nothing is fine-tuned here.")
    if source.adapter is not None and isinstance(recipe.part, Lora):
        raise Refused(
            f"model.adapter={source.adapter}: a second adapter is read on the first one's base alone. Merge it into a folder "
            "of its own with PEFT, and give that folder as model.path; or learn all weights (recipe=sft_s1k)."
        )
    if source.adapter is not None and not source.merged:
        raise Refused(f"model.adapter={source.adapter}: what learns further is a whole model; set model.merged=true.")


def fits(cfg: DictConfig, source: ModelSource, recipe: Recipe) -> None:
    """Logs the memory that a fine-tune takes on each device; a dry run refuses what no device has."""
    strategy = cfg.trainer.get("strategy") or {}
    if isinstance(strategy, str):
        raise Refused(f"trainer.strategy={strategy}: choose trainer=ddp or trainer=fsdp, which bring their own.")
    sharded = shares_out_layers(cfg)
    device = device_named(cfg.device, cfg)
    count, precision = processes_of(cfg), precision_of(cfg, on_gpu=None if cfg.device is None else cfg.device != "cpu")
    config = source.config().get_text_config()
    estimate = memory(
        recipe.part,
        config,
        source.dtype,
        block=recipe.block,
        micro_batch=recipe.micro_batch,
        precision=precision,
        gradient_checkpointing=recipe.gradient_checkpointing,
        logits_mb=recipe.objective.logits_mb,
        processes=count,
        sharded=sharded,
    )
    learning = recipe.part.parameters(config)
    available = memory_of(device, given_gb=cfg.memory_gb)
    if cfg.dry_run:
        print(
            f"{learning:,} parameters learn\nmemory of each of {count} devices{', sharded' * sharded}:\n{estimate.table()}"
        )
    if estimate.total <= available:
        return
    largest = max(estimate.items, key=lambda name: estimate.items[name])
    less = [] if recipe.gradient_checkpointing else ["recipe.gradient_checkpointing=true"]
    less += [f"a recipe.micro_batch below {recipe.micro_batch}"] if recipe.micro_batch > 1 else []
    less += [f"a recipe.block below {recipe.block:,}", f"a logits_mb below {recipe.objective.logits_mb:g}"]
    less += [] if isinstance(recipe.part, Lora) else ["an adapter in place of all weights (recipe=lora)"]
    sentence = (
        f"It is estimated at {estimate.total / GB:.1f} GB on each device, and a device has {available / GB:.1f} GB; the "
        f"largest part are the {largest}, {estimate.items[largest] / GB:.1f} GB. Share the model out "
        f"(trainer=fsdp trainer.devices=<more than {count}>), or take less: {', '.join(less)}."
    )
    if cfg.dry_run:
        raise Refused(sentence)
    log.warning("note: %s", sentence)


def examples_of(source: ModelSource, recipe: Recipe, text: Text) -> tuple[Examples, Examples | None]:
    """The examples that are learned, and those that are only measured."""
    text.check(evaluated=False)
    tokenizer = source.tokenizer()
    learned = examples(text, tokenizer, block=recipe.block, limit=recipe.examples)
    log.info("%s", learned.report())
    if recipe.held_out == 0:
        return learned, None
    try:
        return learned, examples(text, tokenizer, held_out=True, block=recipe.block, limit=recipe.held_out)
    except TextError as error:
        raise Refused(f"{error} Without a held-out loss: recipe.held_out=0.") from error


def command_again(typed: DictConfig, cfg: DictConfig, folder: Path) -> list[str]:
    """The command that was typed, for this folder and at the commits of this config. Raises Refused for several machines, each
    of which has to be given it."""
    if cfg.trainer.get("num_nodes", 1) > 1:
        raise Refused(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: start it on each machine with torchrun --nnodes=... "
            f"--nproc-per-node={cfg.trainer.devices} finetune.py ... hydra.run.dir=<one folder for all>."
        )
    place = str(folder).replace("'", "\\'")
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.run.dir=")]
    for key in hub.places(plain(typed)):
        if hub.is_commit(commit := OmegaConf.select(cfg, key)):
            there = OmegaConf.select(typed, key.rpartition(".")[0])
            words.append(f"{'' if key.rpartition('.')[2] in there else '+'}{key}='{commit}'")
    return [sys.argv[0], *words, f"hydra.run.dir='{place}'"]


# -- the steps -------------------------------------------------------------------------------------------------------


def begin(cfg: DictConfig, folder: Path) -> None:
    """Prepares the folder. Raises Refused for one that holds another fine-tune, finished or not, naming the settings that
    differ."""
    if folders.state_of(folder).get("identity") not in (None, identity(cfg)):
        raise Refused(
            f"{folder} holds another fine-tune, with other {other_settings(cfg, folder)}. Choose another hydra.run.dir, or remove "
            "it."
        )
    begun()
    if latest_checkpoint(folder / "checkpoints") is None:
        forget(folder)  # what was found for a training that left nothing
    write_config(cfg, folder)
    write_claims(cfg, folder)
    folders.say(
        folder, identity=identity(cfg), state=folders.RUNNING, error=None, started=folders.clock(), words=words_typed()
    )


def tune(
    cfg: DictConfig,
    folder: Path,
    source: ModelSource,
    recipe: Recipe,
    learned: Examples,
    held_out: Examples | None,
    evaluations: Mapping[str, Evaluation],
) -> None:
    checkpoints = folder / "checkpoints"
    trainer = make_trainer(cfg, checkpoints)
    place = {"rank": trainer.global_rank, "world": trainer.world_size}

    def batches(some: Examples, *, epochs: int) -> Batches:
        sequences = packed(some, recipe.block) if recipe.packing else some
        return Batches(
            sequences, batch=recipe.batch, micro_batch=recipe.micro_batch, epochs=epochs, seed=cfg.seed, **place
        )

    steps = batches(learned, epochs=recipe.epochs)
    saved = whole_checkpoint(latest_checkpoint(checkpoints))
    edits, directions = edits_of(
        folder,
        source,
        recipe,
        build(cfg.text),
        device=trainer.strategy.root_device,
        first=trainer.global_rank == 0,
        resumes=saved is not None,
    )
    stands_for = f"{identity(cfg)} {learned.digest} {directions}".rstrip()
    state = None if saved is None else load_checkpoint(saved, digest=stands_for)
    with within(folder):
        loggers = [build(node) for node in (cfg.logger or {}).values()] if trainer.global_rank == 0 else []
    try:
        loggers[:] = open_loggers(
            loggers,
            cfg,
            [] if state is None else state["members"][identity(cfg)]["history"],
            {"model": source.described},
        )
        model = recipe.part.prepare(source.weights(), cfg.seed)
        module = FineTuning(
            model,
            recipe.objective,
            steps,
            name=identity(cfg),
            learning_rate=recipe.learning_rate,
            learning_rate_schedule=recipe.learning_rate_schedule,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            gradient_checkpointing=recipe.gradient_checkpointing,
            seed=cfg.seed,
            loggers=loggers,
            edits=edits,
            evaluate=None if held_out is None else batches(held_out, epochs=1),
            evaluate_every=interval("evaluate_every", 1 if cfg.evaluate_every is None else cfg.evaluate_every, steps),
            state=state,
        )
        saving = Checkpoints(checkpoints, seconds=cfg.checkpoint_every, digest=stands_for)
        tell = functools.partial(beat, folder, module.history, steps=module.steps)
        fit(trainer, module, saving, tokens=steps.tokens, beat=tell)
        if processes.count() > 1 or trainer.global_rank == 0:  # without a step to take, no process knows of the others
            recipe.part.save(model, folder / "model", base_path=placed(source.path))
        processes.meet()
        if trainer.global_rank == 0:
            write_down(cfg, folder, source, recipe, learned, module.history)
            folders.say(folder, step=module.steps, steps=module.steps)
    except Exception:
        close_loggers(loggers, "failed")
        raise
    device, history, rank = trainer.strategy.root_device, module.history, trainer.global_rank
    del model, module, trainer  # the evaluations load both models
    processes.part()
    if rank == 0:
        end(cfg, folder, evaluations, device, loggers, history)


def end(
    cfg: DictConfig,
    folder: Path,
    evaluations: Mapping[str, Evaluation],
    device: torch.device,
    loggers: Sequence[Any],
    history: Sequence[dict],
) -> None:
    """Asks the evaluations of the pair that was written, and closes the folder."""
    try:
        if evaluations:
            finetuned.ask(cfg, folder, evaluations, device, loggers=loggers, step=history[-1]["step"])
        close_loggers(loggers, "success")
    except Exception:
        close_loggers(loggers, "failed")
        raise
    folders.say(folder, state=folders.FINISHED, error=None)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # last: what fails before can go on from them
    with faults.unwritten(folder):
        folders.note_ended(folder)
    log.info("%s\npair: python train.py model_pair=%s", line_of(history), folder / "pair.yaml")


def write_down(
    cfg: DictConfig, folder: Path, source: ModelSource, recipe: Recipe, learned: Examples, history: Sequence[dict]
) -> None:
    """Writes the curves, the tokenizer, the model card and the pair."""
    with folders.changing(folder / "model"):
        source.tokenizer().save_pretrained(folder / "model")
    folders.write_table(folder, Table("training", curves_of(history)))
    said = card(source, recipe, learned, history, settings=material(cfg), identity=identity(cfg))
    folders.write_atomically(folder / "model" / "README.md", said)
    pair = pair_of(source, folder / "model", adapter=isinstance(recipe.part, Lora))
    folders.write_atomically(folder / "pair.yaml", pair)
