"""The findings of a fine-tune: evaluations that need the pair alone, asked of the model it began from and of what it became.

They are checked before anything is learned, and asked once pair.yaml is written, by the first process once the others have
ended. A fine-tune that was interrupted in between goes on with them and learns nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tunediff import folders
from tunediff.evaluations import Evaluation, LoraAblation, Needs, PolarityExamples, UnitComparison, declared
from tunediff.models import ModelPair, ModelSource
from tunediff.settings import build, identity, plain
from tunediff.shapes import BASE, Note, Refused
from tunediff.study.described import about
from tunediff.study.parts import check_evaluations, evaluations_of, given_of
from tunediff.study.run import evaluate, judge_claims, say_headline
from tunediff.text import Text
from tunediff.training import Lora, Recipe
from tunediff.training.progress import tell
from tunediff.trusted import check_file

OF_ADAPTERS = (LoraAblation, PolarityExamples, UnitComparison)


def evaluations_after(cfg: DictConfig, recipe: Recipe) -> dict[str, Evaluation]:
    """The evaluations that a fine-tune ends with. Raises Refused for one that needs a dictionary, or an adapter where none is
    learned."""
    for name, node in (cfg.get("evaluation") or {}).items():
        made = build(node) if isinstance(node, DictConfig) and "_target_" in node else None
        if made is not None and declared(made, "needs") is not Needs.PAIR:
            raise Refused(
                f"evaluation={name} needs a dictionary, and a fine-tune trains none: leave it out here, and ask it of a study of "
                "what is made, python train.py model_pair=<run folder>/pair.yaml."
            )
        if isinstance(made, OF_ADAPTERS) and not isinstance(recipe.part, Lora):
            raise Refused(
                f"evaluation={name} reads the adapter of a LoRA, and this recipe learns all weights: leave it out, or choose "
                "recipe=lora."
            )
    return evaluations_of(cfg.get("evaluation"), learns=False)


def check_before(evaluations: Mapping[str, Evaluation], source: ModelSource, text: Text, tokens: int) -> None:
    """Raises Refused for an evaluation that the pair to come, or its text, cannot answer: the model stands for both, but where
    an adapter is read that is not there yet."""
    known = {name: one for name, one in evaluations.items() if not isinstance(one, OF_ADAPTERS)}
    if known:
        pair = ModelPair(source, source)
        pair.knows(text.manner.layout)
        check_evaluations(known, pair, text, tokens=tokens)


def is_trained(cfg: DictConfig, folder: Path) -> bool:
    """True where this very fine-tune has left its pair in the folder, so that only its evaluations are missing."""
    if folders.read_json(folder / "identity.json").get("identity") != identity(cfg):
        return False
    return (folder / "pair.yaml").exists() and "pair.yaml" in folders.entries(folder)


def pair_left(cfg: DictConfig, folder: Path, trust: Sequence[str]) -> tuple[ModelPair, Text]:
    """The pair that a fine-tune left, without weights, and the text that it learned. Raises Refused where there is none yet, and
    for a file that says more than a pair does."""
    if not (folder / "pair.yaml").exists():
        raise Refused(f"{folder} is a fine-tune that has left no pair.yaml: type its line again, and it goes on.")
    content = check_file(folder / "pair.yaml", group="model_pair", trust=trust)
    pair, text = build(OmegaConf.create(content)), build(cfg.text)
    pair.knows(text.manner.layout)
    return pair, text


def described_as(cfg: DictConfig, pair: ModelPair, tokens: int) -> dict[str, Any]:
    """The entries of a fine-tune on the page and in tables."""
    described = about(cfg, pair, [], evaluation_tokens=tokens)
    name, part = pair.sources[BASE].name, str(cfg.recipe.part["_target_"]).rpartition(".")[2]
    described["study"] |= {"model_pair": f"{name}, fine-tuned vs {name}", "recipe": part, "seed": cfg.seed}
    if (edit := cfg.recipe.get("edit")) is not None:
        told = {
            key: value
            for key, value in plain(edit).items()
            if not key.startswith("_") and not isinstance(value, dict | list)
        }
        kind = str(edit["_target_"]).rpartition(".")[2]
        described["study"]["edit"] = (
            f"{kind}: {', '.join(f'{key} {value}' for key, value in told.items() if value is not None)}"
        )
    if trait := OmegaConf.select(cfg, "text.rows.trait"):
        described["study"]["trait"] = trait
    return described


def ask(
    cfg: DictConfig,
    folder: Path,
    evaluations: Mapping[str, Evaluation],
    device: torch.device,
    *,
    loggers: Sequence[Any] = (),
    step: int = 0,
) -> None:
    """Asks the evaluations of the pair in the folder: findings.json, figures.json, tables/ and report.html."""
    folders.say(folder, state=folders.EVALUATING, error=None)
    pair, text = pair_left(cfg, folder, plain(cfg.trust))
    check_evaluations(
        {name: one for name, one in evaluations.items() if isinstance(one, OF_ADAPTERS)},
        pair,
        text,
        tokens=cfg.evaluation_tokens,
    )
    described = described_as(cfg, pair, cfg.evaluation_tokens)
    notes = [Note(said) for source in pair.sources.values() for said in source.remarks()]
    folders.write_findings(folder, notes, described, by="fine-tune")
    pair.load(device)
    given = given_of(pair, text, None, cfg.evaluation_tokens, folder, logits_mb=cfg.logits_mb)
    findings = judge_claims(folder, folder, described, evaluate(evaluations, given, folder, described))
    tell(loggers, {name: f["value"] for name, f in findings.items() if f["value"] is not None}, step)
    folders.remove_partial(folder)
    say_headline(folder, findings)
