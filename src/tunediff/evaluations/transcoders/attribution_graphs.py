"""Causes of the tuned behaviour: the attribution graphs of prompts that it follows, in the model with transcoder
adapters, and the latents through which most of them runs. (RelP graphs as in arXiv 2602.20904; see attribution/.)

By default the prompts are held-out documents up to the first token of a hesitation. Of each prompt every active latent is
explained as well as the likeliest next tokens; tables hold the part of a graph that carries most of its influence.

completeness_error   mean of |target - (edges + rest + constant)| over mean |target|, of all targets of a graph
influence            of a latent: its share of the influence of all latents of a graph, positions summed; mean over graphs
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.attribution import Graph, Pruned, attribute, check_share, prune, summed, write_graph
from tunediff.benchmarks import hesitations
from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.given import Needs, Trained, Work
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, Finding, Note, Refused, Stream, Table
from tunediff.text import Batch, Spelling, encode, text_of

SETTING = "evaluation.attribution_graphs"
CARRY = 0.8  # share of the summed influence whose latents are counted


class GraphPrompt(NamedTuple):
    """A prompt of ids [position], with the token that follows them."""

    ids: Tensor
    target: int


@dataclass(kw_only=True)
class AttributionGraphs:
    """prompts     texts, or .txt files of one each, whose last token is predicted; null: held-out text up to `at`
    at          a label: the token that is predicted is the first token of a stretch with it. In a text without it, a token that spells
                one of the pair's hesitations
    count       most prompts, of as many documents as there are
    context     most tokens of a prompt: its last ones
    logits_mass, most_logits   next tokens that are explained: the likeliest up to this probability, and no more than so many
    most_latents   most nodes, chosen by influence
    node_threshold, edge_threshold   shares of the influence that nodes and edges keep, as in circuit-tracer
    drop_first  true: the first position is no source, and its latents are no nodes, as in the paper's code
    drawn       most prompts whose nodes and edges are tables
    batch       number of targets whose gradients are taken at once
    """

    prompts: Sequence[str] | None = None
    at: str = "hesitation"
    count: int = 20
    context: int = 512
    logits_mass: float = 0.95
    most_logits: int = 10
    most_latents: int = 10_000
    node_threshold: float = 0.8
    edge_threshold: float = 0.98
    drop_first: bool = True
    drawn: int = 8
    batch: int = 64

    needs = Needs.ADAPTER

    def __post_init__(self):
        for name in ("node_threshold", "edge_threshold"):
            check_share(f"{SETTING}.{name}", getattr(self, name))
        for name in ("count", "context", "most_latents", "batch"):
            if getattr(self, name) < 1:
                raise Refused(f"{SETTING}.{name}={getattr(self, name)}: give at least 1.")

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """A gradient through a prompt for each node, as much as two passes, where `written` tokens take two."""
        return Work(written=self.count * self.context * (self.most_latents + self.most_logits), together=self.batch)

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        """Attributes each prompt. Raises Refused for a dictionary that is no transcoder adapter."""
        adapter = trained.adapter("attribution_graphs")
        prompts = self._found(trained) if self.prompts is None else self._given(trained, self.prompts)
        if not prompts:
            yield Note(
                f"attribution_graphs: no held-out token is labelled '{self.at}' or spells one of {list(trained.pair.hesitations)}: "
                f"give {SETTING}.prompts, or more held-out text."
            )
            return
        spelled = Spelling(trained.pair.tokenizers[0])
        graphs, nodes, edges = [], [], defaultdict(list)
        influences, kept_in = [], Counter()
        for number, prompt in enumerate(tqdm(prompts, desc="attribution graphs", leave=False, delay=2)):
            graph = attribute(
                trained.pair.models[ADAPTER],
                adapter,
                prompt.ids,
                logits_mass=self.logits_mass,
                most_logits=self.most_logits,
                most_latents=self.most_latents,
                drop_first=self.drop_first,
                batch=self.batch,
            )
            pruned = prune(graph.edges, graph.probability, nodes=self.node_threshold, links=self.edge_threshold)
            slug = f"prompt-{number:03d}"
            if trained.folder is not None:
                write_graph(
                    trained.folder / "graphs",
                    graph,
                    pruned,
                    slug=slug,
                    tokens=spelled.of(graph.ids.tolist()),
                    predicted=list(map(spelled, graph.logits.tolist())),
                    depth=len(adapter.streams),
                    scan=trained.folder.name,
                    node_threshold=self.node_threshold,
                )
            graphs.append({"graph": slug, **_described(prompt, graph, pruned, spelled)})
            if number < self.drawn:
                nodes += ({"graph": slug, **node} for node in _nodes(graph, pruned, spelled, len(adapter.layers)))
                _add_edges(edges, slug, graph, pruned)
            influences.append((graph.number, pruned.influence[: len(graph.number)]))
            kept_in.update(graph.number[pruned.latents].unique().tolist())
        yield from (Table.of("graphs", graphs), Table.of("graph_nodes", nodes), Table("graph_edges", dict(edges)))
        influence = summed(influences, adapter.latents)
        yield _influence_table(influence, kept_in, adapter)
        yield from self._findings(trained, graphs, influence)
        if trained.folder is not None:
            yield Note(
                f"graphs/ holds {len(prompts)} graphs for circuit-tracer: circuit-tracer start-server --graph_file_dir "
                "<run folder>/graphs"
            )

    # -- prompts -------------------------------------------------------------------------------------------------------

    def _given(self, trained: Trained, texts: Sequence[str]) -> list[GraphPrompt]:
        prompts = []
        for text in texts:
            if text.endswith(".txt"):
                if not Path(text).is_file():
                    raise Refused(f"{SETTING}.prompts names {text}, and there is no such file.")
                text = Path(text).read_text(encoding="utf-8").rstrip("\n")
            ids = encode(trained.pair.tokenizers[0], text)["input_ids"]
            if len(ids) < 2:
                raise Refused(
                    f"{SETTING}.prompts has {text!r}: a prompt needs two tokens, the last of which is predicted."
                )
            prompts.append(self._cut(torch.tensor(ids), len(ids) - 1))
        return prompts

    def _found(self, trained: Trained) -> list[GraphPrompt]:
        """Prompts that end at the first place of each document, then at the second of each, until there are enough."""
        spelled, met, places = Spelling(trained.pair.tokenizers[0]), Counter(), []
        known = any(self.at in batch.labels for batch in trained.held_out)
        for batch in trained.held_out:
            here = batch.beginning(self.at) if known else _words(batch, spelled, trained.pair.hesitations)
            here = here & (batch.position > 0)
            for token in here.nonzero()[:, 0].tolist():
                document = int(batch.document[token])
                ids = batch.ids[0][int(batch.sequence[token])]
                places.append((met[document], len(places), self._cut(ids, int(batch.position[token]))))
                met[document] += 1
        return [prompt for _, _, prompt in sorted(places, key=lambda place: place[:2])[: self.count]]

    def _cut(self, ids: Tensor, place: int) -> GraphPrompt:
        return GraphPrompt(ids[max(0, place - self.context) : place], int(ids[place]))

    # -- what is found -------------------------------------------------------------------------------------------------

    def _findings(self, trained: Trained, graphs: Sequence[dict[str, Any]], influence: Tensor) -> Iterator[Finding]:
        count = len(graphs)
        names = ("completeness_error", "probability")
        errors, probabilities = (sum(row[name] for row in graphs) / count for name in names)
        where = "attribution_graphs"
        meaning = (
            f"what edges, rest and constant lack of the targets, as a share of their size; mean over {count} graphs"
        )
        yield Finding(f"{where}/completeness_error", errors, meaning=meaning)
        meaning = f"probability of the token that follows, by the model with adapters; mean over {count} prompts"
        yield Finding(f"{where}/target_probability", probabilities, meaning=meaning)
        share = influence.sort(descending=True).values.cumsum(0) / influence.sum().clamp(min=1e-30)
        carrying = min(int((share < CARRY).sum()) + 1, int((influence > 0).sum()))
        meaning = f"latents that carry {CARRY:.0%} of the influence of all latents, summed over {count} graphs"
        yield Finding(f"{where}/carrying", carrying, meaning=meaning)
        living = int(trained.statistics.alive.sum())
        if living:
            meaning = f"these as a share of the {living:,} latents that fire in the held-out text"
            yield Finding(f"{where}/carrying_share", carrying / living, meaning=meaning)


def _words(batch: Batch, spelled: Callable[[int], str], words: Sequence[str]) -> Tensor:
    """Mask [token] of the tokens that spell one of the words."""
    return torch.tensor([hesitations(spelled(token), words) > 0 for token in batch.token.tolist()])


def _described(prompt: GraphPrompt, graph: Graph, pruned: Pruned, spelled: Spelling) -> dict[str, Any]:
    """The columns of a graph's row, after its name."""
    return {
        "prompt": text_of(spelled.of(graph.ids.tolist())),
        "target": spelled(prompt.target),
        "probability": float(graph.prediction[prompt.target]),
        "active": len(graph.number) + graph.left_out,
        "nodes": len(graph.number) + len(graph.ids) + len(graph.logits),
        "latents_kept": int(pruned.latents.sum()),
        "edges_kept": int(pruned.edges.sum()),
        "completeness_error": graph.completeness_error,
        "drop_first": graph.drop_first,
    }


