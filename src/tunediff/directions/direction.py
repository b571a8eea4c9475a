"""A direction: a vector of the residual stream, or of another hookpoint, at one layer or several, and where it comes from.

The file is safetensors with a tensor for each layer, and its provenance as JSON in the header: who reads the one has the
other. Vectors are in the model's own units, as long as their source made them; `units` are of length 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tunediff.folders import put
from tunediff.hookpoints import HOOKPOINTS
from tunediff.models import ModelPair
from tunediff.shapes import Refused, Stream
from tunediff.text import Text

FORMAT = "tunediff direction 1"
LAYER = re.compile(r"0|[1-9]\d{0,4}")


class Place(Protocol):
    """The pair and the text that a source looks at; an evaluation's Given is one."""

    @property
    def pair(self) -> ModelPair: ...
    @property
    def text(self) -> Text: ...


@dataclass(frozen=True, eq=False)
class Direction:
    """vectors      layer -> [width], float32
    hookpoint    where they are read and written
    provenance   how they were found: plain values"""

    vectors: Mapping[int, Tensor]
    hookpoint: str
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        for layer, vector in self.vectors.items():
            if vector.ndim != 1 or not torch.isfinite(vector).all():
                raise Refused(
                    f"The direction at layer {layer} is no vector of finite numbers: {_named(self.provenance)}."
                )
            if not torch.isfinite(vector.float().norm()):
                raise Refused(
                    f"The direction at layer {layer} is longer than numbers of 32 bits can say: {_named(self.provenance)}."
                )
            if not vector.double().norm() > 0:
                raise Refused(
                    f"The direction at layer {layer} is zero: {_named(self.provenance)} finds no difference there."
                )

    @property
    def layers(self) -> list[int]:
        """Layers at which there is a vector, in order."""
        return sorted(self.vectors)

    def at(self, layer: int) -> Tensor:
        """The vector [width] of a layer. Raises Refused for a layer that has none."""
        if layer not in self.vectors:
            raise Refused(f"{_named(self.provenance)} has no vector at layer {layer}: its layers are {self.layers}.")
        return self.vectors[layer]

    @property
    def units(self) -> Direction:
        """The same directions of length 1."""
        scaled = {layer: vector / vector.norm() for layer, vector in self.vectors.items()}
        return replace(self, vectors=scaled, provenance={**self.provenance, "length": 1.0})

    def increments(self) -> Direction:
        """v_l - v_(l-1) for each layer, and v_l for the first: added at all of its layers, they move layer l by v_l in all
        (persona vectors, arXiv 2507.21509, steering at all layers)."""
        layers = self.layers
        found = {
            layer: self.at(layer) - (self.at(before) if before is not None else 0.0)
            for before, layer in zip([None, *layers], layers, strict=False)
        }
        return replace(self, vectors=found, provenance={**self.provenance, "increments": True})

    def check(self, pair: ModelPair, role: str) -> None:
        """Raises Refused where a vector is of another width than the model has at its place."""
        for layer, vector in self.vectors.items():
            width = pair.width(role, self.hookpoint)
            if not 0 <= layer < pair.depth(role) or len(vector) != width:
                raise Refused(
                    f"{_named(self.provenance)} has a vector of {len(vector)} numbers at {self.hookpoint} of layer {layer}, and "
                    f"{pair.source(role).path} has {pair.depth(role)} layers with {width} there."
                )

    def stream(self, role: str, layer: int) -> Stream:
        """The place of a layer's vector in a model."""
        return Stream(role, self.hookpoint, layer, len(self.at(layer)))

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        tensors = {str(layer): vector.float().contiguous().cpu() for layer, vector in self.vectors.items()}
        said = {
            "format": FORMAT,
            "hookpoint": self.hookpoint,
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with put(path) as partial:
            safetensors.torch.save_file(tensors, partial, metadata=said)


def read_direction(path: Path) -> Direction:
    """The direction of a file. Raises Refused for one that is not there, or is no such file."""
    if not path.is_file():
        raise Refused(
            f"{path}: there is no such file. A direction is a .safetensors file that evaluation=directions leaves."
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            said, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if said.get("format") != FORMAT or not tensors:
            raise ValueError("it does not say that it is one")
        provenance, hookpoint = json.loads(said["provenance"]), said["hookpoint"]
        if not isinstance(provenance, dict) or hookpoint not in HOOKPOINTS:
            raise ValueError(f"its provenance is no object, or its hookpoint {hookpoint!r:.60} is unknown")
        if odd := [name for name, one in tensors.items() if not LAYER.fullmatch(name) or not one.is_floating_point()]:
            raise ValueError(f"{odd[0]!r:.60} is no layer with a vector of floating-point numbers")
        vectors = {int(name): one.float() for name, one in tensors.items()}
    except (
        safetensors.SafetensorError,
        ValueError,
        LookupError,
        RecursionError,
        OSError,
        NotImplementedError,
    ) as error:
        raise Refused(f"{path} is no file of a direction: {error}.") from error
    return Direction(vectors, hookpoint, provenance)


class Source(Protocol):
    """A way to find a direction.

    needs_pair   whether it looks at both models, or at a dictionary: then it has no meaning for a model alone"""

    needs_pair: bool = False

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        """The direction in the model of this role, at these layers. Raises Refused where there is none."""
        ...


def check_layers(pair: ModelPair, role: str, layers: Sequence[int]) -> None:
    """Raises Refused for no layer at all, and for one that the model has not."""
    outside = [layer for layer in layers if not 0 <= layer < pair.depth(role)]
    if outside or not layers:
        raise Refused(
            f"layers {list(layers)}: the {role} model has layers 0 to {pair.depth(role) - 1}; give some of them."
        )


def _named(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("source", "a direction"))
