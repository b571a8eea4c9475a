"""Conditions that a direction must meet before a model is loaded, and the notes that its numbers cannot be read without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tunediff.directions import Direction, Source, check_layers
from tunediff.evaluations.behaviour.runner import Found
from tunediff.evaluations.given import Given
from tunediff.models import ModelPair
from tunediff.shapes import Note, Refused


def check_place(pair: ModelPair, roles: Iterable[str], source: Source, layer: int) -> None:
    """Raises Refused for a layer that a model has not, and for models between which a vector cannot be carried."""
    for role in roles:
        check_layers(pair, role, [layer])
    hookpoint = getattr(source, "hookpoint", "resid_post")
    widths = {role: pair.width(role, hookpoint) for role in roles}
    if len(set(widths.values())) > 1:
        raise Refused(
            f"The models have other widths at {hookpoint} ({', '.join(f'{role} {width}' for role, width in widths.items())}): "
            "no direction of one is a direction of the other. Set sources and targets to one of them, the same."
        )


def said_of(name: str, given: Given, directions: Mapping[str, Direction], source: Source, layer: int) -> Iterator[Note]:
    """Yields what a reader must know of the directions. Raises Refused where one that asks for both models is the same for each."""
    both = list(directions.values())
    same = len(both) > 1 and bool((both[0].at(layer) == both[1].at(layer)).all())
    if same and source.needs_pair:
        raise Refused(
            f"{type(source).__name__} looks at both models at once and finds one direction for both: set {name}.sources=[tuned]."
        )
    for role, direction in directions.items():
        counted = {
            key: value for key, value in direction.provenance.items() if isinstance(value, int) and key != "tokens"
        }
        more = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in counted.items() if value is not True)
        more = f" ({more})" if more else ""
        length_of = float(direction.at(layer).norm())
        yield Note(f"{name}: the direction of the {role} model at layer {layer} has length {length_of:.4g}{more}.")
    if len(both) > 1:
        one, other = (direction.at(layer).double() for direction in both)
        cosine = float(one @ other / (one.norm() * other.norm()))
        yield Note(f"{name}: the cosine of the two directions is {cosine:.3f}.")
    if any(layer == given.pair.depth(role) - 1 for role in directions) and both[0].hookpoint == "resid_post":
        yield Note(
            f"{name}: an edit at resid_post of the last layer, {layer}, reaches no later token through attention: it changes "
            "each token's own logits and nothing else."
        )


def never_hesitates(name: str, found: Found) -> Iterator[Note]:
    """Names the models of which no response, under any condition, has a hesitation: then the patterns, or the task, leave nothing
    to measure there."""
    for role in dict.fromkeys(answered.condition.role for answered in found.values()):
        every = [one for answered in found.values() if answered.condition.role == role for one in answered.solved]
        if not any(one.behaviour.hesitations for one in every):
            yield Note(
                f"{name}: none of the {len(every):,} responses of the {role} model, under any condition, has a word that counts as a "
                f"hesitation: look at evaluation.{name}.hesitations, and at whether the task gives it room to hesitate."
            )
