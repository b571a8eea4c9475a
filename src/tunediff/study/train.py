"""The story of a study, from its config to its page, as it happens:

study   the config is checked; what is finished is left as it is, what was interrupted goes on      run.py
train   the parts are built, the models loaded     parts.py (build_learner), models/pair.py
learn   dictionaries learn from activations        training/on_activations.py (advance) -> objectives/reconstruction.py
                                                   -> dictionary/crosscoder.py (code)
adapt   an adapter learns inside the models        training/on_sequences.py -> dictionary/transcoder_adapter.py
finish  what was learned is saved, measured, shown run.py -> evaluations/, report/
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tunediff import folders, processes
from tunediff.activations import ShuffledRows, Wanted, take
from tunediff.hookpoints import HOOKPOINTS
from tunediff.models import Agreed, ModelPair
from tunediff.schedules import Length
from tunediff.settings import begun, build, check, digest, environment, material, pinned, read_by, refuse_unset
from tunediff.shapes import Finding, Note, Refused
from tunediff.study import faults
from tunediff.study.described import beat
from tunediff.study.estimate import forecast
from tunediff.study.parts import STUDY, agreed_upon, commits_kept, inside, learns, other_settings, refuse_gone
from tunediff.study.run import Run
from tunediff.study.trainer import fit, in_processes, make_trainer, processes_of, stoppable
from tunediff.text import Text
from tunediff.training import (
    Checkpoints,
    DictionaryTraining,
    Learner,
    TranscoderLearner,
    latest_checkpoint,
    load_checkpoint,
    load_position,
    names_in,
    whole_checkpoint,
)
from tunediff.trusted import trust_of

log = logging.getLogger(__name__)


def study(cfg: DictConfig, folder: Path) -> float | None:
    """Runs one study in its folder. Where the same study is finished it is left as it is; where it was interrupted it
    resumes. Returns the value of the finding that `optimized_metric` names. A dry run only prints the estimate."""
    if cfg.get("dry_run"):  # its folder is no run's, and nothing in it is touched
        with faults.said():
            refuse_unset(cfg, STUDY)
            check(cfg, STUDY)
            print(forecast(Run(pinned(cfg), folder)))
        return None
    with folders.unless_refused(folder), faults.said():
        refuse_unset(cfg, STUDY)
        check(cfg, STUDY)
        checkpoints = folder / "checkpoints"
        saved = latest_checkpoint(checkpoints)
        cfg = pinned(cfg, commits_kept(folder, saved=saved is not None))
        run = Run(cfg, folder)
        folders.make_folder(folder)
        if folders.is_finished(folder, run.identity):
            folders.check_whole(folder)
            if not (folder / "report.html").exists():
                log.warning("%s has no report.html any more: python evaluate.py run=%s writes it.", folder, folder)
            print(f"finished already: {folder / 'report.html'}. Remove the folder to train it again.")
            return folders.state_of(folder).get("value")
        state = folders.read_json(folder / "state.json").get("state")
        before = folders.read_json(folder / "identity.json")
        refuse_gone(cfg, folder, before.get("settings", {}).get("read", ()), material(cfg)["read"])
        other = before.get("identity") not in (None, run.identity) and (folder / "findings.json").exists()
        if state == folders.FINISHED or (state is None and other):
            raise Refused(
                f"{folder} holds another study, which is finished, with other {other_settings(cfg, folder)}. Choose another "
                "hydra.run.dir, or remove it."
            )
        if saved is not None and run.identity not in names_in(saved):
            raise Refused(f"{checkpoints} belongs to another study. Choose another hydra.run.dir, or remove it.")
        if processes_of(cfg) > 1:  # as many begin here anew, each with train([run], checkpoints)
            run.begin()
            begun()
            command = ["-m", "tunediff.study.work", str(folder), *(f"--trust={word}" for word in trust_of(cfg))]
            in_processes(command, cfg, folder, "The study")
            return folders.state_of(folder).get("value")
        with folders.held(folder, "The run"), stoppable(folder):
            run.begin()
            try:
                train([run], checkpoints)
            except Exception as error:  # of what a group shares
                if run.error is None:
                    run.fail(error)
                raise
        if run.error is not None:
            raise run.error
        return run.value


def train(runs: Sequence[Run], checkpoints: Path, *, resume_from: Path | None = None) -> None:
    """Trains the dictionaries of runs that share a stream, in one pass of both models, or none where they measure their
    pair alone; measures each and writes its page. A run that fails keeps its error; the others become what they would
    have become alone."""
    cfg = runs[0].cfg
    pair, text, agreed = agreed_upon(cfg, evaluated=any(run.cfg.evaluation for run in runs))
    found = [shared_of(agreed), *map(Note, agreed.notes)]
    found += [Note(said) for source in pair.sources.values() for said in source.remarks()]
    for run in runs:
        with run.on_its_own():
            run.build(pair, text)
    runs = going(runs)
    trainer = make_trainer(cfg, checkpoints)
    for run in runs if trainer.global_rank > 0 else ():  # one process speaks for all
        run.loggers = []
    begun()
    shards = getattr(trainer.strategy, "shares_out_layers", False)
    device = trainer.strategy.root_device
    pair.load("cpu" if shards else device)
    left_out: dict[str, str | None] = {}
    if inside(cfg):
        adapt(runs[0], pair, text, trainer, checkpoints, resume_from=resume_from)
    elif learns(cfg):
        runs, left_out = learn(runs, pair, text, trainer, checkpoints, resume_from=resume_from)
    processes.part()
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
            run.finish(pair, text, device, [*found, *([Note(own)] if own else [])])
    taken = any(isinstance(run.error, folders.Taken) for run in runs)
    if not taken and all(
        run.error is None or run.error is run.dropped for run in runs
    ):  # else what was trained is kept
        shutil.rmtree(checkpoints, ignore_errors=True)


def learn(
    runs: Sequence[Run], pair: ModelPair, text: Text, trainer: Any, checkpoints: Path, *, resume_from: Path | None
) -> tuple[list[Run], dict[str, str | None]]:
    """Trains the dictionaries on the activations of both models. Returns the runs that began, and by identity a sentence
    about what the normalisation of a run left out."""
    runs, cfg = list(runs), runs[0].cfg
    device, rank, world = trainer.strategy.root_device, trainer.global_rank, trainer.world_size
    activations, wanted = build(cfg.activations), wanted_by(runs)
    log.info("%s on %s, reading %s", described(runs), device, ", ".join(map(str, wanted.streams)))
    state, saved = None, whole_checkpoint(latest_checkpoint(checkpoints)) or whole_checkpoint(resume_from)
    if saved is None:
        sample = activations.source(pair, text, wanted)
        rows = take(sample, cfg.activations.fit_tokens)
        for run in runs:
            with run.on_its_own():
                run.fit(rows, sample)
        runs = going(runs)
    else:
        state = load_checkpoint(saved)
    learners, loggers = learners_of(runs), {run.identity: run.loggers for run in runs}
    names = [learner.name for learner in learners]
    length = runs[0].length
    assert length is not None, "the runs were built with a dictionary"
    module = DictionaryTraining(learners, length=length, state=state, loggers=loggers)
    stream = ShuffledRows(
        activations.source(pair, text, wanted._replace(rank=rank, processes=world)),
        [learner.reader() for learner in learners],
        batch=cfg.optimizer.batch,
        capacity=cfg.activations.buffer,
        steps=module.steps,
        seed=text.seed,
        device=device,
    )
    if saved is not None:
        stream.load_state_dict(*load_position(saved, names, rank=rank, world=world))
    for run in runs:
        run.open_loggers()
    saving, tokens = Checkpoints(checkpoints, seconds=cfg.checkpoint_every, stream=stream), module.steps * stream.batch
    fit(trainer, module, saving, tokens=tokens, beat=functools.partial(tell, runs), rows=stream)
    return runs, {run.identity: stream.left_out(names.index(run.identity)) for run in runs}


def adapt(run: Run, pair: ModelPair, text: Text, trainer: Any, checkpoints: Path, *, resume_from: Path | None) -> None:
    """Trains a transcoder adapter inside the models, on whole sequences."""
    cfg, learner, rank, world = run.cfg, run.learner, trainer.global_rank, trainer.world_size
    assert isinstance(learner, TranscoderLearner)
    if cfg.budget.tokens == 0:  # it is measured as it began
        run.open_loggers()
        return
    learned, held_out = learner.sequences.read(text, pair.tokenizers[0], cfg.budget.tokens)
    log.info("%s; %s", described([run]), learned.report())
    place = {"rank": rank, "world": world}
    steps = learner.sequences.batches(learned, tokens=cfg.budget.tokens, seed=text.seed, **place)
    run.length = Length(len(steps), steps.tokens_of_a_step)
    saved = whole_checkpoint(latest_checkpoint(checkpoints)) or whole_checkpoint(resume_from)
    stands_for = f"{run.identity} {learned.digest}"
    state = None if saved is None else load_checkpoint(saved, digest=stands_for)
    measured = None if held_out is None else learner.sequences.batches(held_out, **place)
    module = learner.module(pair, steps, held_out=measured, loggers=run.loggers, state=state, seed=cfg.seed)
    if getattr(trainer.strategy, "shares_out_layers", False):
        pair.models.clear()  # sharding moves tensors to the device in place: the pair would hold them all there, whole
    run.open_loggers()
    saving = Checkpoints(checkpoints, seconds=cfg.checkpoint_every, digest=stands_for)
    fit(trainer, module, saving, tokens=steps.tokens, beat=functools.partial(tell, [run]))
    learner.bring_back(module.model)


# -- parts of the stories --------------------------------------------------------------------------------------------


def going(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not failed. Raises the error of the last one where none is left."""
    left = [run for run in runs if run.error is None]
    if not left and (error := runs[-1].error) is not None:
        raise error
    return left


