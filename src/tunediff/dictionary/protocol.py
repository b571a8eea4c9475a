"""The interface of dictionaries: `Dictionary` for one that is measured, `LearningDictionary` for one that is trained on
activations. A class of one's own need not be a subclass of ours: a torch module with these members is one.

LinearDecoder implements all that follows from a decoder matrix, and leaves `encode` and `code` to write.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from tunediff.dictionary.codes import Codes
from tunediff.dictionary.normalisation import Normalisation
from tunediff.folders import as_written, replacing, verify, write_atomically
from tunediff.schedules import Length, Schedule
from tunediff.shapes import Rows, Stream

WEIGHTS = "weights.safetensors"


class Module(Protocol):
    """The methods of nn.Module that are called on a dictionary."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def to(self, device: torch.device | str, /) -> Self: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class Dictionary(Module, Protocol):
    """Rows of activations [token, width] <-> latents [token, latent], in the models' own units. The constructor takes the
    streams that the dictionary reads as its first argument.

    normalisation   brings rows into the units of W_dec, and knows which of them are attention sinks
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
        """Decoder matrix [latent, width], in normalised units."""
        ...

    def encode(self, rows: Rows) -> Tensor:
        """Latents [token, latent]; those of a token depend on that token alone."""
        ...

    def decode(self, latents: Tensor, moments: Tensor | None = None) -> Tensor:
        """Reconstruction [token, width] in the models' own units."""
        ...

    def decoder_norms(self) -> Tensor:
        """Decoder norms [stream, latent] in normalised units, in which the models have the same typical size."""
        ...

    def code_norms(self) -> Tensor:
        """Weight [latent] of each latent in selection and penalty."""
        ...

    def part(self, values: Tensor, role: str) -> Tensor:
        """Columns [..., width] of the streams of one role, side by side."""
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

    has_penalty   true if there is a sparsity penalty for l1_schedule to scale
    """

    @property
    def has_penalty(self) -> bool: ...

    def fit(self, rows: Rows) -> None:
        """Fits the normalisation, and whatever else is initialised from a sample, before the first step."""
        ...

    def code(self, normalised: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Codes:
        """Latents of a training batch [token, width] with their gradient; selection may depend on the whole batch. `norms`
        are the code_norms."""
        ...

    def reconstructions(self, codes: Any) -> list[Tensor]:
        """Reconstruction [token, width] by each nested dictionary, the whole one last, in normalised units and float32."""
        ...

    def penalties(self, codes: Any, norms: Tensor, settings: Mapping[str, float]) -> dict[str, Tensor]:
        """Sparsity terms of the loss, each with its coefficient."""
        ...

    def schedules(self) -> Mapping[str, Schedule]:
        """The dictionary's own schedules, by their names in the config below `dictionary`."""
        ...

    def scheduled(self, step: int, length: Length) -> Mapping[str, float]:
        """Values of the dictionary's own schedules at a step."""
        ...

    def constrain_gradients(self) -> None:
        """Called between backward pass and optimizer step: removes the gradient along directions that must not change."""
        ...

    def settle(self) -> None:
        """Called once after an optimizer step: restores the constraints on the weights, and updates statistics."""
        ...

    def observed(self) -> Mapping[str, Tensor]:
        """Further numbers for the training curves, by name."""
        ...


class LinearDecoder(nn.Module):
    """Abstract: a dictionary with one matrix W_dec [latent, width] and one bias b_dec [width], without penalty, schedule and
    constraint. A subclass writes __init__, which sets streams, normalisation, W_dec and b_dec, and `encode` and `code`."""

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

    @abc.abstractmethod
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

    def reconstructions(self, codes: Codes) -> list[Tensor]:
        return [self.b_dec + codes.decode(self.W_dec, 0, self.latents).float()]

    def penalties(self, codes: Codes, norms: Tensor, settings: Mapping[str, float]) -> dict[str, Tensor]:
        return {}

    def schedules(self) -> dict[str, Schedule]:
        return {}

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {}

    def constrain_gradients(self) -> None:
        """Does nothing: no direction is held fixed."""

    def settle(self) -> None:
        """Does nothing: there are no statistics."""

    def observed(self) -> dict[str, Tensor]:
        return {}


def save_dictionary(dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
    """Writes weights.safetensors and config.json into the folder; `config` is the setting that rebuilds the dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in dictionary.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        safetensors.torch.save_file(state, partial)
    described = {**config, "streams": [list(s) for s in dictionary.streams]}
    write_atomically(folder / "config.json", json.dumps(described, indent=1))


def load_weights(dictionary: Module, folder: Path) -> None:
    """Gives a dictionary the weights that `save_dictionary` wrote into the folder. Raises Refused for a file that is not as
    it was written, or of another dictionary."""
    path = folder / WEIGHTS
    verify(path)
    with as_written(path):
        try:
            dictionary.load_state_dict(safetensors.torch.load_file(path))
        except safetensors.SafetensorError as error:
            raise ValueError(f"it is no safetensors file: {error}") from error
        except RuntimeError as error:  # torch says on lines of their own what is missing, and what has another shape
            raise ValueError("its tensors are not those of the dictionary in config.yaml") from error
