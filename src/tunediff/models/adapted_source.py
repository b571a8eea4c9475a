"""The source of an adapted model: a tuned model, the MLPs of its base, and transcoder adapters beside them (arXiv
2602.20904). As the tuned model of a pair whose base is that same tuned model, it takes the memory of the MLPs and the
adapters alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel

from tunediff.files import located
from tunediff.folders import as_written, read_bytes
from tunediff.hookpoints import LoraAdapter, decoder_layers, mlp_of
from tunediff.models.files import PairError
from tunediff.models.hybrid import adapted, hybrid
from tunediff.models.source import ModelSource
from tunediff.models.transcoder_files import TranscoderFiles


@dataclass(frozen=True, kw_only=True)
class AdaptedSource(ModelSource):
    """The fields of ModelSource name the source of attention, norms, embeddings, head and tokenizer; dtype is that of
    all.

    mlps          where the MLPs come from
    transcoders   a run folder that trained dictionary=transcoder_adapter, or a checkpoint in the authors' format, as a
                  folder or Hub id, of which the transcoders alone are read
    transcoders_revision   branch, tag or commit on the Hub
    """

    mlps: ModelSource
    transcoders: str
    transcoders_revision: str | None = None

    @property
    def backbone(self) -> ModelSource:
        """The tuned model."""
        return ModelSource(**{field.name: getattr(self, field.name) for field in fields(ModelSource)})

    @property
    def without_adapter(self) -> ModelSource:
        return self.backbone

    @property
    def name(self) -> str:
        place = Path(self.transcoders)
        return place.parent.name if place.name == "dictionary" and place.parent.name else place.name

    @property
    def described(self) -> str:
        return f"{self.backbone.described} with the MLPs of {self.mlps.described} and the transcoders of {self.transcoders}"

    @property
    def commits(self) -> dict[str, str]:
        found = {**super().commits, **self.mlps.commits}
        if (commit := self.beside.commit) is not None:
            found[f"{self.transcoders}@{self.transcoders_revision or 'main'}"] = commit
        return found

    def check(self) -> None:
        self.backbone.check()
        if self.mlps != self.backbone:
            self.mlps.check()
        self.beside.check()

    def remarks(self) -> list[str]:
        found = [*super().remarks(), *self.mlps.remarks()]
        config = Path(self.beside.folder).parent / "config.yaml"  # of the run, where it is one
        if self.beside.published or not config.is_file():
            return found
        with as_written(config):
            trained = yaml.safe_load(read_bytes(config).decode())["model_pair"]
            made = (trained["tuned"]["path"], trained["base"]["path"])
        if [Path(located(path)).name for path in made] != [Path(one.location).name for one in (self, self.mlps)]:
            found.append(
                f"The transcoders of {self.transcoders} were trained on {made[0]} with the MLPs of {made[1]}, and stand on "
                f"{self.path} with those of {self.mlps.path}."
            )
        return found

    @functools.cached_property
    def beside(self) -> TranscoderFiles:
        return TranscoderFiles(self.transcoders, self.transcoders_revision)

    @functools.cached_property
    def adapters(self) -> list[LoraAdapter]:
        """None: low-rank adapters of the tuned model are part of its attention here."""
        return []

    def weights(self, under: PreTrainedModel | None = None) -> PreTrainedModel:
        """The model. `under` is the tuned model, if it is in memory: its weights are used and left as they are. Of the
        model the MLPs come from, nothing else is kept."""
        model = self.backbone.weights() if under is None else under
        if self.mlps == self.backbone:
            donor = model
        elif self.mlps.beside is not None:
            raise PairError(
                f"The MLPs of {self.mlps.path} have transcoder adapters beside them: name the base they were trained on."
            )
        else:
            donor = replace(self.mlps, dtype=self.dtype).weights()
        transcoders = self.beside.read().to(getattr(torch, self.dtype))
        return adapted(hybrid(model, donor), transcoders).eval().requires_grad_(False)

    def files(self) -> list[tuple[str, int, int]]:
        return [*super().files(), *self.mlps.files()]

    @property
    def added(self) -> int:
        mlp = mlp_of(decoder_layers(self.mlps.empty)[0])
        return len(self.beside.streams) * (sum(p.numel() for p in mlp.parameters()) + self.beside.parameters)
