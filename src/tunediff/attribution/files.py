"""A pruned graph -> the file that circuit-tracer's page shows (github.com/decoderesearch/circuit-tracer, 2025-11).

    <folder>/<slug>.json            metadata, qParams, nodes and links
    <folder>/graph-metadata.json    the metadata of every graph of the folder, which its page lists

There are no error nodes. A node's influence is cumulative, as theirs is: 0.2 means that it is among those with the first
fifth of all influence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunediff.attribution.graph import Graph
from tunediff.attribution.influence import Pruned
from tunediff.folders import as_written, make_folder, read_json, write_atomically
from tunediff.text import text_of

LISTED = "graph-metadata.json"
NODE = {  # the keys of a node, in their order, with what they are where a kind of node has nothing to say
    **dict.fromkeys(("node_id", "feature", "layer", "ctx_idx", "feature_type")),
    "token_prob": 0.0,
    "is_target_logit": False,
    "run_idx": 0,
    "reverse_ctx_idx": 0,
    "jsNodeId": None,
    "clerp": "",
    "influence": None,
    "activation": None,
}


def write_graph(
    folder: Path,
    graph: Graph,
    pruned: Pruned,
    *,
    slug: str,
    tokens: Sequence[str],
    predicted: Sequence[str],
    depth: int,
    scan: str,
    node_threshold: float,
) -> Path:
    """The path of the file. `tokens` spells the ids of the prompt, `predicted` those of the logits; `depth` is the number of
    layers, `scan` names the transcoders. A graph of the same slug is replaced."""
    make_folder(folder)
    metadata = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(tokens),
        "prompt": text_of(tokens),
        "node_threshold": node_threshold,
        "schema_version": 1,
    }
    nodes, links = _nodes_and_links(graph, pruned, predicted, depth)
    shown = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    content = {"metadata": metadata, "qParams": shown, "nodes": nodes, "links": links}
    path = folder / f"{slug}.json"
    write_atomically(path, json.dumps(content, ensure_ascii=False))
    listed = folder / LISTED
    with as_written(listed):
        others = [other for other in read_json(listed).get("graphs", []) if other["slug"] != slug]
    write_atomically(listed, json.dumps({"graphs": [*others, metadata]}, indent=1, ensure_ascii=False))
    return path


def _nodes_and_links(
    graph: Graph, pruned: Pruned, predicted: Sequence[str], depth: int
) -> tuple[list[dict], list[dict]]:
    latents, positions = len(graph.number), len(graph.ids)
    nodes: dict[int, dict] = {}  # by place among latents, positions and logits
    for n in pruned.latents.nonzero()[:, 0].tolist():
        layer, position, within = int(graph.layer[n]), int(graph.position[n]), int(graph.within[n])
        nodes[n] = NODE | {
            "node_id": f"{layer}_{within}_{position}",
            "feature": _paired(layer, within),
            "layer": str(layer),
            "ctx_idx": position,
            "feature_type": "cross layer transcoder",  # their page knows no other name for a transcoder's latent
            "jsNodeId": f"{layer}_{within}-0",
            "influence": float(pruned.cumulative[n]),
            "activation": float(graph.activation[n]),
        }
    for position, token in enumerate(graph.ids.tolist()):
        nodes[latents + position] = NODE | {
            "node_id": f"E_{token}_{position}",
            "feature": position,
            "layer": "E",
            "ctx_idx": position,
            "feature_type": "embedding",
            "jsNodeId": f"E_{token}-{position}",
            "influence": float(pruned.cumulative[latents + position]),
        }
    for n, (token, probability) in enumerate(zip(graph.logits.tolist(), graph.probability.tolist(), strict=True)):
        nodes[latents + positions + n] = NODE | {
            "node_id": f"{depth + 1}_{token}_{positions - 1}",
            "feature": token,
            "layer": str(depth + 1),
            "ctx_idx": positions - 1,
            "feature_type": "logit",
            "jsNodeId": f"L_{token}-{positions - 1}",
            "token_prob": probability,
            "is_target_logit": n == 0,
            "clerp": f'Output "{predicted[n]}" (p={probability:.3f})',
        }
    links = [
        {
            "source": nodes[source]["node_id"],
            "target": nodes[target if target < latents else target + positions]["node_id"],
            "weight": float(graph.edges[target, source]),
        }
        for target, source in pruned.edges.nonzero().tolist()
    ]
    return list(nodes.values()), links


def _paired(first: int, second: int) -> int:
    """Cantor's pairing: one number for layer and latent."""
    return (first + second) * (first + second + 1) // 2 + second
