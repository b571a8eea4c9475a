"""Two models -> the option of model_pair that names them, as a run or a fine-tune leaves it in pair.yaml."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tunediff.models.adapted_source import AdaptedSource
from tunediff.models.pair import ModelPair
from tunediff.models.source import ModelSource
from tunediff.shapes import BASE, HYBRID, TUNED

PLACES = ("path", "adapter", "transcoders")
ALWAYS = ("path", "dtype")


def option(says: str, base: ModelSource, tuned: ModelSource, **settings: Any) -> str:
    """The text of the file; `says` is when to choose it."""
    pair = {"_target_": "tunediff.models.ModelPair", "base": node_of(base), "tuned": node_of(tuned), **settings}
    return f"# Choose it {says}\n" + yaml.safe_dump(pair, sort_keys=False)


def pair_of_adapter(pair: ModelPair, folder: Path) -> str:
    """The option of model_pair that names the tuned model of a run beside what the transcoder adapters of the run in
    `folder` make of it: what is left between the two is what the adapters do not account for."""
    tuned, base = pair.sources[TUNED], pair.sources[BASE]
    backbone = {field.name: getattr(tuned, field.name) for field in fields(ModelSource)}
    made = AdaptedSource(
        **backbone, mlps=base if pair.adapter_on == HYBRID else tuned, transcoders=str(folder.resolve() / "dictionary")
    )
    says = "for the tuned model of this run beside the base's MLPs in it with the transcoder adapters trained here."
    return option(says, tuned, made, tokenizer=BASE, align="strict", hesitations=list(pair.hesitations))


def node_of(source: ModelSource) -> dict[str, Any]:
    """The source as it stands in a config; local folders by their whole names, what is on the Hub by the commit that it
    was read at."""
    node: dict[str, Any] = {"_target_": f"tunediff.models.{type(source).__name__}"}
    for field in fields(source):
        value = getattr(source, field.name)
        if isinstance(value, ModelSource):
            node[field.name] = node_of(value)
        elif field.name == "revision":
            node[field.name] = source.commit or value
        elif field.name in ALWAYS or value != field.default:
            node[field.name] = placed(value) if field.name in PLACES else value
    return node


def placed(path: str) -> str:
    """A local folder by its whole name; a Hub id or shipped weights as they are."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path
