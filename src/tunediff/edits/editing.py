"""An edit, and the `with` in which a model runs under several.

    start = h         mode delta: what the dictionary does not explain stays        h' = start + operation's change
          = x_hat     mode replace: the reconstruction stands in its place

Edits of one hookpoint are written in the order they are given, each on what the one before left. Knows one model; what
the other one has at the same tokens is handed in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits.gates import Everywhere, Gate
from tunediff.edits.operations import Operation
from tunediff.edits.parts import Axes, Part, Place
from tunediff.edits.sequences import Sequences
from tunediff.hookpoints import HOOKPOINTS, LORA, Point, writing_pieces
from tunediff.shapes import ADAPTER, TRANSCODER, Refused, Stream

MODES = ("delta", "replace")


@dataclass(frozen=True)
class Edit:
    """at          whose hidden vectors are written, and where
    part, operation     what of them, and what becomes of it           gate   at which tokens
    mode        delta keeps the reconstruction error, replace does not
    along       [width]: the change keeps its size at every token and takes this direction, the control for "any change of
                that size"; None: as the operation gives it

    Raises Refused where the part cannot be written at that place."""

    at: Stream
    part: Part
    operation: Operation
    gate: Gate = Everywhere()
    mode: str = "delta"
    along: Tensor | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise Refused(f"mode={self.mode}: choose delta or replace.")
        self.part.reads(self.at, self.operation.reads_other)

    @property
    def described(self) -> str:
        """The edit in words: what is written where, and when."""
        elsewhere = ", in a random direction" if self.along is not None else ""
        return f"{self.operation} of {self.part.described} at {self.at}, {self.mode}, {self.gate.described}{elsewhere}"

    @property
    def reads(self) -> list[Stream]:
        """Streams that must be known where it is written, beside that place itself."""
        wanted = [*self.part.reads(self.at, self.operation.reads_other), *self.gate.reads]
        return [stream for stream in dict.fromkeys(wanted) if stream != self.at]

    def named(self, known: Sequences, read: Mapping[Stream, Tensor]) -> Tensor:
        """[batch, new position] bool: tokens behind the gate, without those that the part leaves alone."""
        opened = self.gate(known, read)
        return opened & ~known.special if self.part.skips_special else opened

    def written(self, place: Place) -> Tensor:
        """The hidden vectors [token, width] of the named tokens as they are after the edit."""
        change = self.operation.change(self.part.look(self.at, place))
        if self.along is not None:
            unit = nn.functional.normalize(self.along.to(change), dim=-1)
            change = change.norm(dim=-1, keepdim=True) * unit
        start = place.own if self.mode == "delta" else self.part.reconstruction(self.at, place)
        return torch.where(self.part.admits(self.at, place)[:, None], start + change, place.own)


def needed(edits: Sequence[Edit], role: str) -> list[Stream]:
    """Streams of the other model that must be read before the model with this role runs under these edits. Raises
    Refused where an edit asks for something of its own model that comes later."""
    for edit in edits:
        if edit.at.role != role:
            raise Refused(f"An edit at {edit.at} cannot be written into the {role} model.")
        _check_adapters(edit)
        later = [stream for stream in edit.reads if stream.role == role and _order(stream) > _order(edit.at)]
        if later:
            raise Refused(f"An edit at {edit.at} asks for {later[0]}, which is computed after it.")
    return list(dict.fromkeys(stream for edit in edits for stream in edit.reads if stream.role != role))


def _check_adapters(edit: Edit) -> None:
    """Adapters are computed one after another through the whole model: an edit of theirs may not depend on what all of
    them read."""
    if edit.at.hookpoint != LORA:
        if any(stream.hookpoint == LORA for stream in edit.reads):
            raise Refused(
                f"An edit at {edit.at} asks for what all adapters read, which is known after the last of them."
            )
        return
    alone = edit.part.by_coordinate and edit.along is None and edit.mode == "delta"
    if edit.gate.reads or edit.part.needs_moments or not (alone or edit.operation.constant):
        raise Refused(
            f"An edit at {edit.at} acts on each adapter as it is computed, so it cannot be {edit.described}: add "
            "something to them, as steering_sweep does, or change single adapters, as lora_ablation does."
        )


def _order(stream: Stream) -> tuple[int, int]:
    return stream.layer, list(HOOKPOINTS).index(stream.hookpoint)


def transcoder_edits(
    adapter: TranscoderAdapter,
    numbers: Sequence[int],
    operation: Operation,
    *,
    scale: Tensor,
    mean: Tensor,
    gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
    role: str = ADAPTER,
) -> tuple[Edit, ...]:
    """Edits in the adapted model, where each latent is on its way to its decoder; `role` is that model's. `scale`,
    `mean` [latent] of all layers."""
    made = []
    for layer, within in adapter.by_layer(numbers).items():
        first = layer * adapter.latents_per_layer
        names = tuple(f"{layer}.{n}" for n in within)
        chosen = torch.tensor(within)
        at = Stream(role, TRANSCODER, layer, adapter.latents_per_layer)
        part = Axes(chosen, scale[first + chosen], mean[first + chosen], names)
        made.append(Edit(at, part, operation, gate))
    return tuple(made)


@contextmanager
def editing(
    model: nn.Module,
    edits: Sequence[Edit],
    known: Sequences,
    read: Mapping[Stream, Tensor] | None = None,
    *,
    available: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """Context in which one forward pass of `model` over the new columns of `known` is edited. `read` are hidden
    vectors [batch, new position, width] of the other model, `available` [batch, new position] where it has any; None:
    everywhere. Gives, once the pass is over, for each edit the norm of what it changed at each token, [batch, new
    position]: 0 where its gate was closed, and where nothing it acts on was active."""
    seen = dict(read or {})
    changes: list[Tensor] = [known.new(torch.zeros_like(known.real, dtype=torch.float32))] * len(edits)

    def passing(stream: Stream, columns: slice, value: Tensor) -> Tensor:
        seen[stream] = value
        for n, edit in enumerate(edits):
            if edit.at == stream:  # each reads in `seen` what the one before left there, so that edits compose
                here = edit.named(known, seen)
                if available is not None and edit.operation.reads_other:
                    here &= available
                seen[stream], norms = _write(n, edit, known, seen, here, columns)
                # adapters pass one after another, each with columns of its own: their squares add up
                changes[n] = norms if stream.hookpoint != LORA else torch.hypot(changes[n].to(norms), norms)
        return seen[stream][..., columns]

    with ExitStack() as hooks:
        role = edits[0].at.role if edits else None
        for stream in dict.fromkeys(s for edit in edits for s in (*edit.reads, edit.at) if s.role == role):
            point = Point(stream.hookpoint, stream.layer)
            here = [edit.part for edit in edits if edit.at == stream]

            def touches(columns: slice, parts=here) -> bool:
                return any(part.touches(columns) for part in parts)

            hooks.enter_context(writing_pieces(model, point, functools.partial(passing, stream), touches=touches))
        yield changes


def _write(
    n: int, edit: Edit, known: Sequences, seen: Mapping[Stream, Tensor], named: Tensor, columns: slice
) -> tuple[Tensor, Tensor]:
    """The hidden vectors after the edit, and the norm of the change of these columns."""
    value = seen[edit.at]
    norms = torch.zeros_like(named, dtype=torch.float32)

    def place(tokens: Tensor, moments: Tensor | None = None) -> Place:
        return Place(value[tokens], {stream: seen[stream][tokens] for stream in edit.reads}, moments)

    moments = None
    if edit.part.needs_moments:
        # taken once, in the first pass: taken anew at every token, they would follow what the edits write, and generation
        # would differ from scoring
        if known.first == 0:
            counted = _counted(known)
            number = torch.arange(len(value), device=value.device)[:, None]
            rows = (counted & (number == row) for row in range(len(value)))
            known.moments[n] = torch.stack([edit.part.moments(edit.at, place(row)) for row in rows])
        moments = known.moments[n][named.nonzero()[:, 0]]
    if not named.any():  # the very same tensor: the pass stays that of the unedited model to the last bit
        return value, norms
    before, changed = value[named], value.clone()
    changed[named] = edit.written(place(named, moments)).to(value)
    norms[named] = (changed[named] - before)[:, columns].detach().float().norm(dim=-1)
    return changed, norms


def _counted(known: Sequences) -> Tensor:
    """[batch, position]: the tokens whose moments stand for their sequence. In generation only the prompt is known from
    the first step on; a text without a prompt is known whole."""
    text = known.real & ~known.special
    prompt = text & ~known.response
    return torch.where(prompt.any(1, keepdim=True), prompt, text)
