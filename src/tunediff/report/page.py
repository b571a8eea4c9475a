"""A run folder -> report.html: one file that opens from disk, without server or network.

Python gathers what findings.json and the tables say; the scripts build the page from it. What is needed at once stands in
the page as JSON; latents, and their details a few hundred at a time, are packed (gzip, base64) and unpacked when they are
first looked at. Nothing of the data is ever parsed as HTML.
"""

from __future__ import annotations

import base64
import gzip
import html
import importlib.resources
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from tunediff.folders import figures_of, write_atomically
from tunediff.report.behaviour import behaviour, tells_behaviour
from tunediff.report.graphs import graphs, tells_graphs

CURVE_POINTS = 300
CHUNK = 200  # latents whose details are packed together
SHARES = 9999  # activations are kept as whole numbers of the largest one of their example
RUN_SCRIPTS = (
    "base.js",
    "plots.js",
    "whiskers.js",
    "figures.js",
    "latents.js",
    "outputs.js",
    "layered.js",
    "graphs.js",
    "page.js",
)


class Explored(NamedTuple):
    """Units that the page lets read one by one: their table, what is shown of one and the table it is kept in, how their
    packed parts begin, and columns of another table that has a row for some of them."""

    table: str
    details: dict[str, str]
    prefix: str
    of_some: dict[str, tuple[str, ...]]


# by the column that numbers them
EXPLORED = {
    "latent": Explored(
        "latents",
        {name: name for name in ("examples", "segments", "neighbours", "logit_effect")},
        prefix="",
        of_some={"latent_classes": ("class", "domain", "mechanism", "reason")},
    ),
    "unit": Explored("adapter_units", {"examples": "adapter_examples"}, prefix="unit-", of_some={}),
}


def write_report(folder: Path) -> Path:
    """Writes folder/report.html atomically and returns its path. A missing table leaves its part out, in words."""
    found = json.loads((folder / "findings.json").read_text())
    payload = {
        **found,
        "folder": folder.name,
        "training": thinned(read_table(folder, "training")),
        "chunk": CHUNK,
        "shares": SHARES,
        "explored": {},
    }
    packed = {"figures": _finite(figures_of(folder))}
    for noun, explored in EXPLORED.items():
        latents = read_table(folder, explored.table)
        if not latents:
            continue
        # an evaluation alone may bring its own column and no other
        latents["latent"] = latents.pop(noun, list(range(len(next(iter(latents.values()))))))
        for table, names in explored.of_some.items():
            latents |= _placed(read_table(folder, table), noun, names, latents["latent"])
        details = Details(folder, latents["latent"], explored.details, noun)
        payload["explored"][noun] = {
            "prefix": explored.prefix,
            "places": details.places,
            "segments": details.segment_names,
            "tables": details.present,
        }
        parts = {"latents": _finite({**latents, **details.peaks()}), "words": details.words()}
        parts |= {"vocabulary": details.vocabulary, **{f"details-{n}": chunk for n, chunk in details.chunks()}}
        packed |= {explored.prefix + name: part for name, part in parts.items()}
    for part, tells, told in (("behaviour", tells_behaviour, behaviour), ("graphs", tells_graphs, graphs)):
        paths = [path for path in sorted((folder / "tables").glob("*.parquet")) if tells(path.stem)]
        shown, written = told({path.stem: pyarrow.parquet.read_table(path) for path in paths})
        if shown:
            payload[part] = shown
            packed |= {name: _finite(value) for name, value in written.items()}
    title = f"tunediff: {found['study'].get('model_pair', '')}"
    write_atomically(folder / "report.html", assemble(payload, title=title, scripts=RUN_SCRIPTS, packed=packed))
    return folder / "report.html"


