"""One study: its config, its folder, its parts, and what became of it. The files that see the composed config are this
one, run.py, and those of sweep/.

A study may measure its pair alone: its config has no dictionary, and its run no member that learns.
"""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import tunediff
from tunediff import folders
from tunediff.activations import Sequences, Source, select
from tunediff.dictionary import Crosscoder, TranscoderAdapter, latents_of
from tunediff.evaluations import Trained
from tunediff.evaluations.columns import checked
from tunediff.finetuning import AdapterMember
from tunediff.folders import EVALUATING, FAILED, FINISHED, write_atomically, write_findings
from tunediff.hookpoints import LORA
from tunediff.models import ModelPair, TranscoderFiles, pair_of_adapter
from tunediff.report import line_of, write_report
from tunediff.schedules import Length
from tunediff.settings import READ_BY_STUDY, build, check, identity, material, plain, within
from tunediff.shapes import ADAPTER, HYBRID, ROLES, Note, Refused, Rows, Stream, Table
from tunediff.text import Text
from tunediff.training import Member

log = logging.getLogger(__name__)

STUDY = "budget model_pair text dictionary l1_schedule optimizer activations evaluation task trainer logger layer seed trust"
STUDY = [*STUDY.split(), "sweep", "launcher", "dry_run", "checkpoint_every", "optimized_metric"]
LEARNING = ("dictionary", "l1_schedule", "optimizer", "activations")  # what a dictionary is trained with: all or none


