"""One study: its config, its folder, and what became of it.

A study may measure its pair alone: its config has no dictionary, and its run no member that learns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tunediff import claims, folders, hub, randomness
from tunediff.activations import ActivationSource, select
from tunediff.dictionary import TranscoderAdapter, save_dictionary
from tunediff.evaluations import Evaluation, Given, declared
from tunediff.folders import EVALUATING, FAILED, FINISHED, write_atomically, write_findings
from tunediff.models import ModelPair, check_places, pair_of_adapter
from tunediff.report import SAY_OF_LABELS, labels_together, line_of, write_report
from tunediff.schedules import Length
from tunediff.settings import build, identity, plain, within
from tunediff.shapes import Figure, Finding, Note, Refused, Rows, Table, flat
from tunediff.study.companions import build_companions, names_of, settings_of, starting_rows
from tunediff.study.described import about, close_loggers, curves_of, open_loggers
from tunediff.study.faults import in_words, unwritten
from tunediff.study.parts import (
    build_learner,
    check_evaluations,
    evaluations_of,
    given_of,
    inside,
    learns,
    streams_of,
    write_claims,
    write_config,
)
from tunediff.study.trainer import precision_of, shares_out_layers
from tunediff.text import Text
from tunediff.training import Learner, TranscoderLearner
from tunediff.training.progress import tell

log = logging.getLogger(__name__)


class Run:
    """A study with its config, its folder, its parts and its outcome."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg, self.folder = cfg, folder
        self.identity = identity(cfg)
        self.learner: Learner | TranscoderLearner | None = None
        self.companions: dict[str, Learner] = {}
        self.length: Length | None = None
        self.loggers: list[Any] = []
        self.error: Exception | None = None
        self.value: float | None = None

    def begin(self) -> None:
        """Prepares the folder: removes what an earlier study left, and writes config and state."""
        folders.clear(self.folder)
        write_config(self.cfg, self.folder)
        write_claims(self.cfg, self.folder)
        folders.say(self.folder, identity=self.identity, state=folders.WAITING, error=None, value=None)

    def build(self, pair: ModelPair, text: Text, *, weights: bool = True) -> None:
        """Builds and checks every part before weights are loaded. Without `weights` the dictionary is a small one or has
        none: for a look at what would run."""
        cfg = self.cfg
        self.evaluations = evaluations_of(cfg.evaluation, learns=learns(cfg), inside=inside(cfg))
        self.streams = streams_of(cfg, pair)
        check_places(pair, self.streams)
        check_evaluations(self.evaluations, pair, text, tokens=cfg.budget.evaluation_tokens)
        precision_of(cfg)
        if shares_out_layers(cfg) and not inside(cfg):
            raise Refused(
                "trainer=fsdp shares out the layers of models that a dictionary stands in; others are trained with trainer=ddp."
            )
        self.described = about(cfg, pair, self.streams)
        with within(self.folder):
            self.loggers = [build(node) for node in (cfg.logger or {}).values()]
        if learns(cfg):
            self.learner, self.length = build_learner(cfg, self.streams, weights=weights)
            self.learner.name = self.identity
        names_of(cfg, self.streams)
        if weights:
            self.companions = build_companions(cfg, self.streams, self.identity)

    @property
    def steps(self) -> int | None:
        """Number of training steps of the dictionary; None where none is trained, or the number is not known yet."""
        return None if self.length is None else self.length.steps

    @property
    def dropped(self) -> Exception | None:
        """The error for which the dictionary stopped learning before the end."""
        return None if self.learner is None else self.learner.error

    def open_loggers(self) -> None:
        history = [] if self.learner is None else self.learner.history
        self.loggers[:] = open_loggers(self.loggers, self.cfg, history, self.described["study"])

    @property
    def learners(self) -> list[Learner]:
        """The dictionary that learns from activations, if there is one, and its companions."""
        return [self.learner, *self.companions.values()] if isinstance(self.learner, Learner) else []

    def fit(self, rows: Rows, source: ActivationSource) -> None:
        """Fits the dictionaries' statistics on their own streams, from a sample of all."""
        for stream in self.streams:
            if stream in source.broken:
                raise Refused(source.broken[stream])
        assert isinstance(self.learner, Learner)
        mine = select(rows, source.streams, self.streams, moments=self.learner.reader().moments)
        sample = Rows(mine.values.cpu(), None if mine.moments is None else mine.moments.cpu())
        for learner in self.learners:
            seen = sample if learner.view is None else learner.view(sample, randomness.generator(0, "sample of a view"))
            learner.dictionary.fit(seen)

    def finish(self, pair: ModelPair, text: Text, device: torch.device, known: Sequence[Finding | Note]) -> None:
        """Saves the dictionary, if one was trained; measures, writes the page. `known` is what is known of the pair already."""
        if folders.is_finished(self.folder, self.identity):
            return
        hub.keep(plain(self.cfg.get("commits")) or {})
        folders.say(self.folder, state=EVALUATING, step=self.steps, steps=self.steps)
        found: list[Finding | Table | Note] = [*known]
        found += [said for said in map(Note, text.sound.told()) if said not in known]  # training read more rows
        dictionary = None
        if self.learner is None:
            self.open_loggers()
        else:
            dictionary = self.learner.dictionary.to(device).eval().requires_grad_(False)
            save_dictionary(dictionary, self.folder / "dictionary", plain(self.cfg.dictionary))
            if isinstance(dictionary, TranscoderAdapter):
                write_atomically(self.folder / "pair.yaml", pair_of_adapter(pair, self.folder))
            if self.learner.history:
                found.append(Table("training", curves_of(self.learner.history)))
        write_findings(self.folder, found, self.described, by="study")
        tokens, logits_mb = self.cfg.budget.evaluation_tokens, self.cfg.logits_mb
        beside = self.keep_companions(device)
        given = given_of(
            pair, text, dictionary, tokens, self.folder, logits_mb=logits_mb, companions=beside,
            starting_rows=functools.partial(starting_rows, self.cfg, self.streams),
        )  # fmt: skip
        findings = evaluate(self.evaluations, given, self.folder, self.described)
        findings = judge_claims(self.folder, self.folder, self.described, findings)
        if identity(self.cfg) != self.identity:
            raise Refused(
                f"What {self.folder} reads was changed while it was read: remove the folder, and type the same line again."
            )
        values = {name: f["value"] for name, f in findings.items() if f["value"] is not None}
        tell(self.loggers, values, self.steps or 0)
        close_loggers(self.loggers, "success")
        say_headline(self.folder, findings)
        folders.remove_partial(self.folder)
        self.value = findings.get(self.cfg.optimized_metric, {}).get("value")
        folders.say(self.folder, state=FINISHED, value=self.value)
        with unwritten(self.folder):
            folders.note_ended(self.folder)

    def keep_companions(self, device: torch.device) -> dict[str, Any]:
        """Saves the companions that learned to the end; returns them."""
        kept = {}
        for name, learner in self.companions.items():
            if learner.error is not None:
                log.warning("the companion %s stopped learning: %s", name, learner.error)
                continue
            kept[name] = learner.dictionary.to(device).eval().requires_grad_(False)
            settings = plain(settings_of(self.cfg, name).dictionary)
            save_dictionary(kept[name], self.folder / "companions" / name, settings)
        return kept

    @contextlib.contextmanager
    def on_its_own(self) -> Iterator[None]:
        """Records what goes wrong inside in the folder of this run alone, so that the others go on."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Keeps the error, and writes it into the folder as far as the folder can be written and is this process's."""
        self.error = error = in_words(error)
        if isinstance(error, folders.Taken):
            return
        with unwritten(self.folder):
            for left in self.folder.rglob("*.partial"):
                left.unlink(missing_ok=True)
            trace = "".join(traceback.format_exception(error))
            with open(self.folder / "run.log", "a", encoding="utf-8") as file:
                file.write(trace)
        cause = error.__cause__ or error
        traceback.clear_frames(cause.__traceback__)  # where memory ran out, the others need what it held
        with unwritten(self.folder):
            first = folders.read_json(self.folder / "state.json").get("state") != FAILED
            if first:  # of several processes that fail together, it knows why
                said = {"state": FAILED, "error": str(error) or type(error).__name__}
                try:
                    folders.say(self.folder, **said)
                except OSError:  # on a disk without a byte left this gives it the room; the lock stands
                    (self.folder / "owner.json").unlink(missing_ok=True)
                    folders.say(self.folder, **said)
        close_loggers(self.loggers, "failed")


