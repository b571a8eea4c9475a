"""The stories: study, reevaluate, compare. Each reads as what happens, in order.

The only file that sees the composed config; everything below it takes plain values and objects.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import safetensors.torch
from omegaconf import DictConfig, OmegaConf

import tunediff
from tunediff.activations import ShuffledRows, take
from tunediff.dictionary import Crosscoder
from tunediff.evaluations import Trained
from tunediff.models import ModelPair
from tunediff.report import write_report
from tunediff.settings import build, check, digest, identity, material, run_folder
from tunediff.shapes import Finding, Note, Refused, Rows, Stream, Table
from tunediff.text import Text
from tunediff.training import DictionaryTraining, Member, TokenProgress

log = logging.getLogger(__name__)

STUDY = "budget model_pair text dictionary l1_schedule optimizer activations evaluation trainer logger layer seed trust".split()
REEVALUATION = "evaluation trainer run tokens trust".split()
HEADLINE = {
    "fidelity/explained_variance/base": "explained variance base",
    "fidelity/explained_variance/tuned": "tuned",
    "fidelity/ce_recovered/base": "CE recovered base",
    "fidelity/ce_recovered/tuned": "tuned",
    "fidelity/l0/mean": "L0",
    "fidelity/dead_fraction": "dead",
    "geometry/count/base_only": "base-only",
    "geometry/count/shared": "shared",
    "geometry/count/tuned_only": "tuned-only",
}


def study(cfg: DictConfig) -> float | None:
    """Trains one dictionary on one pair, measures it and writes the page; returns pooled explained variance."""
    check(cfg, STUDY)
    folder = run_folder()
    clear(folder)
    write_config(cfg, folder)

    # everything that can be wrong is asked before weights are loaded
    text: Text = build(cfg.text)
    pair: ModelPair = build(cfg.model_pair)
    streams = pair.streams(
        cfg.dictionary.hookpoint.name, plain(cfg.layer), equal_widths=cfg.dictionary.hookpoint.equal_widths
    )
    notes = pair.check_tokens(text.samples())
    dictionary = build_dictionary(cfg.dictionary, streams)
    steps = cfg.budget.tokens // cfg.optimizer.batch
    if steps < 1:
        raise Refused(
            f"budget.tokens={cfg.budget.tokens} is less than one batch of optimizer.batch={cfg.optimizer.batch}."
        )
    member = Member(
        name=identity(cfg),
        dictionary=dictionary,
        objective=build(cfg.dictionary.objective),
        l1_schedule=build(cfg.l1_schedule),
        learning_rate_schedule=build(cfg.optimizer.learning_rate_schedule),
        learning_rate=cfg.optimizer.learning_rate,
        betas=tuple(cfg.optimizer.betas),
        clip_norm=cfg.optimizer.clip_norm,
        loggers=[build(node) for node in (cfg.logger or {}).values()],
    )
    evaluations = {name: build(node) for name, node in (cfg.evaluation or {}).items()}
    trainer = build(
        cfg.trainer,
        max_epochs=1,
        callbacks=[TokenProgress(steps * cfg.optimizer.batch)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )

    # both models run; the dictionary learns from what they read
    device = trainer.strategy.root_device
    pair.load(device)
    log.info("%s on %s, reading %s", cfg.dictionary._target_.rpartition(".")[2], device, ", ".join(map(str, streams)))
    activations = build(cfg.activations)

    def source():
        needs_moments = dictionary.normalisation.needs_moments
        return activations.source(
            pair,
            text,
            streams,
            tokens=cfg.budget.tokens + activations.fit_tokens,
            moments=needs_moments,
            key=stream_key(cfg),
        )

    sample = take(source(), activations.fit_tokens)
    dictionary.fit(Rows(*(None if part is None else part.cpu() for part in sample)))
    stream = ShuffledRows(
        source(),
        batch=cfg.optimizer.batch,
        capacity=activations.buffer,
        steps=steps,
        seed=text.seed,
        admits=dictionary.to(device).normalisation.admits,
    )
    trainer.fit(DictionaryTraining([member], steps=steps), train_dataloaders=stream)
    dictionary.to(device).eval().requires_grad_(False)
    dictionary.save(folder / "dictionary", plain(cfg.dictionary))
    if stream.dropped:
        notes.append(f"{stream.dropped:,} of {stream.seen:,} tokens were left out as attention sinks.")

    # what was found
    trained = Trained(pair, text, dictionary, cfg.budget.evaluation_tokens)
    curves = {key: [record.get(key) for record in member.history] for key in member.history[-1]}
    found = [Table("training", curves), *(Note(sentence) for sentence in notes), *evaluate(evaluations, trained)]
    findings = write_findings(folder, found, about(cfg, pair, streams))
    for logger in member.loggers:
        logger.log_hyperparams(material(cfg))
        logger.log_metrics({name: f["value"] for name, f in findings.items() if f["value"] is not None}, step=steps)
        logger.finalize("success")
    finish(folder, findings)
    return findings.get("fidelity/explained_variance/pooled", {}).get("value")


def reevaluate(cfg: DictConfig) -> None:
    """Runs evaluations on the dictionary of a finished run; new findings join or replace the old ones."""
    check(cfg, REEVALUATION)
    folder = Path(cfg.run)
    if not (folder / "dictionary" / "weights.safetensors").exists():
        raise Refused(f"run={folder} is no finished run: it has no dictionary/weights.safetensors.")
    old = OmegaConf.load(folder / "config.yaml")
    evaluations = {name: build(node) for name, node in (cfg.evaluation or {}).items()}
    check(old, STUDY)
    text, pair = build(old.text), build(old.model_pair)
    hookpoint = old.dictionary.hookpoint
    streams = pair.streams(hookpoint.name, plain(old.layer), equal_widths=hookpoint.equal_widths)
    dictionary = build_dictionary(old.dictionary, streams)
    dictionary.load_state_dict(safetensors.torch.load_file(folder / "dictionary" / "weights.safetensors"))
    device = build(cfg.trainer, logger=False, default_root_dir=folder).strategy.root_device
    pair.load(device)
    dictionary.to(device).eval().requires_grad_(False)
    trained = Trained(pair, text, dictionary, cfg.tokens or old.budget.evaluation_tokens)
    findings = write_findings(folder, evaluate(evaluations, trained), about(old, pair, streams))
    finish(folder, findings)


def compare(folders: Iterable[str]) -> str:
    """Headline findings of runs and sweeps, one line a run."""
    runs = sorted({path.parent for folder in folders for path in Path(folder).rglob("findings.json")})
    if not runs:
        raise Refused(
            f"No run with findings.json under {', '.join(map(str, folders)) or 'nothing: name run or sweep folders'}."
        )
    table = [["pair", "dictionary", "layer", "seed", *HEADLINE.values(), "run"]]
    for run in runs:
        read = json.loads((run / "findings.json").read_text())
        values = {finding["name"]: finding["value"] for finding in read["findings"]}
        row = [str(read["study"][key]) for key in ("model_pair", "dictionary", "layer", "seed")]
        row += ["-" if values.get(name) is None else f"{values[name]:.4g}" for name in HEADLINE]
        table.append([*row, str(run)])
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


# -- parts of the stories --------------------------------------------------------------------------------------------


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build_dictionary(node: DictConfig, streams: list[Stream]) -> Crosscoder:
    """The dictionary of a config, over these streams. `hookpoint` and `objective` stand beside its settings."""
    settings = {key: node[key] for key in node if key not in ("hookpoint", "objective")}
    return build(settings)(streams)


def stream_key(cfg: DictConfig) -> str:
    """Stands for all that decides which rows are stored, and in what order."""
    settings = material(cfg)
    parts = {key: settings[key] for key in ("model_pair", "text", "layer")}
    return digest({**parts, "hookpoint": settings["dictionary"]["hookpoint"], "tokens": settings["budget"]["tokens"]})


def about(cfg: DictConfig, pair: ModelPair, streams: list[Stream]) -> dict[str, Any]:
    """What the page and the tables say of a study."""
    return {
        "identity": identity(cfg),
        "study": {
            "model_pair": pair_name(pair),
            "base": pair.sources["base"].path,
            "tuned": pair.sources["tuned"].path,
            "dictionary": dictionary_name(cfg),
            "layer": plain(cfg.layer),
            "streams": ", ".join(map(str, streams)),
            "hookpoint": cfg.dictionary.hookpoint.name,
            "latents": cfg.dictionary.latents,
            "tokens": cfg.budget.tokens,
            "seed": cfg.seed,
            "version": tunediff.__version__,
        },
    }


def pair_name(pair: ModelPair) -> str:
    return " vs ".join(Path(pair.sources[role].path).name for role in ("tuned", "base"))


def dictionary_name(cfg: DictConfig) -> str:
    return f"{cfg.dictionary.sparsity._target_.rpartition('.')[2]} {cfg.dictionary._target_.rpartition('.')[2].lower()}"


def evaluate(evaluations: Mapping[str, Any], trained: Trained) -> Iterable[Finding | Table | Note]:
    for name, evaluation in evaluations.items():
        log.info("evaluating %s", name)
        yield from evaluation.run(trained)


def clear(folder: Path) -> None:
    """Takes away what an earlier study left in a folder that is used again: its findings are not this one's."""
    for left in (folder / "findings.json", folder / "report.html", *(folder / "tables").glob("*.parquet")):
        left.unlink(missing_ok=True)


