"""A run folder -> report.html: one file that opens from disk, without server or network.

Python gathers what findings.json and the tables say; the scripts build the page from it. What is needed at once stands in
the page as JSON; latents, and their details a few hundred at a time, are packed (gzip, base64) and unpacked when they are
first looked at. Nothing of the data is ever parsed as HTML.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.resources
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from tunediff import folders
from tunediff.folders import figures_of, findings_of, write_atomically
from tunediff.report.behaviour import behaviour, tells_behaviour
from tunediff.report.graphs import graphs, tells_graphs
from tunediff.shapes import SEGMENTS
from tunediff.text import PLACEHOLDER, text_of

CURVE_POINTS = 300
CHUNK = 200  # latents whose details are packed together
PACKED = '<script type="application/octet-stream" id="packed-{}">{}</script>'
# this script and this style, and no other; nothing is fetched but what the page itself carries
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src data:; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SHARES = 9999  # activations are kept as whole numbers of the largest one of their example
RUN_SCRIPTS = (
    "base.js",
    "plots.js",
    "whiskers.js",
    "figures.js",
    "tokens.js",
    "latents.js",
    "outputs.js",
    "layered.js",
    "graphs.js",
    "claims.js",
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
    found = findings_of(folder)
    payload = {
        **found,
        "folder": folder.name,
        "training": thinned(read_table(folder, "training")),
        "chunk": CHUNK,
        "shares": SHARES,
        "segment_names": SEGMENTS,
        "placeholder": PLACEHOLDER.pattern,
        "explored": {},
        "claims": read_table(folder, "claims"),
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
            "tables": list(details.tables),
        }
        parts = {"latents": _finite({**latents, **details.peaks()}), "words": details.words()}
        parts |= {"vocabulary": details.vocabulary, **{f"details-{n}": chunk for n, chunk in details.chunks()}}
        packed |= {explored.prefix + name: part for name, part in parts.items()}
    for part, tells, told in (("behaviour", tells_behaviour, behaviour), ("graphs", tells_graphs, graphs)):
        paths = [path for path in sorted((folder / "tables").glob("*.parquet")) if tells(path.stem)]
        shown, written = told({path.stem: folders.read_table(path) for path in paths})
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
    style = (parts / "page.css").read_text(encoding="utf-8")
    script = "\n".join((parts / name).read_text(encoding="utf-8") for name in scripts)
    pieces = {
        "POLICY": POLICY.format(script=_hash(script), style=_hash(style)),
        "TITLE": html.escape(_encodable(title)),
        "STYLE": style,
        "SCRIPT": script,
        # no closing tag and no comment can be spelled inside the script element
        "PAYLOAD": text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        "PACKED": "\n".join(PACKED.format(name, pack(value)) for name, value in (packed or {}).items()),
    }
    page = (parts / "page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: pieces[found[1]], page)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
                table = folders.read_table(path)
                table = table.rename_columns(["latent" if c == noun else c for c in table.column_names])
                order = numpy.argsort(table["latent"].to_numpy(), kind="stable")
                self.tables[name] = table.take(order)
        named = self.tables["segments"].column_names if "segments" in self.tables else []
        self.places = [name.removeprefix("rate/") for name in named if name.startswith("rate/")]
        self.vocabulary: list[str] = []
        self.segment_names: list[str] = []
        self.windows: dict[str, list] = {}
        if "examples" in self.tables:
            self._read_examples(self.tables["examples"])

    def _read_examples(self, table: pyarrow.Table) -> None:
        """Columns of examples: tokens `t` as numbers into one vocabulary, activations `a` as shares of the `largest` of their
        example, segments `s` as one digit a token."""
        lists = {name: table[name].combine_chunks() for name in ("tokens", "activations", "segments")}
        lengths = numpy.diff(lists["tokens"].offsets.to_numpy())
        tokens = lists["tokens"].flatten().dictionary_encode()
        values = numpy.nan_to_num(lists["activations"].flatten().to_numpy(zero_copy_only=False))
        example = numpy.repeat(numpy.arange(len(table)), lengths)
        largest = numpy.zeros(len(table))
        numpy.maximum.at(largest, example, numpy.abs(values))
        shares = numpy.round(SHARES * values / numpy.maximum(largest, 1e-30)[example])
        # what is active never rounds to nothing
        shares = numpy.where((values != 0) & (shares == 0), numpy.sign(values), shares).astype(int)
        named = lists["segments"].flatten().dictionary_encode()
        digits = (named.indices.to_numpy() + ord("0")).astype(numpy.uint8).tobytes().decode()
        self.vocabulary, self.segment_names = tokens.dictionary.to_pylist(), named.dictionary.to_pylist()
        bounds = list(itertools.pairwise([0, *numpy.cumsum(lengths).tolist()]))
        whole = {"t": tokens.indices.to_pylist(), "a": shares.tolist(), "s": digits}
        self.windows = {name: [some[low:high] for low, high in bounds] for name, some in whole.items()}
        self.windows["largest"] = [float(f"{value:.5g}") for value in largest]

    def peaks(self) -> dict[str, list]:
        """Column "fires_on": the distinct tokens that the strongest examples of each latent peak on, three at most."""
        if "examples" not in self.tables:
            return {}
        table, met = self.tables["examples"], defaultdict(dict)
        columns = (table[name].to_pylist() for name in ("latent", "position", "activation"))
        for latent, position, activation, tokens in zip(*columns, self.windows["t"], strict=True):
            if activation and len(met[latent]) < 3:
                met[latent][self.vocabulary[tokens[position]]] = None
        return {"fires_on": [list(met[latent]) for latent in self.latents]}

    def words(self) -> dict[str, Any]:
        """The index of the search: distinct words, and for each latent which of them occur in its strongest examples and in the
        tokens it writes. Tokens that it fires on or writes are words with their spaces and line breaks, too."""
        met: dict[int, set[str]] = defaultdict(set)
        if "examples" in self.tables:
            table, lower = self.tables["examples"], [word.lower() for word in self.vocabulary]
            plain = [text_of([word]).lower() for word in self.vocabulary]
            more = ["".join(text.split()) != word for text, word in zip(plain, lower, strict=True)]
            columns = (table[name].to_pylist() for name in ("latent", "kind"))
            for latent, kind, tokens, values in zip(*columns, self.windows["t"], self.windows["a"], strict=True):
                if kind == "strongest":
                    met[latent].update("".join([plain[token] for token in tokens]).split())
                    met[latent].update(lower[t] for t, a in zip(tokens, values, strict=True) if a and more[t])
        if "logit_effect" in self.tables:
            table = self.tables["logit_effect"]
            raised = table.filter(pyarrow.compute.call_function("greater", [table["sign"], 0]))
            for latent, token in zip(raised["latent"].to_pylist(), raised["token"].to_pylist(), strict=True):
                met[latent].update({token.lower(), *token.lower().split()})
        numbers: dict[str, int] = {}
        indexed = [sorted(numbers.setdefault(word, len(numbers)) for word in met[latent]) for latent in self.latents]
        return {"words": list(numbers), "of": indexed}

    def chunks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the index of each chunk, with its latents' details under their indices."""
        details: dict[str, dict[str, Any]] = {str(latent): {} for latent in self.latents}
        for name, table in self.tables.items():
            plain = [c for c in table.column_names if c not in ("latent", "tokens", "activations", "segments")]
            columns = {column: _finite(table[column].to_pylist()) for column in plain}
            columns |= self.windows if name == "examples" else {}
            rows = table["latent"].to_numpy()
            bounds = (numpy.searchsorted(rows, self.latents, side).tolist() for side in ("left", "right"))
            for detail, low, high in zip(details.values(), *bounds, strict=True):
                if high > low:
                    detail[name] = {column: some[low:high] for column, some in columns.items()}
        entries = list(details.items())
        for first in range(0, len(entries), CHUNK):
            yield first // CHUNK, dict(entries[first : first + CHUNK])


def read_table(folder: Path, name: str) -> dict[str, list] | None:
    path = folder / "tables" / f"{name}.parquet"
    return folders.read_table(path).to_pydict() if path.exists() else None


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