def learners_of(runs: Sequence[Run]) -> list[Learner]:
    """The learners of the runs that train a dictionary on activations, those of their companions among them."""
    return [learner for run in runs for learner in run.learners]


def shared_of(agreed: Agreed) -> Finding:
    """The share of tokens that the two models read differently."""
    meaning = (
        f"share of the {agreed.tokens:,} tokens of the first rows, as rendered, that touch a mark which the two models read "
        "differently"
    )
    return Finding("tokens/foreign", agreed.foreign, meaning=meaning)


def described(runs: Sequence[Run]) -> str:
    """The class of the one dictionary, or how many there are."""
    kinds = [type(run.learner.dictionary).__name__ for run in runs if run.learner is not None]
    return kinds[0] if len(kinds) == 1 else f"{len(kinds)} dictionaries"


def tell(runs: Sequence[Run], step: int) -> None:
    """Writes the progress of each run, and for a run that was dropped the reason. Raises Taken where the folder of the only one
    is another process's by now; one of several ends alone."""
    for run in runs:
        if run.learner is not None and run.dropped is None:
            try:
                beat(run.folder, run.learner.history, step, run.steps)
            except folders.Taken as taken:
                if len(runs) == 1:
                    raise
                log.error("%s", taken)
                run.learner.error = run.error = taken
        elif run.dropped is not None and run.error is None:
            run.fail(run.dropped)


def wanted_by(runs: Sequence[Run]) -> Wanted:
    """The request of a group of runs to the source of their activations, where one process reads them all."""
    cfg = runs[0].cfg
    streams = list(dict.fromkeys(stream for run in runs for stream in run.streams))
    moments = any(learner.reader().moments for learner in learners_of(runs))
    tokens, settings = cfg.budget.tokens + build(cfg.activations).fit_tokens, material(cfg)
    rows = {"model_pair": settings["model_pair"], "text": settings["text"], "tokens": tokens, "moments": moments}
    rows["read"] = read_by(settings, rows)
    rows["environment"] = environment(cfg)
    rows["places"] = {
        stream.hookpoint: HOOKPOINTS[stream.hookpoint]._asdict() for stream in streams
    }  # a name is given anew
    key = digest({**rows, "streams": [str(stream) for stream in streams]})
    return Wanted(streams, tokens, moments, key)