def write_config(cfg: DictConfig, folder: Path) -> None:
    """config.yaml: resolved, so that it runs again as it stands. The logger keeps its references to the run's folder."""
    kept = {key: cfg[key] if key == "logger" else plain(cfg[key]) for key in cfg}
    text = OmegaConf.to_yaml(OmegaConf.create({**kept, "hydra": HYDRA}))
    write_atomically(folder / "config.yaml", text)
    write_atomically(
        folder / "identity.json", json.dumps({"identity": identity(cfg), "settings": material(cfg)}, indent=1)
    )


# where a run that is started from its own config.yaml goes
HYDRA = {"run": {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}-${identity:}"}, "job": {"chdir": False}}


def write_findings(
    folder: Path, found: Iterable[Finding | Table | Note], described: Mapping[str, Any]
) -> dict[str, dict]:
    """findings.json and tables/*.parquet. Tables of one name share their rows and join their columns; findings, notes
    and tables of an earlier call stay unless named again."""
    path = folder / "findings.json"
    old = json.loads(path.read_text()) if path.exists() else {"findings": [], "notes": []}
    findings = {finding["name"]: finding for finding in old["findings"]}
    notes = dict.fromkeys(old["notes"])
    tables: dict[str, dict[str, list]] = {}
    for item in found:
        if isinstance(item, Finding):
            findings[item.name] = item._asdict()
        elif isinstance(item, Table):
            tables[item.name] = {**tables.get(item.name, {}), **item.columns}
        else:
            notes[item.text] = None
    for name, columns in tables.items():
        place = folder / "tables" / f"{name}.parquet"
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            before = pyarrow.parquet.read_table(place).to_pydict()
            if len(next(iter(before.values()))) == len(next(iter(columns.values()))):
                columns = {**before, **columns}
        pyarrow.parquet.write_table(pyarrow.table(columns), place.with_suffix(".partial"))
        os.replace(place.with_suffix(".partial"), place)
    content = {**described, "findings": list(findings.values()), "notes": list(notes)}
    write_atomically(path, json.dumps(content, indent=1))
    return findings


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def finish(folder: Path, findings: Mapping[str, dict]) -> None:
    """The page, and the last line of the run."""
    page = write_report(folder)
    parts = [
        f"{title} {findings[name]['value']:.4g}"
        for name, title in HEADLINE.items()
        if findings.get(name, {}).get("value") is not None
    ]
    log.info("%s", ", ".join(parts))
    log.info("page: %s", page)