def _nodes(graph: Graph, pruned: Pruned, spelled: Spelling, depth: int) -> Iterator[dict[str, Any]]:
    """A node's number is its place among the graph's latents, positions and logits; embeddings stand in layer -1, logits
    above the last. Of a logit, activation is its distance from the mean of all, and influence its probability."""
    names = ("node", "kind", "layer", "position", "token", "latent", "activation", "influence")
    latents, positions = len(graph.number), len(graph.ids)
    words = spelled.of(graph.ids.tolist())
    rows = []
    for n in pruned.latents.nonzero()[:, 0].tolist():
        place = int(graph.position[n])
        found = (int(graph.number[n]), float(graph.activation[n]), float(pruned.influence[n]))
        rows.append((n, "latent", int(graph.layer[n]), place, words[place], *found))
    for place, word in enumerate(words):
        found = (-1, None, float(pruned.influence[latents + place]))
        rows.append((latents + place, "embedding", -1, place, word, *found))
    for n, token in enumerate(graph.logits.tolist()):
        found = (-1, float(graph.value[latents + n]), float(graph.probability[n]))
        rows.append((latents + positions + n, "logit", depth, positions - 1, spelled(token), *found))
    return (dict(zip(names, row, strict=True)) for row in rows)


def _add_edges(columns: dict[str, list], slug: str, graph: Graph, pruned: Pruned) -> None:
    latents, positions = len(graph.number), len(graph.ids)
    targets, sources = pruned.edges.nonzero().T
    columns["graph"] += [slug] * len(targets)
    columns["source"] += sources.tolist()
    columns["target"] += torch.where(targets < latents, targets, targets + positions).tolist()
    columns["weight"] += graph.edges[targets, sources].tolist()


def _influence_table(influence: Tensor, kept_in: Counter, adapter: TranscoderAdapter) -> Table:
    """The table of latents with any influence, the strongest first."""
    order = influence.argsort(descending=True, stable=True)[: int((influence > 0).sum())].tolist()
    columns = {
        "latent": order,
        "layer": [adapter.place_of(number)[0] for number in order],
        "influence": influence[order].tolist(),
        "graphs": [kept_in[number] for number in order],
    }
    return Table("graph_influence", columns)