class Run:
    """One study: its config, its folder, and what became of it."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg, self.folder = cfg, folder
        self.identity = identity(cfg)
        self.member: Member | AdapterMember | None = None
        self.length: Length | None = None
        self.loggers: list[Any] = []
        self.error: Exception | None = None
        self.value: float | None = None

    def begin(self) -> None:
        """The folder says what it will hold, and nothing of an earlier study is left in it."""
        folders.clear(self.folder)
        write_config(self.cfg, self.folder)
        folders.say(self.folder, identity=self.identity, state=folders.WAITING, error=None, value=None)

    def build(self, pair: ModelPair, *, weights: bool = True) -> None:
        """Everything that can be wrong is asked before weights are loaded. Without `weights` an adapter, which may be as large
        as a model, has none: for a look at what would run."""
        cfg = self.cfg
        self.evaluations = evaluations_of(cfg.evaluation, learns=learns(cfg), inside=inside(cfg))
        if learns(cfg):
            check_reads(cfg)
        self.streams = streams_of(cfg, pair)
        with within(self.folder):
            self.loggers = [build(node) for node in (cfg.logger or {}).values()]
        if learns(cfg):
            self._build_member(weights)

    def _build_member(self, weights: bool) -> None:
        cfg = self.cfg
        if inside(cfg):
            self._build_adapter(weights)
            return
        self.length = Length(cfg.budget.tokens // cfg.optimizer.batch, cfg.optimizer.batch)
        if self.length.steps < 1:
            raise Refused(
                f"budget.tokens={cfg.budget.tokens} is less than one batch of optimizer.batch={cfg.optimizer.batch}."
            )
        self.member = Member(
            name=self.identity,
            dictionary=build_dictionary(cfg.dictionary, self.streams),
            objective=build(cfg.dictionary.objective),
            l1_schedule=build(cfg.l1_schedule),
            learning_rate_schedule=build(cfg.optimizer.learning_rate_schedule),
            learning_rate=cfg.optimizer.learning_rate,
            betas=tuple(cfg.optimizer.betas),
            clip_norm=cfg.optimizer.clip_norm,
            resampling=build(cfg.optimizer.resampling),
            compile=cfg.optimizer.compile,
        )
        self.member.check(self.length)

    def _build_adapter(self, weights: bool) -> None:
        """Its steps are known once the text was read."""
        cfg = self.cfg
        with contextlib.nullcontext() if weights else torch.device("meta"):
            dictionary = build_dictionary(cfg.dictionary, self.streams)
        if cfg.dictionary.start is not None:
            begin_at(dictionary, TranscoderFiles(cfg.dictionary.start), weights)
        elif cfg.budget.tokens < 1:
            raise Refused(
                "budget.tokens=0 trains nothing: name what is measured, dictionary.start=<run folder or checkpoint>."
            )
        self.member = AdapterMember(
            name=self.identity,
            dictionary=dictionary,
            objective=build(cfg.dictionary.objective),
            sequences=build(cfg.activations),
            l1_schedule=build(cfg.l1_schedule),
            learning_rate_schedule=build(cfg.optimizer.learning_rate_schedule),
            learning_rate=cfg.optimizer.learning_rate,
            betas=tuple(cfg.optimizer.betas),
            clip_norm=cfg.optimizer.clip_norm,
        )

    @property
    def steps(self) -> int | None:
        """Of its dictionary; None where none is trained, or how many is not known yet."""
        return None if self.length is None else self.length.steps

    @property
    def dropped(self) -> Exception | None:
        """Why its dictionary stopped learning before the end."""
        return None if self.member is None else self.member.error

    def open_loggers(self) -> None:
        for logger in self.loggers:
            open_logger(logger, self.cfg, [] if self.member is None else self.member.history)

    def fit(self, rows: Rows, source: Source) -> None:
        """The statistics of its own streams, from a sample of all."""
        for stream in self.streams:
            if stream in source.broken:
                raise Refused(source.broken[stream])
        mine = select(rows, source.streams, self.streams, moments=self.member.reader().moments)
        self.member.dictionary.fit(Rows(*(None if part is None else part.cpu() for part in mine)))

    def finish(self, pair: ModelPair, text: Text, device: torch.device, notes: Sequence[str]) -> None:
        """Saves the dictionary, if one was trained; measures, writes the page."""
        if folders.is_finished(self.folder, self.identity):
            return
        folders.say(self.folder, state=EVALUATING, step=self.steps, steps=self.steps)
        found: list[Table | Note] = [Note(sentence) for sentence in notes]
        dictionary = None
        if self.member is None:
            self.open_loggers()
        else:
            dictionary = self.member.dictionary.to(device).eval().requires_grad_(False)
            dictionary.save(self.folder / "dictionary", plain(self.cfg.dictionary))
            if isinstance(dictionary, TranscoderAdapter):
                write_atomically(self.folder / "pair.yaml", pair_of_adapter(pair, self.folder))
            if self.member.history:
                found.append(Table("training", curves_of(self.member.history)))
        described = about(self.cfg, pair, self.streams)
        write_findings(self.folder, found, described, by="study")
        trained = trained_of(pair, text, dictionary, self.cfg.budget.evaluation_tokens, self.folder)
        findings = evaluate(self.evaluations, trained, described)
        for logger in self.loggers:
            values = {name: f["value"] for name, f in findings.items() if f["value"] is not None}
            logger.log_metrics(values, step=self.steps or 0)
            logger.finalize("success")
        say_headline(self.folder, findings)
        for left in self.folder.rglob("*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        self.value = findings.get(self.cfg.optimized_metric, {}).get("value")
        folders.say(self.folder, state=FINISHED, value=self.value)

    @contextlib.contextmanager
    def on_its_own(self) -> Iterator[None]:
        """What goes wrong inside is this run's: recorded in its folder, and the others go on."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.error = error
        trace = "".join(traceback.format_exception(error))
        with open(self.folder / "run.log", "a", encoding="utf-8") as file:
            file.write(trace)
        first = folders.read_json(self.folder / "state.json").get("state") != FAILED
        if first:  # of several processes that fail together, it knows why
            folders.say(self.folder, state=FAILED, error=str(error) or type(error).__name__)
        for logger in self.loggers:
            logger.finalize("failed")


# -- its parts -------------------------------------------------------------------------------------------------------


def open_logger(logger: Any, cfg: DictConfig, history: Sequence[Mapping[str, float | None]]) -> None:
    """It learns all settings; one that starts from nothing is told what happened before a resumption."""
    logger.log_hyperparams(material(cfg))
    for record in history if getattr(logger, "starts_anew", False) else ():
        values = {name: value for name, value in record.items() if name != "step" and value is not None}
        logger.log_metrics(values, step=record["step"])


def curves_of(history: Sequence[Mapping[str, float | None]]) -> dict[str, list]:
    """Columns of the table `training`: what the last record has, of every record."""
    return {key: [record.get(key) for record in history] for key in history[-1]}


def learns(cfg: DictConfig) -> bool:
    """Whether a study trains a dictionary; without one it measures the pair alone. Raises Refused for half of either."""
    given = [part for part in LEARNING if part in cfg]
    if given and len(given) < len(LEARNING):
        missing = [part for part in LEARNING if part not in cfg]
        raise Refused(
            f"The study has {', '.join(given)}, but no {', '.join(missing)}: a dictionary is trained with all of "
            f"{', '.join(LEARNING)}. Choose an option of each, or leave the experiment out that takes them away."
        )
    return bool(given)


