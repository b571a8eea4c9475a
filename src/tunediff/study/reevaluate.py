"""New findings on a finished run, beside those of its study or, on another number of tokens, in a folder of their own."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from tunediff import folders
from tunediff.settings import begun, build, check, environment, identity, material, pinned, plain, refuse_unset
from tunediff.shapes import Note, Refused
from tunediff.study import faults
from tunediff.study.described import about
from tunediff.study.devices import device_named, memory_of
from tunediff.study.finetuned import described_as
from tunediff.study.finished import Loaded, check_files
from tunediff.study.parts import check_evaluations, evaluations_of, inside, learns, refuse_gone
from tunediff.study.run import evaluate, judge_claims, say_headline
from tunediff.training.memory import GB
from tunediff.trusted import check_reach

log = logging.getLogger(__name__)

REEVALUATION = "evaluation task direction trainer run tokens logits_mb trust".split()


KEPT = 100  # bytes of a held-out token in its batch, all of which are kept: numbers of eight bytes, and a flag for each label


def refuse_more_than_fits(tokens: int, run: Loaded) -> None:
    """Raises Refused for more held-out tokens than the memory of this machine holds; a text may have no end."""
    memory = memory_of(device_named("cpu", run.cfg))
    if tokens * KEPT > memory:
        raise Refused(
            f"tokens={tokens}: held-out text is kept in memory, {tokens * KEPT / GB:,.0f} GB of it, and this machine has "
            f"{memory / GB:,.0f} GB. Give at most {int(memory / KEPT / 2):,}."
        )


def refuse_changed(run: Loaded) -> None:
    """Raises Refused where files that the study read are others now, or gone: its findings are not theirs. A study of an earlier
    version does not say what it read."""
    place = run.folder / "identity.json"
    stored = folders.read_json(place)
    if environment(run.cfg) and stored.get("identity") != identity(run.cfg):
        raise Refused(
            f"{run.folder} was made with other contents of {', '.join(environment(run.cfg))}, or by another version: set them as "
            "they were."
        )
    with folders.as_written(place):
        before = dict(stored.get("settings", {}).get("read", {}))
    now = material(run.cfg)["read"]
    refuse_gone(run.cfg, run.folder, before, now)
    other = {name for name in now if before and name not in before}  # a folder under what was a name on the Hub
    changed = [
        name
        for name in {**before, **now}
        if not name.startswith("evaluation.")  # whose files may be gone, too
        and (name in other or now.get(name) != before.get(name, now.get(name)))
    ]
    if changed:
        named = ", ".join(f"{name}={OmegaConf.select(run.cfg, name)}" for name in changed)
        raise Refused(
            f"{named}: changed since the study of {run.folder} read it, so new findings would stand beside those of something "
            "else. Put back what it read, or train on what is there now: python train.py --config-path "
            f"{run.folder.resolve()} --config-name config."
        )


def as_in_the_run(cfg: DictConfig, run: Loaded) -> DictConfig:
    """The config with the evaluations of the study itself, with their tasks, where none were named. Raises Refused for one
    that would send data away, or write elsewhere, at the word of the folder alone."""
    if "evaluation" in cfg:
        return cfg
    own = run.cfg.get("evaluation") or {}
    check_reach(run.folder / "config.yaml", OmegaConf.to_container(OmegaConf.create(own)), within="evaluation.")
    with open_dict(cfg):
        cfg.evaluation = own
    log.info(
        "evaluations, as in the study: %s",
        ", ".join(map(str, cfg.evaluation)) or "none, and evaluation=[...] names some",
    )
    return cfg


def own_place(run: Loaded, tokens: int) -> tuple[Path, list[Note]]:
    """The folder of what is found on so many held-out tokens: the run's, or where the study read another number one inside it,
    with a note that says so. Numbers of different tokens stand in no table, headline or page together."""
    budget = run.evaluation_tokens
    if tokens == budget:
        return run.folder, []
    said = f"Measured on {tokens:,} held-out tokens; the study itself, in {run.folder.name}, on {budget:,}."
    place = folders.make_folder(run.folder / f"on_{tokens}_tokens")
    if not (place / folders.MANIFEST).exists():
        if any(place.iterdir()):
            raise Refused(f"{place} holds files that no manifest.json lists: they are not of this run. Remove it.")
        folders.begin_manifest(place)
    return place, [Note(said)]


@faults.said()
def reevaluate(cfg: DictConfig) -> None:
    """Runs evaluations on the dictionary of a finished run, or on the pair of one that trained none; what
    an evaluation finds replaces what it found before on as many tokens."""
    with folders.unless_refused(Path(cfg.run)):
        refuse_unset(cfg, [key for key in REEVALUATION if key != "evaluation"])
        check(cfg, REEVALUATION)
        folders.refuse_links(Path(cfg.run))
        run = Loaded(Path(cfg.run), plain(cfg.trust))
        cfg = as_in_the_run(cfg, run)
        streams = run.streams  # of a model, a file or a package that is not here, it is said now
        check_files(run.folder)  # and not when all is measured and the page is written
        refuse_changed(run)
        known = {**folders.findings_of(run.folder).get("commits", {}), **(plain(run.cfg.commits) or {})}
        cfg = pinned(cfg, known)
        tokens = cfg.tokens or run.evaluation_tokens
        refuse_more_than_fits(tokens, run)
    evaluations = evaluations_of(cfg.evaluation, learns=learns(run.cfg), inside=inside(run.cfg))
    check_evaluations(evaluations, run.pair, run.text, tokens=tokens)
    device = build(cfg.trainer, precision="32-true", logger=False, default_root_dir=run.folder).strategy.root_device
    with folders.held(run.folder, "The run"):
        folder, notes = own_place(run, tokens)
        if folder != run.folder:  # which was read already
            check_files(folder)
        begun()
        given = dataclasses.replace(run.given(device=device, tokens=tokens, logits_mb=cfg.logits_mb), folder=folder)
        if run.is_fine_tune:
            described = described_as(run.cfg, run.pair, tokens)
        else:
            described = about(run.cfg, run.pair, streams, evaluation_tokens=tokens)
        described["commits"] = {**described["commits"], **(plain(cfg.commits) or {}), **known}
        for note in notes:
            log.info("%s Findings and page: %s", note.text, folder)
            folders.write_findings(folder, notes, described, by="evaluate")
        try:
            findings = evaluate(evaluations, given, folder, described)
        except KeyboardInterrupt:
            raise Refused(
                "stopped. Evaluations that ended are written, and responses of the one that was under way are kept: "
                "the same command goes on with them."
            ) from None
        findings = judge_claims(run.folder, folder, described, findings)
        folders.remove_partial(folder)
        folders.note_ended(run.folder)
        say_headline(folder, findings)
