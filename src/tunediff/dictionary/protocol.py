"""What the house asks of a dictionary, in one place: `Dictionary` of one that is measured, `LearningDictionary` of one that
is trained on activations. A class of one's own need not be a subclass of ours: a torch module with these members is one.

LinearDecoder gives all that follows from a decoder matrix; what then is left to write is `encode` and `code`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from tunediff.dictionary.codes import DenseCodes, SparseCodes
from tunediff.dictionary.normalisation import Normalisation
from tunediff.schedules import Length, Schedule
from tunediff.shapes import Rows, Stream


class Module(Protocol):
    """The part of nn.Module that is used of a dictionary."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def to(self, device: torch.device | str, /) -> Self: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class Dictionary(Module, Protocol):
    """Rows of activations [token, width] <-> latents [token, latent], in the models' own units. It is made with the streams
    that it reads as its first argument.

    normalisation   how rows come into the units that W_dec is written in, and which of them are attention sinks
    """

    normalisation: Normalisation

    @property
    def streams(self) -> Sequence[Stream]: ...
    @property
    def widths(self) -> list[int]:
        """Widths of the streams, in their order."""
        ...

    @property
    def latents(self) -> int:
        """Number of latents."""
        ...

    @property
    def W_dec(self) -> Tensor:
        """[latent, width], in normalised units."""
        ...

    def encode(self, rows: Rows) -> Tensor:
        """[token, latent]; a token's latents depend on that token alone."""
        ...

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        """[token, width]"""
        ...

    def decoder_norms(self) -> Tensor:
        """[stream, latent], in normalised units: there every model has the same typical size."""
        ...

    def code_norms(self) -> Tensor:
        """[latent]: how much a latent weighs in selection and penalty."""
        ...

    def part(self, values: Tensor, role: str) -> Tensor:
        """The columns [..., width] of one role's streams, side by side."""
        ...


class ReconstructingDictionary(Dictionary, Protocol):
    """A dictionary whose `decode` reconstructs the rows that were encoded, which that of a transcoder adapter does not."""

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Reconstruction [token, width] in normalised units."""
        ...

    def written(self, change: Tensor, numbers: Tensor, moments: Tensor | None = None) -> Tensor:
        """Change [token, width] of the reconstruction where the latents with indices `numbers` [n] change by `change`
        [token, n]."""
        ...


class LearningDictionary(ReconstructingDictionary, Protocol):
    """A dictionary that learns from shuffled activations. `settings` holds a step's scheduled values, its own among them.

    has_penalty   whether there is a sparsity penalty for l1_schedule to scale
    """

    @property
    def has_penalty(self) -> bool: ...

    def fit(self, rows: Rows) -> None:
        """Fits the normalisation, and what else begins from a sample, before the first step."""
        ...

    def code(self, normalised: Tensor, norms: Tensor, settings: Mapping[str, float]) -> DenseCodes | SparseCodes:
        """The latents of a training batch [token, width] with their gradient; selection may look at all of it. `norms` is
        what code_norms gives."""
        ...

    def reconstructions(self, codes: Any) -> list[Tensor]:
        """[token, width] in normalised units and float32: of each nested dictionary, the whole one last."""
        ...

    def penalties(self, codes: Any, norms: Tensor, settings: Mapping[str, float]) -> dict[str, Tensor]:
        """Sparsity terms of the loss, each with its coefficient."""
        ...

    def schedules(self) -> Mapping[str, Schedule]:
        """Its own schedules, under their names in the config below `dictionary`."""
        ...

    def scheduled(self, step: int, length: Length) -> Mapping[str, float]:
        """Values of its own schedules at a step."""
        ...

    def constrain_gradients(self) -> None:
        """Called before an optimizer step: what must not change gets no gradient."""
        ...

    def settle(self) -> None:
        """Called once after an optimizer step: restores what must hold of the weights, and keeps statistics."""
        ...

    def observed(self) -> Mapping[str, Tensor]:
        """Numbers of its own for the training curves."""
        ...


class LinearDecoder(nn.Module):
    """Abstract: a dictionary of one matrix W_dec [latent, width] and one bias b_dec [width], which has no penalty, no
    schedule and no constraint. To be written: __init__ with `streams`, `normalisation`, W_dec and b_dec; `encode`; `code`."""

    streams: list[Stream]
    normalisation: Normalisation
    W_dec: Tensor
    b_dec: Tensor

    @property
    def widths(self) -> list[int]:
        return [stream.width for stream in self.streams]

    @property
    def latents(self) -> int:
        return len(self.W_dec)

    @property
    def has_penalty(self) -> bool:
        return False

    def encode(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def forward(self, rows: Rows) -> Tensor:
        """The reconstruction [token, width]."""
        return self.decode(self.encode(rows), rows.moments)

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        return self.normalisation.restore(self.reconstruct(latents), moments)

    def reconstruct(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec

    def written(self, change: Tensor, numbers: Tensor, moments: Tensor | None = None) -> Tensor:
        return self.normalisation.restore_change(change @ self.W_dec[numbers], moments)

    def decoder_norms(self) -> Tensor:
        if len(set(self.widths)) == 1:
            return self.W_dec.view(self.latents, len(self.widths), -1).norm(dim=-1).T
        return torch.stack([rows.norm(dim=-1) for rows in self.W_dec.split(self.widths, dim=-1)])

    def code_norms(self) -> Tensor:
        return self.decoder_norms().sum(0)

    def part(self, values: Tensor, role: str) -> Tensor:
        pieces = values.split(self.widths, dim=-1)
        return torch.cat([p for p, stream in zip(pieces, self.streams, strict=True) if stream.role == role], dim=-1)

    def fit(self, rows: Rows) -> None:
        self.normalisation.fit(rows.values)

    def reconstructions(self, codes: DenseCodes | SparseCodes) -> list[Tensor]:
        return [self.b_dec + codes.decode(self.W_dec, 0, self.latents).float()]

    def penalties(
        self, codes: DenseCodes | SparseCodes, norms: Tensor, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {}

    def schedules(self) -> dict[str, Schedule]:
        return {}

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {}

    def constrain_gradients(self) -> None:
        """Nothing is held fixed."""

    def settle(self) -> None:
        """Nothing is kept of a step."""

    def observed(self) -> dict[str, Tensor]:
        return {}


def save_dictionary(dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
    """Writes weights.safetensors and config.json; `config` is what built this dictionary, kept for rebuilding it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in dictionary.state_dict().items()}
    partial = folder / "weights.partial"
    safetensors.torch.save_file(state, partial)
    os.replace(partial, folder / "weights.safetensors")
    described = {**config, "streams": [list(s) for s in dictionary.streams]}
    (folder / "config.partial").write_text(json.dumps(described, indent=1))
    os.replace(folder / "config.partial", folder / "config.json")