def assemble(
    payload: dict[str, Any], *, title: str, scripts: tuple[str, ...], packed: dict[str, Any] | None = None
) -> str:
    """The page as one text: its data, the style, and its scripts in their order."""
    parts = importlib.resources.files("tunediff.report") / "web"
    text = _json(_finite(payload))
    pieces = {
        "TITLE": html.escape(_encodable(title)),
        "STYLE": (parts / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((parts / name).read_text(encoding="utf-8") for name in scripts),
        # no closing tag and no comment can be spelled inside the script element
        "PAYLOAD": text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        "PACKED": "\n".join(
            f'<script type="application/octet-stream" id="packed-{name}">{pack(value)}</script>'
            for name, value in (packed or {}).items()
        ),
    }
    page = (parts / "page.html").read_text(encoding="utf-8")
    head, *rest = page.split("{{")
    return head + "".join(pieces[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


def pack(value: Any) -> str:
    """JSON of finite values, compressed, in letters that mean nothing to HTML."""
    return base64.b64encode(gzip.compress(_json(value).encode(), 5, mtime=0)).decode()


def _json(value: Any) -> str:
    return _encodable(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which no file can hold."""
    return text.encode(errors="replace").decode()


class Details:
    """Details of each latent, by chunks of latents: examples, segments, neighbours, logit effects. Each is
    columns, so that a hundred thousand examples are written in seconds."""

    def __init__(self, folder: Path, latents: list[int], tables: Mapping[str, str], noun: str):
        self.latents = latents
        self.tables: dict[str, pyarrow.Table] = {}
        for name, kept_in in tables.items():
            path = folder / "tables" / f"{kept_in}.parquet"
            if path.exists():
                table = pyarrow.parquet.read_table(path)
                table = table.rename_columns(["latent" if c == noun else c for c in table.column_names])
                order = numpy.argsort(table["latent"].to_numpy(), kind="stable")
                self.tables[name] = table.take(order)
        self.present = list(self.tables)
        segments = self.tables.get("segments")
        rates = [] if segments is None else [name for name in segments.column_names if name.startswith("rate/")]
        self.places = [name.removeprefix("rate/") for name in rates]
        self.vocabulary: list[str] = []
        self.segment_names: list[str] = []
        if "examples" in self.tables:
            self._read_examples(self.tables["examples"])

    def _read_examples(self, table: pyarrow.Table) -> None:
        """Tokens as numbers into one vocabulary, activations as shares of the largest of their example, segments as one
        digit a token."""
        lists = {name: table[name].combine_chunks() for name in ("tokens", "activations", "segments")}
        lengths = numpy.diff(lists["tokens"].offsets.to_numpy())
        self.starts = numpy.concatenate([[0], numpy.cumsum(lengths)])
        tokens = lists["tokens"].flatten().dictionary_encode()
        self.vocabulary, self.tokens = tokens.dictionary.to_pylist(), tokens.indices.to_pylist()
        values = numpy.nan_to_num(lists["activations"].flatten().to_numpy(zero_copy_only=False))
        example = numpy.repeat(numpy.arange(len(table)), lengths)
        largest = numpy.zeros(len(table))
        numpy.maximum.at(largest, example, numpy.abs(values))
        shares = numpy.round(SHARES * values / numpy.maximum(largest, 1e-30)[example])
        # what is active never rounds to nothing
        self.shares = numpy.where((values != 0) & (shares == 0), numpy.sign(values), shares).astype(int).tolist()
        self.largest = [float(f"{value:.5g}") for value in largest]
        named = lists["segments"].flatten().dictionary_encode()
        self.segment_names = named.dictionary.to_pylist()
        self.segments = (named.indices.to_numpy() + ord("0")).astype(numpy.uint8).tobytes().decode()

    def peaks(self) -> dict[str, list]:
        """Column "fires_on": the distinct tokens that the strongest examples of each latent peak on, three at most."""
        if "examples" not in self.tables:
            return {}
        table, met = self.tables["examples"], defaultdict(dict)
        columns = (table[name].to_pylist() for name in ("latent", "position", "activation"))
        for n, (latent, position, activation) in enumerate(zip(*columns, strict=True)):
            if activation and len(met[latent]) < 3:
                met[latent][self.vocabulary[self.tokens[self.starts[n] + position]]] = None
        return {"fires_on": [list(met[latent]) for latent in self.latents]}

    def words(self) -> dict[str, Any]:
        """The index of the search: distinct words, and for each latent which of them occur in its strongest examples and in the
        tokens it writes."""
        met: dict[int, set[str]] = defaultdict(set)
        if "examples" in self.tables:
            table, lower = self.tables["examples"], [word.lower() for word in self.vocabulary]
            kinds = table["kind"].to_pylist() if "kind" in table.column_names else ["strongest"] * len(table)
            for n, (latent, kind) in enumerate(zip(table["latent"].to_pylist(), kinds, strict=True)):
                if kind == "strongest":
                    here = self.tokens[self.starts[n] : self.starts[n + 1]]
                    met[latent].update("".join([lower[token] for token in here]).split())
        if "logit_effect" in self.tables:
            table = self.tables["logit_effect"]
            raised = table.filter(pyarrow.compute.call_function("greater", [table["sign"], 0]))
            for latent, token in zip(raised["latent"].to_pylist(), raised["token"].to_pylist(), strict=True):
                met[latent].update(token.lower().split())
        numbers: dict[str, int] = {}
        indexed = [sorted(numbers.setdefault(word, len(numbers)) for word in met[latent]) for latent in self.latents]
        return {"words": list(numbers), "of": indexed}

    def chunks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the index of each chunk, with its latents' details under their indices."""
        columns, bounds = {}, {}
        for name, table in self.tables.items():
            plain = [c for c in table.column_names if c not in ("latent", "tokens", "activations", "segments")]
            columns[name] = {column: _finite(table[column].to_pylist()) for column in plain}
            rows = table["latent"].to_numpy()
            bounds[name] = [numpy.searchsorted(rows, self.latents, side).tolist() for side in ("left", "right")]
        for first in range(0, len(self.latents), CHUNK):
            chunk = {}
            for n, latent in enumerate(self.latents[first : first + CHUNK], start=first):
                detail = chunk[str(latent)] = {}
                for name, values in columns.items():
                    low, high = (side[n] for side in bounds[name])
                    if high > low:
                        detail[name] = {column: some[low:high] for column, some in values.items()}
                        if name == "examples":
                            detail[name] |= self._windows(low, high)
            yield first // CHUNK, chunk

    def _windows(self, low: int, high: int) -> dict[str, Any]:
        """Tokens, activations and segments of examples from `low` to before `high`, one after the other, and how many
        each has."""
        here = slice(self.starts[low], self.starts[high])
        return {
            "t": self.tokens[here],
            "a": self.shares[here],
            "s": self.segments[here],
            "length": numpy.diff(self.starts[low : high + 1]).tolist(),
            "largest": self.largest[low:high],
        }


def read_table(folder: Path, name: str) -> dict[str, list] | None:
    path = folder / "tables" / f"{name}.parquet"
    return pyarrow.parquet.read_table(path).to_pydict() if path.exists() else None


def _placed(columns: dict[str, list] | None, noun: str, names: Sequence[str], units: list[int]) -> dict[str, list]:
    """These columns in the order of the units, null for those that have no row; none where there is no table."""
    if columns is None:
        return {}
    rows = {unit: n for n, unit in enumerate(columns[noun])}
    return {name: [columns[name][rows[unit]] if unit in rows else None for unit in units] for name in names}


def thinned(columns: dict[str, list] | None, points: int = CURVE_POINTS) -> dict[str, list] | None:
    """Curves of at most `points` points, the last among them, and all of a held-out loss, which is taken seldom."""
    if columns is None:
        return None
    length = len(columns["step"])
    every = max(1, math.ceil(length / points))
    seldom = [n for n, value in enumerate(columns.get("held_out_loss", ())) if value is not None]
    kept = sorted({*range(0, length, every), length - 1, *seldom[:points]})
    return {name: [values[n] for n in kept] for name, values in columns.items()}


def _finite(value: Any) -> Any:
    """The value for JSON, which has no NaN: what is not a finite number is null. Floats keep five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value
