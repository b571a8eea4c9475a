"""A pair and its text -> shuffled batches of activations [token, width], live from the models or from stored shards.

    source (live or stored)  ->  admitted rows  ->  ring buffer, permuted at each refill  ->  batches

Both sources give the same rows in the same order, so a dictionary does not know which one it reads. Every position
can be saved and taken up again: state_dict() now, load_state_dict() later, same batches. Nothing here knows a
dictionary, a loss or a step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.models import ModelPair
from tunediff.shapes import Refused, Rows, Stream
from tunediff.text import Batch, Text

log = logging.getLogger(__name__)


class ActivationError(Refused):
    """Activations that must not reach a dictionary, or cannot be stored."""


class Source(Protocol):
    """Blocks of rows without end, from a position that can be saved."""

    def __iter__(self) -> Iterator[Rows]: ...
    def __next__(self) -> Rows: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def harvest(
    pair: ModelPair,
    batch: Batch,
    streams: Sequence[Stream],
    *,
    dtype: torch.dtype = torch.float32,
    moments: bool = False,
) -> Rows:
    """Activations of the kept tokens of one batch, with the moments of each token's sequence where asked for.

    Raises ActivationError at the first value that is not finite, naming stream and document."""
    values = pair.read(batch, streams)
    device = values[0].device
    for stream, value in zip(streams, values, strict=True):
        if not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).any(-1).nonzero()[0, 0])
            raise ActivationError(
                f"{stream} gives a value that is not finite at token {int(batch.position[bad])} of document "
                f"{int(batch.document[bad])} (row number in the data). Half-precision overflow is the usual cause: try "
                f"model_pair.{stream.role}.dtype=bfloat16 or float32, or leave the document out."
            )
    rows = torch.cat([value.to(device, dtype) for value in values], dim=-1)
    if not moments:
        return Rows(rows)
    sequence = batch.sequence.to(device)
    return Rows(rows, torch.stack([_sequence_moments(value.to(device).float(), sequence) for value in values], dim=1))


def _sequence_moments(values: Tensor, sequence: Tensor) -> Tensor:
    """Mean and standard deviation over all entries of each token's sequence, [token, 2]."""
    count = torch.bincount(sequence).to(values.dtype) * values.shape[1]
    total = torch.zeros_like(count).index_add_(0, sequence, values.sum(-1))
    mean = total / count.clamp(min=1)
    squares = torch.zeros_like(count).index_add_(0, sequence, (values - mean[sequence, None]).square().sum(-1))
    deviation = (squares / count.clamp(min=1)).sqrt()
    return torch.stack([mean[sequence], deviation[sequence]], dim=-1)


class LiveRows:
    """Rows straight from the models, one block a forward pass."""

    def __init__(
        self, pair: ModelPair, text: Text, streams: Sequence[Stream], *, dtype: torch.dtype, moments: bool = False
    ):
        self.pair, self.streams, self.dtype, self.moments = pair, streams, dtype, moments
        self.batches = text.batches(pair.tokenizers)

    def __iter__(self) -> LiveRows:
        return self

    def __next__(self) -> Rows:
        return harvest(self.pair, next(self.batches), self.streams, dtype=self.dtype, moments=self.moments)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches.load_state_dict(state)


# -- stored ----------------------------------------------------------------------------------------------------------

SHARD_ROWS = 262_144