def evaluations_of(nodes: DictConfig | None, *, learns: bool, inside: bool = False) -> dict[str, Any]:
    """The evaluations of a config. Raises Refused for one that asks about a dictionary where there is none, or about another
    kind: one that stands `inside` the models reconstructs nothing, and the others replace nothing."""
    built = {name: build(node) for name, node in (nodes or {}).items()}
    for name, evaluation in built.items():
        if not learns and getattr(evaluation, "needs_dictionary", True):
            raise Refused(
                f"evaluation={name} needs a dictionary, and this study trains none: leave it out, as in "
                "evaluation=[layer_divergence,tokenizers], or leave out the experiment that takes the dictionary away."
            )
        if inside and getattr(evaluation, "needs_reconstruction", False):
            raise Refused(
                f"evaluation={name} measures what a dictionary reconstructs, and a transcoder adapter reconstructs nothing: "
                "choose evaluation=replacement."
            )
        if learns and not inside and getattr(evaluation, "needs_adapter", False):
            raise Refused(f"evaluation={name} asks about a transcoder adapter: choose dictionary=transcoder_adapter.")
        if isinstance(latents := getattr(evaluation, "latents", None), str):
            checked(latents)  # before hours of training, not after them
    return built


def streams_of(cfg: DictConfig, pair: ModelPair) -> list[Stream]:
    """What the dictionary of a config reads of a pair; without one, all layers of both models."""
    if not learns(cfg):
        each = (pair.streams("resid_post", list(range(pair.depth(role))), reads=role) for role in ROLES)
        return [stream for streams in each for stream in streams]
    hookpoint, reads = cfg.dictionary.hookpoint, cfg.dictionary.reads
    return pair.streams(hookpoint.name, plain(cfg.layer), reads=reads, equal_widths=hookpoint.equal_widths)


def check_reads(cfg: DictConfig) -> None:
    """Raises Refused for a dictionary that would read what is not there before an adapter was trained."""
    reads = cfg.dictionary.reads
    if (reads == ADAPTER) is not inside(cfg) or reads == HYBRID:
        raise Refused(
            f"dictionary.reads={reads}: hybrid and adapter stand beside a pair once an adapter was trained, and a dictionary "
            "reads base, tuned, both or difference; dictionary=transcoder_adapter reads adapter."
        )


def build_dictionary(node: DictConfig, streams: list[Stream]) -> Crosscoder | TranscoderAdapter:
    """The dictionary of a config, over these streams; the settings that the study reads stand beside its own."""
    settings = {key: node[key] for key in node if key not in READ_BY_STUDY["dictionary"]}
    return build(settings)(streams)


def begin_at(dictionary: TranscoderAdapter, files: TranscoderFiles, weights: bool) -> None:
    """The weights of another adapter in place of its own start. Raises Refused for one of another shape."""
    here = (len(dictionary.layers), dictionary.latents_per_layer, dictionary.layers[0].b_dec is not None)
    there = (len(files.streams), files.latents, files.decoder_bias)
    if here != there:
        raise Refused(
            f"dictionary.start={files.place} has {there[0]} layers of {there[1]:,} latents, decoder_bias={there[2]}; the study "
            f"asks for {here[0]} of {here[1]:,}, decoder_bias={here[2]}: set dictionary.latents={there[1]} "
            f"dictionary.decoder_bias={str(there[2]).lower()}."
        )
    if weights:
        known = files.read().state_dict()
        dictionary.load_state_dict({name: known.get(name, own) for name, own in dictionary.state_dict().items()})


def inside(cfg: DictConfig) -> bool:
    """Whether a study trains a dictionary that stands inside the models and changes them; the others learn from the same
    activations side by side. Raises Refused where dictionary and activations do not agree on that."""
    if not learns(cfg):
        return False
    stands = cfg.dictionary._target_.rpartition(".")[2] == TranscoderAdapter.__name__
    sequences = isinstance(build(cfg.activations), Sequences)
    if stands and not sequences:
        raise Refused(
            "A transcoder adapter learns inside the models: leave activations and optimizer out, or choose "
            "activations=sequences and optimizer=adam_cosine."
        )
    if sequences and not stands:
        raise Refused(
            f"activations=sequences is for dictionary=transcoder_adapter; {cfg.dictionary._target_} learns from shuffled "
            "activations: choose activations=live or stored."
        )
    return stands


