"""Files beside the weights of a fine-tune: the model card, and the pair as an option of model_pair."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunediff.models import ModelSource, option
from tunediff.shapes import VERSION
from tunediff.text import Examples
from tunediff.training import Lora, Recipe

Record = Mapping[str, float | None]  # one line of the curves


def pair_of(source: ModelSource, made: Path, *, adapter: bool) -> str:
    """The option of model_pair with the model as base and its fine-tune as tuned."""
    if adapter:
        tuned = replace(source, adapter=str(made.resolve()), merged=False)
    else:  # what was merged into the base is in its weights already
        tuned = ModelSource(path=str(made.resolve()), dtype=source.dtype)
    says = "for the model that was fine-tuned here, beside the model it began from."
    return option(says, source, tuned, tokenizer="base", align="strict")


def losses(history: Sequence[Record]) -> dict[str, float]:
    """The training loss over the last twentieth of the steps, and the held-out loss before and after."""
    taken = [record["loss"] for record in history if record["loss"] is not None]
    held_out = [record["held_out_loss"] for record in history if record["held_out_loss"] is not None]
    last = taken[-max(1, len(taken) // 20) :]
    found = {"training": sum(last) / len(last)}
    return found | ({"held out, before": held_out[0], "held out": held_out[-1]} if held_out else {})


def line_of(history: Sequence[Record]) -> str:
    return "nats a learned token: " + ", ".join(f"{name} {value:.4f}" for name, value in losses(history).items())


CARD = """---
base_model: {base}
library_name: {library}
---
# {title}

Made by `finetune.py` of tunediff {version} from `{base}`{revision}: {part}.

| loss, nats a learned token | |
|---|---|
{losses}

Learned: {report} (SHA-256 of their ids and of what of them is learned: `{digest}`). {steps:,} steps of {batch} sequences.
The training loss is the mean over the last twentieth of the steps.

The settings in full, of which `{identity}` is the identity:

```json
{settings}
```
"""


def card(
    source: ModelSource,
    recipe: Recipe,
    learned: Examples,
    history: Sequence[Record],
    *,
    settings: Mapping[str, Any],
    identity: str,
) -> str:
    """README.md of the model: recipe, data, losses, and all settings with their identity."""
    adapter = isinstance(recipe.part, Lora)
    return CARD.format(
        base=source.path,
        library="peft" if adapter else "transformers",
        title=f"{Path(source.path).name}, {'with an adapter' if adapter else 'fine-tuned'}",
        version=VERSION,
        revision=f" at {at}" if (at := source.commit or source.revision) else "",
        part=str(recipe.part),
        losses="\n".join(f"| {name} | {value:.4f} |" for name, value in losses(history).items()),
        report=learned.report(),
        digest=learned.digest,
        steps=1 + max(record["step"] or 0 for record in history if record["loss"] is not None),
        batch=recipe.batch,
        identity=identity,
        settings=json.dumps(settings, indent=1),
    )