def store(source: Source, folder: Path, *, tokens: int, width: int, moments: int) -> Path:
    """Writes at least `tokens` rows as bfloat16 shards with checksums; returns the folder. Found whole, it is kept.

    Layout: index.json, shard-00000.bin (contiguous rows [token, width]), moments-00000.bin (float32 [token, stream, 2])."""
    if (folder / "index.json").exists():
        log.info("Stored activations found at %s.", folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    needed = tokens * (2 * width + 8 * moments)
    free = shutil.disk_usage(folder).free
    log.info(
        "Storing %s tokens x %s values: %.2f GB at %s (%.1f GB free).",
        f"{tokens:,}",
        width,
        needed / 1e9,
        folder,
        free / 1e9,
    )
    if needed > free:
        raise ActivationError(
            f"Storing {tokens:,} tokens x {width} values needs {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free. "
            f"Lower budget.tokens, choose another folder with activations.folder, or read the models live: activations=live."
        )
    shards: list[dict[str, Any]] = []
    written = 0
    with tqdm(total=tokens, unit="tok", unit_scale=True, desc="storing") as bar:
        while written < tokens:
            blocks, rows = [], 0
            while rows < min(SHARD_ROWS, tokens - written):
                blocks.append(next(source))
                rows += len(blocks[-1].values)
                bar.update(len(blocks[-1].values))
            name = f"{len(shards):05d}"
            values = torch.cat([b.values for b in blocks]).bfloat16().cpu()
            try:
                sums = [_write(folder / f"shard-{name}.bin", values.view(torch.uint8).numpy().tobytes())]
                if moments:
                    extra = torch.cat([b.moments for b in blocks]).float().cpu()
                    sums.append(_write(folder / f"moments-{name}.bin", extra.numpy().tobytes()))
            except OSError as error:
                raise ActivationError(
                    f"Writing activations stopped after {written:,} of {tokens:,} tokens: {error.strerror} ({folder}). "
                    f"Nothing half-written is kept as finished. Free {needed / 1e9:.2f} GB or set activations.folder."
                ) from error
            shards.append({"rows": rows, "sha256": sums})
            written += rows
    index = {"rows": written, "width": width, "moments": moments, "dtype": "bfloat16", "blocks": shards}
    _write(folder / "index.json", json.dumps(index, indent=1).encode())
    return folder


def _write(path: Path, data: bytes) -> str:
    """Atomic: a temporary file, flushed to disk, then renamed. Returns the checksum."""
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


class StoredRows:
    """Rows of a folder written by `store`, in the order they were written, read in blocks. A shard's checksum is
    compared when it is opened."""

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype, block: int = 8192):
        self.folder, self.device, self.dtype, self.block = folder, device, dtype, block
        self.index = json.loads((folder / "index.json").read_text())
        self.load_state_dict({"shard": 0, "row": 0})

    def __iter__(self) -> StoredRows:
        return self

    def __next__(self) -> Rows:
        if self._values is None:
            self._values, self._moments = self._open(self.shard)
        if self.row >= len(self._values):
            self.shard, self.row = (self.shard + 1) % len(self.index["blocks"]), 0
            self._values, self._moments = self._open(self.shard)
        piece = slice(self.row, self.row + self.block)
        self.row += self.block
        moments = None if self._moments is None else self._moments[piece].to(self.device)
        return Rows(self._values[piece].to(self.device, self.dtype), moments)

    def _open(self, shard: int) -> tuple[Tensor, Tensor | None]:
        sums = self.index["blocks"][shard]["sha256"]
        raw = []
        for name, expected in zip((f"shard-{shard:05d}.bin", f"moments-{shard:05d}.bin"), sums, strict=False):
            data = (self.folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise ActivationError(
                    f"{self.folder / name} does not match its checksum: it was changed or cut. Delete {self.folder} to store it anew."
                )
            raw.append(bytearray(data))
        values = torch.frombuffer(raw[0], dtype=torch.bfloat16).view(-1, self.index["width"])
        if len(raw) == 1:
            return values, None
        return values, torch.frombuffer(raw[1], dtype=torch.float32).view(len(values), -1, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"shard": self.shard, "row": self.row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.shard, self.row = state["shard"], state["row"]
        self._values: Tensor | None = None
        self._moments: Tensor | None = None


# -- the two options of activations/ -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """Both models run while the dictionary trains; nothing is written.

    buffer       rows held for shuffling        dtype   of these rows        fit_tokens   rows that statistics are fitted on
    """

    buffer: int
    dtype: str = "float32"
    fit_tokens: int = 20_000

    def source(
        self, pair: ModelPair, text: Text, streams: Sequence[Stream], *, tokens: int, moments: bool, key: str
    ) -> Source:
        return LiveRows(pair, text, streams, dtype=getattr(torch, self.dtype), moments=moments)


@dataclass(frozen=True)
class Stored:
    """Both models run once and write bfloat16 rows under `folder`/<key of models, text and streams>; dictionaries read
    those. Choose it to train several dictionaries on the same streams one after the other."""

    buffer: int
    folder: str
    dtype: str = "bfloat16"
    fit_tokens: int = 20_000

    def source(
        self, pair: ModelPair, text: Text, streams: Sequence[Stream], *, tokens: int, moments: bool, key: str
    ) -> Source:
        live = LiveRows(pair, text, streams, dtype=torch.bfloat16, moments=moments)
        width = sum(stream.width for stream in streams)
        count = len(streams) if moments else 0
        folder = store(live, Path(self.folder) / key, tokens=tokens, width=width, moments=count)
        return StoredRows(folder, device=pair.device(streams[0].role), dtype=getattr(torch, self.dtype))


# -- shuffled --------------------------------------------------------------------------------------------------------


def take(source: Source, tokens: int) -> Rows:
    """The next `tokens` rows, for fitting statistics."""
    blocks, count = [], 0
    while count < tokens:
        blocks.append(next(source))
        count += len(blocks[-1].values)
    moments = None if blocks[0].moments is None else torch.cat([b.moments for b in blocks])[:tokens]
    return Rows(torch.cat([b.values for b in blocks])[:tokens], moments)


class ShuffledRows:
    """`steps` batches of `batch` rows. The buffer holds `capacity` rows; when half of them are used, their places are
    refilled and the order of all is drawn anew, so a batch is one gather and no row is copied twice.

    admits   [token, width] -> [token] bool; rows that it turns away (attention sinks) are counted in `dropped`
    """

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        capacity: int,
        steps: int,
        seed: int,
        admits: Callable[[Tensor], Tensor] | None = None,
    ):
        if capacity < 2 * batch:
            raise ActivationError(f"activations.buffer={capacity} must hold at least two batches of {batch} tokens.")
        self.source, self.admits = source, admits
        self.batch, self.capacity, self.steps = batch, capacity, steps
        self.generator = torch.Generator().manual_seed(seed)
        self.values: Tensor | None = None
        self.moments: Tensor | None = None
        self.order = torch.empty(0, dtype=torch.long)
        self.next_step = self.seen = self.dropped = 0
        self._surplus: Rows | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Rows]:
        while self.next_step < self.steps:
            if len(self.order) - self.batch < self.capacity // 2:
                self._refill()
            chosen, self.order = self.order[: self.batch], self.order[self.batch :]
            self.next_step += 1
            place = chosen.to(self.values.device)
            yield Rows(self.values[place].float(), None if self.moments is None else self.moments[place])

    def _refill(self) -> None:
        waiting = torch.zeros(self.capacity, dtype=torch.bool)
        waiting[self.order] = True
        empty = (~waiting).nonzero()[:, 0]
        filled = 0
        while filled < len(empty):
            rows = self._admitted()
            room = len(empty) - filled
            if len(rows.values) > room:
                self._surplus = Rows(rows.values[room:], None if rows.moments is None else rows.moments[room:])
                rows = Rows(rows.values[:room], None if rows.moments is None else rows.moments[:room])
            if self.values is None:
                self.values = rows.values.new_empty(self.capacity, rows.values.shape[1])
                self.moments = (
                    None if rows.moments is None else rows.moments.new_empty(self.capacity, *rows.moments.shape[1:])
                )
            place = empty[filled : filled + len(rows.values)].to(self.values.device)
            self.values[place] = rows.values
            if self.moments is not None:
                self.moments[place] = rows.moments
            filled += len(rows.values)
        order = torch.cat([self.order, empty])
        self.order = order[torch.randperm(len(order), generator=self.generator)]

    def _admitted(self) -> Rows:
        if self._surplus is not None:
            rows, self._surplus = self._surplus, None
            return rows
        rows = next(self.source)
        self.seen += len(rows.values)
        if self.admits is None:
            return rows
        kept = self.admits(rows.values)
        self.dropped += int((~kept).sum())
        if self.seen > 100_000 and self.dropped > 0.5 * self.seen:
            raise ActivationError(
                f"{self.dropped:,} of {self.seen:,} tokens have norms above the limit for attention sinks: "
                "raise dictionary.normalisation.sink_multiple or set it to null."
            )
        return Rows(rows.values[kept], None if rows.moments is None else rows.moments[kept])

    def state_dict(self) -> dict[str, Any]:
        """The whole position, buffer included."""
        return {
            "source": self.source.state_dict(),
            "values": self.values,
            "moments": self.moments,
            "order": self.order,
            "surplus": None if self._surplus is None else tuple(self._surplus),
            "generator": self.generator.get_state(),
            "counts": (self.next_step, self.seen, self.dropped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.values = None if state["values"] is None else state["values"].clone()
        self.moments = None if state["moments"] is None else state["moments"].clone()
        self.order = state["order"].clone()
        self._surplus = None if state["surplus"] is None else Rows(*state["surplus"])
        self.generator.set_state(state["generator"])
        self.next_step, self.seen, self.dropped = state["counts"]
