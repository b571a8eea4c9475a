"""Latents on held-out text -> the cache that Delphi explains and scores from (github.com/EleutherAI/delphi, 2025-11).

    <run folder>/latent_cache/dictionary/{first}_{last}.safetensors     one file for each range of latents
        locations    [active, 3]    row, position, latent - first     uint16, or uint32 where that is too small
        activations  [active]       float16, in the dictionary's own units
        tokens       [row, position]  int64, the same in every file
    <run folder>/latent_cache/dictionary/config.json                    model_name is where the tokenizer comes from

Delphi cuts all rows into windows of one length, so documents are laid end to end, with an end-of-text token between them,
and cut into rows of `context` tokens, as its own reader of data sets does. A latent has the value that it had in its own
document. What is left over at the end is dropped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch
from safetensors.numpy import save_file
from torch import Tensor

from tunediff.evaluations.given import Reading, Trained
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.folders import changing, make_folder, put
from tunediff.shapes import Note, Refused

SETTING = "evaluation.latent_cache"
SMALLEST = 1e-5  # what Delphi counts as active


class LatentCache:
    """latents   their indices; an expression that chooses them; or how many: those alive that belong most to one model
    files     number of ranges that the latents are split into
    context   tokens per row; a multiple of Delphi's example_ctx_len
    """

    def __init__(self, *, latents: int | str | Sequence[int] = 512, files: int = 5, context: int = 256):
        self.latents, self.files, self.context = latents, files, context

    def run(self, trained: Trained) -> Iterator[Note]:
        """Writes the cache into the run folder. Raises Refused where there is no folder, or less text than one row."""
        if trained.folder is None:
            raise Refused(f"{SETTING} writes files: it needs a run folder, Trained(..., folder=<folder>).")
        chosen = chosen_latents(trained, self.latents, setting=f"{SETTING}.latents")
        tokens, locations, activations = self._read(trained, torch.tensor(sorted(chosen), dtype=torch.long))
        if not len(tokens):
            raise Refused(f"{SETTING}.context={self.context}: the held-out text is shorter than one row of it.")
        place = trained.folder / "latent_cache" / "dictionary"
        with changing(place):
            shutil.rmtree(place, ignore_errors=True)
            make_folder(place)
            try:
                self._write(place, trained.dictionary.latents, tokens, locations, activations)
                with put(place / "config.json") as partial:
                    partial.write_text(json.dumps(self._config(trained, tokens), indent=1), encoding="utf-8")
            except BaseException:  # Delphi would take half of the files for all
                shutil.rmtree(place, ignore_errors=True)
                raise
        yield Note(
            f"latent_cache/ holds {len(locations):,} activations of {len(chosen)} latents on {tokens.numel():,} held-out "
            f"tokens for Delphi: LatentDataset(raw_dir=<run folder>/latent_cache, modules=['dictionary'], ...)."
        )

    def _read(self, trained: Trained, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reads tokens [row, position], locations [active, 3] with indices of latents, and activations [active]."""
        between = trained.pair.tokenizers[0].eos_token_id
        tokens, places, values, length = [], [], [], 0
        for reading in trained.readings("latent cache"):
            latents = reading.latents[:, chosen.to(reading.latents.device)].cpu()
            ids, starts = end_to_end(reading, between)
            token, latent = (latents.abs() > SMALLEST).nonzero().T
            at = length + starts[reading.batch.sequence[token]] + reading.batch.position[token]
            places.append(torch.stack([at // self.context, at % self.context, chosen[latent]], dim=-1))
            values.append(latents[token, latent])
            tokens.append(ids)
            length += len(ids)
        rows = length // self.context
        whole, locations = torch.cat(tokens)[: rows * self.context], torch.cat(places)
        kept = locations[:, 0] < rows
        return whole.view(rows, self.context), locations[kept], torch.cat(values)[kept]

    def _write(self, place: Path, latents: int, tokens: Tensor, locations: Tensor, activations: Tensor) -> None:
        files = min(self.files, latents)
        bounds = [latents * n // files for n in range(files + 1)]
        for first, end in zip(bounds, bounds[1:], strict=False):
            here = (locations[:, 2] >= first) & (locations[:, 2] < end)
            mine = locations[here] - torch.tensor([0, 0, first])
            small = len(tokens) <= 2**16 and end - first <= 2**16 and self.context <= 2**16
            content = {
                "locations": mine.numpy().astype(numpy.uint16 if small else numpy.uint32),
                "activations": activations[here].half().numpy(),
                "tokens": tokens.numpy(),
            }
            with put(place / f"{first}_{end - 1}.safetensors") as partial:
                save_file(content, partial)

    def _config(self, trained: Trained, tokens: Tensor) -> dict[str, str | int]:
        """The config in Delphi's own keys; the tokens lie in the files, so there is no dataset to read them from."""
        sizes = {"cache_ctx_len": self.context, "n_tokens": tokens.numel(), "n_splits": self.files}
        absent = dict.fromkeys(("dataset_repo", "dataset_split", "dataset_name", "dataset_column"), "")
        return {**absent, **sizes, "model_name": trained.pair.sources[trained.pair.owner].location}


def end_to_end(reading: Reading, between: int | None) -> tuple[Tensor, Tensor]:
    """The documents of a batch one after the other [token], all their tokens, and where each begins [sequence].
    `between` follows a document that does not end with it."""
    ids, mask = reading.batch.ids[0], reading.batch.mask[0]
    parts = []
    for row, count in zip(ids, mask.sum(-1).tolist(), strict=True):
        document = row[:count]
        if between is not None and int(document[-1]) != between:
            document = torch.cat([document, torch.tensor([between])])
        parts.append(document)
    lengths = torch.tensor([len(part) for part in parts])
    return torch.cat(parts), lengths.cumsum(0) - lengths