def evaluate(
    evaluations: Mapping[str, Evaluation], given: Given, folder: Path, described: Mapping[str, Any]
) -> dict[str, dict]:
    """Asks every evaluation and returns all findings of the run's folder. Those of an evaluation are written before the
    next begins, so that one that fails takes no other's with it."""
    findings, of_labels, said = write_findings(folder, (), described), False, set()
    for name, evaluation in evaluations.items():
        log.info("evaluating %s", name)
        found = found_by(name, evaluation, given)
        folders.check_held(folder)
        # two of one class may stand under names of their own
        findings = write_findings(folder, found, described, by=declared(evaluation, "name") or name)
        folders.settle(folder)
        for note in (item.text for item in found if isinstance(item, Note) and item.text not in said):
            said.add(note)
            log.info("%s", note if note.startswith(name) else f"{name}: {note}")
        of_labels |= any(isinstance(item, Finding) and item.name.split("/")[0] in SAY_OF_LABELS for item in found)
    read = getattr(given, "__dict__", {}).get("held_out")
    if read is not None and (there := sum(len(batch.token) for batch in read)) < given.tokens:
        shorter = Note(f"The held-out text has {there:,} tokens of the {given.tokens:,} asked for, and was read once.")
        log.info("%s", shorter.text)
        findings = write_findings(folder, [shorter], described, by="held-out text")
    if not of_labels:
        return findings
    together = list(labels_together(folder, findings))
    for note in (item.text for item in together if isinstance(item, Note)):
        log.info("%s", note)
    return write_findings(folder, together, described, by="labels together")


