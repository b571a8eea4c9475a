"""A model that learns while something is done to it at a direction, and is left alone in every other pass.

    Added           h_l + alpha v_l in every training pass: preventative steering (arXiv 2507.21509, section 5; arXiv 2604.16423)
    GradientAlong   another component of the gradient along v_l; the forward pass is the plain one to the bit (arXiv 2604.16423)
    Watched         nothing: the gradient is only measured along v_l

Hooks are there from the first forward pass of a step to its last backward pass, since a checkpointed layer is computed again
in between; no held-out loss sees them, and nothing of them is saved. The gradient's component along v is measured twice:
behind the edit, where it arrives from the loss, and before it, at the module's own output, where it goes on to the weights.
To add a vector does not change a gradient on its way back, so that with Added the two are equal; it changes where the model
is, and so the gradient itself. A gradient of activations is not yet an update of weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tunediff import randomness
from tunediff.directions import Direction, Source
from tunediff.edits.gradients import OPERATIONS, edited, passing
from tunediff.hookpoints import Point, decoder_layers, writing
from tunediff.measures.gradients import component
from tunediff.models import PreTrainedModel
from tunediff.shapes import Refused
from tunediff.text import MicroBatch, Step
from tunediff.text.examples import IGNORED

HOOKPOINT = "resid_post"
POSITIONS = ("everywhere", "prompt", "response")
Layers = int | float | str | Sequence[int | float]


class Tokens(NamedTuple):
    """Tokens of a micro-batch by document, [sequence, position] bool.

    response   from the first learned token of a document on
    reached    up to the last token of a document from which another one is learned: no gradient reaches those behind it,
               such as padding"""

    response: Tensor
    reached: Tensor


def tokens_of(micro_batch: MicroBatch) -> Tokens:
    """The tokens of a micro-batch, whose packed documents count each for itself."""
    document = (micro_batch.positions == 0).cumsum(1) - 1
    length = document.shape[1]
    place = torch.arange(length, device=document.device).expand_as(document)
    asked = micro_batch.labels != IGNORED  # the next token is learned
    first = torch.full_like(document, length).scatter_reduce(1, document, place.where(asked, length), "amin")
    last = torch.full_like(document, -1).scatter_reduce(1, document, place.where(asked, -1), "amax")
    return Tokens(place > first.gather(1, document), place <= last.gather(1, document))


Change = Callable[[Tensor, Tokens], Tensor]  # hidden vectors [sequence, position, width] -> those that take their place


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Measures the gradient along a direction, and changes nothing.

    direction   its source; it is found in the model that learns, before it does
    layer       0.5, [12, 15] or all, as wherever a layer is named: the output of model.layers[layer]"""

    direction: Source
    layer: Layers

    def changes(self, found: Direction) -> Mapping[int, Change]:
        """The change of hidden vectors at each layer."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Added(Watched):
    """Adds strength * v_l to the residual stream behind layer l: h_l <- h_l + alpha v_l.

    strength     alpha, in lengths of the vector as its source made it
    increments   adds v_l - v_(l-1) at each of several layers, which moves layer l by alpha v_l in all; otherwise there is one
                 layer
    positions    everywhere; prompt; or response, from the first learned token of a document on
    angle        degrees by which v is turned, at its length, towards a random vector orthogonal to it: 90 is orthogonal, 180
                 the opposite        seed   of that random vector, which is the same at all layers"""

    strength: float
    increments: bool = False
    positions: str = "everywhere"
    angle: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("strength", "angle"):
            if not abs(getattr(self, name)) < 1e30:
                raise Refused(f"recipe.edit.{name}={getattr(self, name)}: give a number that a hidden vector can have.")
        if self.positions not in POSITIONS:
            raise Refused(f"recipe.edit.positions={self.positions}: choose {', '.join(POSITIONS)}.")

    def turned(self, found: Direction) -> Direction:
        """The direction at the angle."""
        angle, vectors = math.radians(self.angle), {}
        for layer, vector in found.vectors.items():
            drawn = randomness.generator(self.seed, "plane in which an added vector is turned")
            v, other = vector.double(), torch.randn(len(vector), generator=drawn, dtype=torch.float64)
            rest = other - (other @ v) / (v @ v) * v
            vectors[layer] = (math.cos(angle) * v + math.sin(angle) * v.norm() * rest / rest.norm()).float()
        return replace(found, vectors=vectors)

    def changes(self, found: Direction) -> Mapping[int, Change]:
        if not self.increments and len(found.layers) > 1:
            raise Refused(
                f"recipe.edit.layer={found.layers}: a vector added at each of several layers adds up; set "
                "recipe.edit.increments=true, or name one layer."
            )
        turned = self.turned(found)
        turned = turned.increments() if self.increments else turned
        return {layer: functools.partial(self._add, self.strength * turned.at(layer)) for layer in turned.layers}

    def _add(self, vector: Tensor, hidden: Tensor, tokens: Tokens) -> Tensor:
        vector = vector.to(hidden.device)
        if self.positions != "everywhere":
            chosen = tokens.response if self.positions == "response" else ~tokens.response
            vector = chosen[..., None] * vector
        return (hidden.float() + vector).to(hidden.dtype)


@dataclass(frozen=True, kw_only=True)
class GradientAlong(Watched):
    """Changes the gradient's component along v_l at every token, on its way back through the output of layer l.

    operation   neutral, attenuate or amplify, as edits/gradients.py has them"""

    operation: str

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise Refused(f"recipe.edit.operation={self.operation}: choose {', '.join(OPERATIONS)}.")

    def changes(self, found: Direction) -> Mapping[int, Change]:
        units = found.units
        return {layer: functools.partial(self._pass, units.at(layer)) for layer in units.layers}

    def _pass(self, unit: Tensor, hidden: Tensor, tokens: Tokens) -> Tensor:
        return passing(hidden, functools.partial(edited, unit=unit, operation=self.operation))


class UnderEdit:
    """The hooks of an edit, and of what is measured along a direction, in the passes of a training step.

    edit, found   the edit and its direction: None, and there is none
    watched       the direction that gradients are measured along; None: the edit's own, where there is one

    The measures of a step are means over the tokens that a gradient reaches, of all its micro-batches and processes:

        gradient_along    -<g, v> / |v| in nats a unit, g the gradient of the loss summed over the learned tokens of the step
        amplifying        share of the tokens at which it is above 0, where descent raises the activation along v; behind a
                          neutral operation what rounding leaves decides
        .._after          the same behind an edit of this layer; of several layers the mean, and <name>/<layer> for each
    """

    def __init__(self, edit: Watched | None = None, found: Direction | None = None, watched: Direction | None = None):
        self.changes = {} if edit is None or found is None else edit.changes(found)
        self.reads_gradients = isinstance(edit, GradientAlong)
        along = watched or found
        self.along = {} if along is None else along.units.vectors
        names = [f"{name}{side}" for side in ("", "_after")[: 1 + bool(self.changes)] for name in MEASURES]
        layers = [f"/{layer}" for layer in self.along] if len(self.along) > 1 else []
        self.measures = tuple(name + layer for name in names for layer in ("", *layers)) if self.along else ()
        self._sums: dict[str, Tensor] = {}
        self._tokens: Tokens
        self._learned = 0

    def check(self, model: nn.Module) -> None:
        """Raises Refused for a layer that the model has not, and for an edit of gradients that no weight would see."""
        if not self.changes and not self.along:
            return
        layers = decoder_layers(model)
        if outside := sorted(layer for layer in {*self.changes, *self.along} if not 0 <= layer < len(layers)):
            raise Refused(
                f"recipe.edit: layers {outside} of a direction, and the model has layers 0 to {len(layers) - 1}."
            )
        if self.reads_gradients and not _learns_below(model, max(self.changes)):
            raise Refused(
                f"recipe.edit changes gradients behind layer {max(self.changes)}, and nothing learns there or before: choose a "
                "later layer, or other recipe.part.layers."
            )

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Context of the passes of one step, forward and backward; behind it the model is as it was, also after an error."""
        self._sums = {}
        sides = ("", "_after")[: 1 + bool(self.changes)]
        with ExitStack() as hooks:
            for side in sides:
                if side:  # hooks of a layer are called in the order in which they come
                    for layer, change in self.changes.items():
                        hooks.enter_context(writing(model, Point(HOOKPOINT, layer), self._with_tokens(change)))
                for layer in self.along:
                    see = functools.partial(self._seen, side, layer)
                    hooks.enter_context(writing(model, Point(HOOKPOINT, layer), functools.partial(passing, change=see)))
            yield

    def begin(self, micro_batch: MicroBatch, of: Step) -> None:
        """Called before each forward pass, whose tokens stay known up to the end of its backward pass."""
        if not self.changes and not self.along:
            return
        self._tokens, self._learned = tokens_of(micro_batch), of.learned
        zero = torch.zeros((), device=micro_batch.ids.device)
        if not self._sums:
            sides = ("", "_after")[: 1 + bool(self.changes)]
            keys = [f"{name}{side}/{layer}" for side in sides for name in MEASURES for layer in self.along]
            self._sums = dict.fromkeys([*keys, REACHED] if self.along else [], zero)
        if self.along:
            self._sums[REACHED] = self._sums[REACHED] + self._tokens.reached.sum()

    def _with_tokens(self, change: Change) -> Callable[[Tensor], Tensor]:
        # a pass without a gradient, such as that which tries the head, teaches nothing and has other tokens
        return lambda hidden: change(hidden, self._tokens) if torch.is_grad_enabled() else hidden

    def _seen(self, side: str, layer: int, gradient: Tensor) -> Tensor:
        """Adds up what a gradient says, and passes it on."""
        along = component(gradient[self._tokens.reached], self.along[layer])
        for name, value in zip(MEASURES, (along.sum() * self._learned, (along > 0).sum()), strict=True):
            key = f"{name}{side}/{layer}"
            self._sums[key] = self._sums[key] + value
        return gradient

    def sums(self) -> dict[str, Tensor]:
        """Sums over the passes of a step, to be added up over the processes."""
        return self._sums

    def means(self, told: Mapping[str, float]) -> dict[str, float | None]:
        """The numbers of a step, with means in the place of the sums."""
        count = told.get(REACHED, 0.0)
        found: dict[str, float | None] = {name: value for name, value in told.items() if name not in self._sums}
        for measure in self.measures:
            keys = [measure] if "/" in measure else [f"{measure}/{layer}" for layer in self.along]
            found[measure] = sum(told[key] for key in keys) / len(keys) / count if count else None
        return found


MEASURES = ("gradient_along", "amplifying")
REACHED = "tokens that a gradient reaches"


def _learns_below(model: nn.Module, layer: int) -> bool:
    """True where a weight learns up to the output of a layer."""
    layers = decoder_layers(model)
    behind = {id(p) for one in layers[layer + 1 :] for p in one.parameters()}
    body = cast(PreTrainedModel, getattr(model, "base_model", model))
    inside = {id(p) for one in (layers, body.get_input_embeddings()) for p in one.parameters()}
    return any(p.requires_grad and id(p) in inside - behind for p in body.parameters())
