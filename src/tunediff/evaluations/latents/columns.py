"""Columns of values per latent, by name, for expressions; each is computed when an expression names it.

relative_norm   1 is tuned-only, as in geometry.py        rate       share of held-out tokens on which it fires
cosine          between its two decoder rows              maximum, mean    of its activations there
norm            of its code                               layer, number    where it stands
auroc.<label>   how well it tells the label at any held-out token
influence       mean influence in attribution graphs, from the table graph_influence; 0 where no graph has it
<table>.<column>    of any other table of the run folder with one row a latent, such as latents.nu_error
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow
import torch
from torch import Tensor

from tunediff.dictionary import Dictionary, TranscoderAdapter
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.evaluations.latents.expressions import Expression, Path, nearest
from tunediff.evaluations.latents.statistics import decoder_cosine, relative_decoder_norm
from tunediff.evaluations.reading.label_alignment import aurocs
from tunediff.folders import added_to, columns_in, read_table
from tunediff.shapes import BASE, TUNED, Refused

AUROC, INFLUENCE = "auroc", "graph_influence"


def chosen_by_expression(trained: Trained, text: str, seen: LatentStatistics | None = None) -> list[int]:
    """The latents that an expression chooses; statistics are computed where `seen` is not given. Raises Refused where it
    chooses none, and where a column that it names cannot be had."""
    expression = checked(text)
    seen = trained.statistics if seen is None else seen

    def column(path: Path) -> Tensor:
        return (OWN[path[0]](trained, seen) if len(path) == 1 else _dotted(trained, path)).double().cpu()

    return expression.chosen(column, seen.alive)


def checked(text: str) -> Expression:
    """The expression of a text. Raises Refused for a text that is none, and for a name that no run has."""
    return Expression(text, tuple(OWN))


def layers_of(dictionary: Dictionary) -> Tensor | None:
    """Layer [latent] of each latent; None where each reads several layers."""
    layers = sorted({stream.layer for stream in dictionary.streams})
    if isinstance(dictionary, TranscoderAdapter):
        return torch.tensor(layers).repeat_interleave(dictionary.latents_per_layer)
    return torch.full((dictionary.latents,), layers[0]) if len(layers) == 1 else None


def _of_both(trained: Trained, name: str) -> None:
    if set(trained.roles) != {BASE, TUNED}:
        raise Refused(f"{name} compares two models, and this dictionary reads {', '.join(trained.roles)} only.")


def _relative_norm(trained: Trained, seen: LatentStatistics) -> Tensor:
    _of_both(trained, "relative_norm")
    return relative_decoder_norm(trained)


def _cosine(trained: Trained, seen: LatentStatistics) -> Tensor:
    _of_both(trained, "cosine")
    cosine = decoder_cosine(trained)
    if cosine is None:
        raise Refused("cosine: the models have different widths, so that decoder rows have no cosine.")
    return cosine


def _layer(trained: Trained, seen: LatentStatistics) -> Tensor:
    layers = layers_of(trained.dictionary)
    if layers is None:
        read = sorted({stream.layer for stream in trained.dictionary.streams})
        raise Refused(f"layer: each latent of this dictionary reads all of its layers, {', '.join(map(str, read))}.")
    return layers


def _influence(trained: Trained, seen: LatentStatistics) -> Tensor:
    if INFLUENCE not in _tables(trained):
        raise Refused(
            f"influence needs the table {INFLUENCE} of the run folder: evaluation=attribution_graphs writes it."
        )
    return _column(trained, INFLUENCE, "influence").nan_to_num(0.0)


OWN: dict[str, Callable[[Trained, LatentStatistics], Tensor]] = {
    "relative_norm": _relative_norm,
    "cosine": _cosine,
    "rate": lambda trained, seen: seen.rate,
    "maximum": lambda trained, seen: seen.maximum,
    "mean": lambda trained, seen: seen.mean,
    "norm": lambda trained, seen: trained.dictionary.code_norms().detach(),
    "layer": _layer,
    "number": lambda trained, seen: torch.arange(trained.dictionary.latents),
    "influence": _influence,
}


def _dotted(trained: Trained, path: Path) -> Tensor:
    table, *rest = path
    if table == AUROC:
        return _auroc(trained, ".".join(rest))
    tables = _tables(trained)
    if table not in tables:
        holders = [f"{name}.{rest[0]}" for name, columns in tables.items() if rest[0] in columns]
        legal = [AUROC, *tables]
        hint = f"The column is {' or '.join(holders)}." if holders else nearest(table, legal)
        raise Refused(f"{'.'.join(path)}: the run folder has no table '{table}' with a column `latent`. {hint}")
    joined = [one.join(rest) for one in "/."]  # rate/thinking is written segments.rate.thinking
    name = next((one for one in joined if one in tables[table]), None)
    if name is None:
        there = [one.replace("/", ".") for one in tables[table]]
        raise Refused(f"{'.'.join(path)}: {table} has no such column. {nearest('.'.join(rest), there)}")
    return _column(trained, table, name)


def _auroc(trained: Trained, label: str) -> Tensor:
    there = sorted({name for batch in trained.held_out for name in batch.labels})
    if label not in there:
        raise Refused(
            f"{AUROC}.{label}: the held-out text has no such label, only {', '.join(there) or 'none at all'}."
        )
    return aurocs(trained, label)


def _tables(trained: Trained) -> dict[str, list[str]]:
    """The run folder's tables about latents, each with its other columns."""
    files = [] if trained.folder is None else sorted((trained.folder / "tables").glob("*.parquet"))
    names = {path.stem: columns_in(path) for path in files}
    return {table: [name for name in found if name != "latent"] for table, found in names.items() if "latent" in found}


def _column(trained: Trained, table: str, name: str) -> Tensor:
    """Values [latent] of a table's column, NaN for latents that the table does not have."""
    assert trained.folder is not None, "the table was found in the run folder"
    if f"tables/{table}.parquet" in added_to(trained.folder):
        raise Refused(
            f"{trained.folder / 'tables' / table}.parquet is not of this run: its manifest.json does not list it."
        )
    read = read_table(trained.folder / "tables" / f"{table}.parquet", columns=["latent", name])
    kind, latents = read.schema.field(name).type, read["latent"].to_pylist()
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise Refused(f"{table}.{name} holds no numbers.")
    if len(set(latents)) < len(latents):
        raise Refused(f"{table}.{name} has several rows for one latent: it is no column of latents.")
    values = torch.full((trained.dictionary.latents,), torch.nan, dtype=torch.float64)
    given = [torch.nan if value is None else float(value) for value in read[name].to_pylist()]
    values[torch.tensor(latents, dtype=torch.long)] = torch.tensor(given, dtype=torch.float64)
    return values
