"""Blocks of activations -> shards on disk -> the same blocks again, in the same order."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.activations.live import ActivationError, ActivationSource, LiveRows, Wanted
from tunediff.folders import as_written, locked, put, read_json, write_sealed
from tunediff.models import ModelPair
from tunediff.shapes import Precision, Refused, Rows, Stream
from tunediff.text import Text

log = logging.getLogger(__name__)

SHARD_ROWS = 262_144


def store(source: ActivationSource, folder: Path, *, tokens: int, width: int, moments: int) -> Path:
    """Writes at least `tokens` rows as bfloat16 shards with checksums, and returns the folder. A complete folder is kept.

    One that is not as it was written is stored anew.

    Layout: index.json, shard-00000.bin (contiguous rows [token, width]), moments-00000.bin (float32 [token, stream, 2])."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # another process may be writing these rows: they are then found whole
        try:
            found = read_index(folder)
        except Refused as refusal:
            log.warning("%s They are stored anew.", refusal)
            found = {}
        if found:
            log.info("Stored activations found at %s.", folder)
        else:
            (folder / "index.json").unlink(missing_ok=True)
            try:
                _store(source, folder, tokens=tokens, width=width, moments=moments)
            except BaseException:  # without an index they are nobody's, and a full disk needs the room
                for file in (*folder.glob("shard-*"), *folder.glob("moments-*")):
                    file.unlink(missing_ok=True)
                raise
    return folder


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of stored activations; empty where there is none. Raises Refused where it is not as it was written, or a
    shard has another length."""
    path = folder / "index.json"
    index = read_json(path)
    with as_written(path):
        for n, block in enumerate(index["blocks"] if index else ()):
            sizes = (block["rows"] * 2 * index["width"], block["rows"] * 8 * index["moments"])
            for name, size, _ in zip(_names(n), sizes, block["sha256"], strict=False):
                if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                    raise ValueError(f"{name} is not there with its {size:,} bytes")
    return index


def _names(shard: int) -> tuple[str, str]:
    """File names of the values and the moments of a shard."""
    return f"shard-{shard:05d}.bin", f"moments-{shard:05d}.bin"


def _store(source: ActivationSource, folder: Path, *, tokens: int, width: int, moments: int) -> None:
    for left in (*folder.glob("*.partial"), *folder.glob("shard-*"), *folder.glob("moments-*")):
        left.unlink()  # of a process that was killed while it wrote
    needed = tokens * (2 * width + 8 * moments)
    free = shutil.disk_usage(folder).free
    what = f"{tokens:,} tokens x {width} values"
    log.info("Storing %s: %.2f GB at %s (%.1f GB free).", what, needed / 1e9, folder, free / 1e9)
    if needed > free:
        raise ActivationError(
            f"Storing {what} needs {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free. "
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
            names = _names(len(shards))
            values = torch.cat([b.values for b in blocks]).bfloat16().cpu()
            try:
                sums = [_write(folder / names[0], values.view(torch.uint8).numpy().tobytes())]
                if moments:
                    extra = torch.cat([b.moments for b in blocks]).float().cpu()
                    sums.append(_write(folder / names[1], extra.numpy().tobytes()))
            except OSError as error:
                raise ActivationError(
                    f"Writing activations stopped after {written:,} of {tokens:,} tokens: {error.strerror} ({folder}). "
                    f"Nothing half-written is kept as finished. Free {needed / 1e9:.2f} GB or set activations.folder."
                ) from error
            shards.append({"rows": rows, "sha256": sums})
            written += rows
    index = {"rows": written, "width": width, "moments": moments, "dtype": "bfloat16", "blocks": shards}
    write_sealed(folder / "index.json", index)


def _write(path: Path, data: bytes) -> str:
    """Writes a file whole or not at all, and returns its checksum."""
    with put(path) as partial:
        partial.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@dataclass(eq=False)
class StoredRows(Iterator[Rows]):
    """Blocks of the rows in a folder written by `store`, in the order they were written. The checksum of a shard is compared
    when it is opened. With several processes each reads every `processes`-th block."""

    folder: Path
    streams: Sequence[Stream]
    _: KW_ONLY
    dtype: torch.dtype
    device: torch.device | str = "cpu"
    block: int = 8192
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        self.broken: dict[Stream, str] = {}  # what was stored is finite
        self.index = read_index(self.folder)
        self.load_state_dict({"shard": 0, "row": 0, "count": 0})

    def __next__(self) -> Rows:
        if self._values is None:
            self._values, self._moments = self._open(self.shard)
        if self.row >= len(self._values):
            self.shard, self.row = (self.shard + 1) % len(self.index["blocks"]), 0
            self._values, self._moments = self._open(self.shard)
        piece = slice(self.row, self.row + self.block)
        mine = self.count % self.processes == self.rank
        self.row, self.count = self.row + self.block, self.count + 1
        if not mine:
            return Rows(torch.empty(len(self._values[piece]), 0))
        moments = None if self._moments is None else self._moments[piece].to(self.device)
        return Rows(self._values[piece].to(self.device, self.dtype), moments)

    def _open(self, shard: int) -> tuple[Tensor, Tensor | None]:
        sums = self.index["blocks"][shard]["sha256"]
        raw = []
        for name, expected in zip(_names(shard), sums, strict=False):
            with as_written(self.folder / name):
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
        return {"shard": self.shard, "row": self.row, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.shard, self.row, self.count = state["shard"], state["row"], state["count"]
        self._values: Tensor | None = None
        self._moments: Tensor | None = None


@dataclass(frozen=True)
class Stored:
    """Both models run once and write bfloat16 rows under `folder`/<key of models, text and streams>, which dictionaries read.
    Choose it to train several dictionaries on the same streams one after the other.

    buffer       number of rows held for shuffling           dtype   precision in which rows are given
    fit_tokens   number of rows that statistics are fitted on
    """

    buffer: int
    folder: str
    dtype: Precision = "bfloat16"
    fit_tokens: int = 20_000

    def source(self, pair: ModelPair, text: Text, wanted: Wanted) -> ActivationSource:
        streams = wanted.streams
        live = LiveRows(pair, text, streams, dtype=torch.bfloat16, moments=wanted.moments)
        width = sum(stream.width for stream in streams)
        count = len(streams) if wanted.moments else 0
        folder = store(live, Path(self.folder) / wanted.key, tokens=wanted.tokens, width=width, moments=count)
        place = {"rank": wanted.rank, "processes": wanted.processes, "device": pair.device(streams[0].role)}
        return StoredRows(folder, streams, dtype=getattr(torch, self.dtype), **place)

    def disk(self, tokens: int, width: int) -> int:
        """Bytes that are written to disk."""
        return 2 * tokens * width
