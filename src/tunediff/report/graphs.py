"""Tables of attribution graphs -> what the page draws of them: a list of the graphs, and each one packed by itself.

A packed graph names its nodes by their place, its tokens by their number in its own list, and holds its edges with the
strongest first, so that the page draws as many as are asked for. Knows nothing of how an edge was weighed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import pyarrow
import pyarrow.compute

from tunediff.shapes import Refused

GRAPHS, NODES, EDGES, INFLUENCE = "graphs", "graph_nodes", "graph_edges", "graph_influence"
LETTERS = {"latent": "a", "embedding": "e", "logit": "l"}
MOST_NODES = 1200  # of a graph: beyond them they lie on top of each other
MOST_EDGES = 8000
DIGITS = 3  # of a weight, an activation and an influence, which are drawn as widths and sizes


def tells_graphs(name: str) -> bool:
    """True for the name of a table of attribution graphs."""
    return name in (GRAPHS, NODES, EDGES, INFLUENCE)


def graphs(tables: Mapping[str, pyarrow.Table]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data that the page needs at once, empty where there are no graphs, and those it unpacks later, by name. Raises
    Refused for an edge between nodes that its graph does not have."""
    shown: dict[str, Any] = {}
    packed: dict[str, Any] = {}
    if {GRAPHS, NODES, EDGES} <= tables.keys():
        told, drawn = tables[GRAPHS], set(tables[NODES]["graph"].to_pylist())
        listed = told.take([n for n, graph in enumerate(told["graph"].to_pylist()) if graph in drawn]).to_pydict()
        for n, graph in enumerate(listed["graph"]):
            packed[f"graph-{n}"] = _graph(graph, _of(tables[NODES], graph), _of(tables[EDGES], graph))
        shown |= {"list": listed, "left_out": len(told) - len(listed["graph"])}
    if INFLUENCE in tables and len(tables[INFLUENCE]):
        influence = tables[INFLUENCE]
        order = numpy.argsort(-influence["influence"].to_numpy(), kind="stable")
        packed["graph-influence"] = influence.take(order).to_pydict()
        shown["influence"] = True
    return shown, packed


def _of(table: pyarrow.Table, graph: str) -> pyarrow.Table:
    return table.filter(pyarrow.compute.call_function("equal", [table["graph"], graph]))


def _graph(graph: str, nodes: pyarrow.Table, edges: pyarrow.Table) -> dict[str, Any]:
    """Nodes by columns and edges by columns, by |weight|. Where there are too many nodes, latents of little influence are
    left out; embeddings that no edge leaves always are, for most of a long prompt has no part in what follows it."""
    ends = {side: edges[side].to_pylist() for side in ("source", "target")}
    kinds, names = nodes["kind"].to_pylist(), nodes["node"].to_pylist()
    unknown = set(ends["source"]).union(ends["target"]).difference(names)
    if unknown:
        raise Refused(f"Graph {graph!r} has edges of node {min(unknown)!r}, which {NODES} does not list.")
    sources, latent = set(ends["source"]), numpy.array([kind == "latent" for kind in kinds], dtype=bool)
    influence = numpy.abs(numpy.nan_to_num(nodes["influence"].to_numpy().astype(float)))
    told = [n for n in numpy.lexsort((-influence, latent)).tolist() if kinds[n] != "embedding" or names[n] in sources]
    kept = told[:MOST_NODES]
    nodes = nodes.take(kept)
    vocabulary: dict[str, int] = {}
    return {
        **{name: nodes[name].to_pylist() for name in ("layer", "position", "latent")},
        "kind": "".join(LETTERS[kinds[n]] for n in kept),
        "token": [vocabulary.setdefault(token, len(vocabulary)) for token in nodes["token"].to_pylist()],
        **{name: _rounded(nodes[name].to_numpy()) for name in ("activation", "influence")},
        "vocabulary": list(vocabulary),
        "left_out": len(told) - len(kept),
        "edges": len(edges),
        **_edges(ends, edges["weight"].to_numpy().astype(float), {names[n]: place for place, n in enumerate(kept)}),
    }


def _edges(ends: Mapping[str, list], weights: numpy.ndarray, place: Mapping[Any, int]) -> dict[str, list]:
    """The strongest edges between nodes that are kept."""
    strongest = numpy.argsort(-numpy.abs(weights), kind="stable").tolist()
    kept = [n for n in strongest if ends["source"][n] in place and ends["target"][n] in place][:MOST_EDGES]
    return {side: [place[nodes[n]] for n in kept] for side, nodes in ends.items()} | {"weight": _rounded(weights[kept])}


def _rounded(values: numpy.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