def trained_of(
    pair: ModelPair, text: Text, dictionary: Crosscoder | TranscoderAdapter | None, tokens: int, folder: Path
) -> Trained:
    """What evaluations are given; beside the loaded pair stands what an adapter makes of it."""
    if isinstance(dictionary, TranscoderAdapter):
        pair.stand_beside(dictionary)
    return Trained(pair, text, dictionary, tokens, folder=folder)


def about(cfg: DictConfig, pair: ModelPair, streams: list[Stream]) -> dict[str, Any]:
    """What the page and the tables say of a study; of a dictionary only where there is one."""
    study = {"model_pair": pair_name(pair), **{role: pair.sources[role].described for role in ROLES}}
    if learns(cfg):
        study |= {
            "dictionary": dictionary_name(cfg),
            "layer": "all"
            if cfg.dictionary.hookpoint.name == LORA
            else spelled(sorted({stream.layer for stream in streams})),
            "streams": ", ".join(map(str, streams)),
            "hookpoint": cfg.dictionary.hookpoint.name,
            "latents": latents_of(cfg.dictionary.latents, streams)
            * (len(streams) if cfg.dictionary.reads == ADAPTER else 1),
            "tokens": cfg.budget.tokens,
            "seed": cfg.seed,
        }
    return {"identity": identity(cfg), "study": {**study, "version": tunediff.__version__}}


def spelled(layers: Sequence[int]) -> str:
    """1,3 as they are; four or more in a row as 0-27."""
    if len(layers) > 3 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def pair_name(pair: ModelPair) -> str:
    return " vs ".join(pair.sources[role].name for role in ("tuned", "base"))


def dictionary_name(cfg: DictConfig) -> str:
    kind = cfg.dictionary.sparsity._target_.rpartition(".")[2]
    if cfg.dictionary.reads == ADAPTER:
        return f"{kind} transcoder adapter"
    return f"{kind} crosscoder" if cfg.dictionary.reads == "both" else f"{kind} SAE on {cfg.dictionary.reads}"


def evaluate(evaluations: Mapping[str, Any], trained: Trained, described: Mapping[str, Any]) -> dict[str, dict]:
    """All findings of the run's folder. Those of an evaluation are written before the next begins: one that fails takes
    no other's with it."""
    findings = write_findings(trained.folder, (), described)
    for name, evaluation in evaluations.items():
        log.info("evaluating %s", name)
        found = list(evaluation.run(trained))
        for note in (item.text for item in found if isinstance(item, Note)):
            log.info("%s", note if note.startswith(name) else f"{name}: {note}")
        # two of one class may stand under names of their own
        findings = write_findings(trained.folder, found, described, by=getattr(evaluation, "name", name))
    return findings


def write_config(cfg: DictConfig, folder: Path) -> None:
    """config.yaml: resolved, so that it runs again as it stands. The logger keeps its references to the run's folder."""
    kept = {key: cfg[key] if key == "logger" else plain(cfg[key]) for key in cfg if key != "hydra"}
    text = OmegaConf.to_yaml(OmegaConf.create({**kept, "hydra": HYDRA}))
    write_atomically(folder / "config.yaml", text)
    stands_for = {"identity": identity(cfg), "settings": material(cfg)}
    write_atomically(folder / "identity.json", json.dumps(stands_for, indent=1))


def read_config(folder: Path) -> DictConfig:
    """The config of a run, checked as one that was typed. Raises Refused for a fine-tune, which is no study."""
    cfg = OmegaConf.load(folder / "config.yaml")
    if "recipe" in cfg:
        raise Refused(
            f"{folder} is a fine-tune, not a study: python train.py model_pair={folder / 'pair.yaml'} makes one."
        )
    del cfg["hydra"]
    with within(folder):
        check(cfg, STUDY)
    return cfg


# where a run that is started from its own config.yaml goes
HYDRA = {"run": {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}-${identity:}"}, "job": {"chdir": False}}


def say_headline(folder: Path, findings: Mapping[str, dict]) -> None:
    """The page, and the last line of the run."""
    page = write_report(folder)
    log.info("%s", line_of(findings))
    log.info("page: %s", page)