def found_by(name: str, evaluation: Evaluation, given: Given) -> list[Finding | Table | Figure | Note]:
    """Collects what an evaluation yields. Raises Refused for anything else and for one that ends the program, naming it."""
    try:
        found = evaluation.run(given)
        wrong = [found] if not isinstance(found, Iterable) or isinstance(found, tuple) else []
        found = [] if wrong else list(found)
    except SystemExit as left:
        raise Refused(f"evaluation={name} ended the program (exit status {left.code}) instead of its run.") from left
    wrong += [item for item in found if not isinstance(item, Finding | Table | Figure | Note)]
    if wrong:
        raise Refused(f"evaluation={name} gave {wrong[0]!r:.80}: its run yields Findings, Tables, Figures and Notes.")
    return found


def judge_claims(run: Path, folder: Path, described: Mapping[str, Any], findings: dict[str, dict]) -> dict[str, dict]:
    """Judges the claims of a run, as its claims.json has them, by the findings of a folder, the run's or one inside it, and returns
    all findings of that folder."""
    claimed, earlier = claims.kept_in(run)
    if not claimed:
        return findings
    settings = flat(folders.read_json(run / "identity.json")["settings"])
    verdicts = claims.of_run(claimed, findings, settings)
    told = list(claims.found_in(verdicts)) if verdicts else []
    if verdicts:
        log.info("%s", claims.in_words(verdicts))
        told += [
            Note(f"The claim {name} reads otherwise than when a run of this study first began: {len(digests)} earlier.")
            for name, digests in earlier.items()
        ]
    if of_sweep := [name for name, claim in claimed.items() if claim.of_a_sweep]:
        log.info("%d claims compare members of a sweep: python compare.py %s", len(of_sweep), run.parent)
    return write_findings(folder, told, described, by="claims")


def say_headline(folder: Path, findings: Mapping[str, dict]) -> None:
    """Writes the page and logs the last line of the run."""
    page = write_report(folder)
    log.info("%s", line_of(findings))
    log.info("page: %s", page)
