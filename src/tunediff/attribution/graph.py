"""A prompt -> its attribution graph: which latents and tokens made each latent active and each logit what it is.

    edge[target, source] = value of the source * d target / d source          in the linearised model
    sum of the edges into a target + rest + constant = the target

Targets are latents, by their pre-activation, and logits less the mean of all logits. Sources are latents, and what enters
the first layer at each position. Both are exact, so that there are no error nodes: the base's MLP is part of the edges, as
in RelP (arXiv 2602.20904; linearised.py has the rules).

# Differs from the paper's code: it sets out from a latent's encoder row in the residual stream before its layer, and leaves
# out that layer's attention and norm, so that its edges into latents are those of another function and do not sum to them.
# These are gradients of the pre-activation itself. Edges into logits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunediff.attribution.influence import influence
from tunediff.attribution.linearised import Seen, head_of, linearised
from tunediff.dictionary import TranscoderAdapter
from tunediff.shapes import Refused

ROUND = 4  # batches between two rankings, where there are more latents than are wanted


@dataclass(frozen=True)
class Graph:
    """Targets are latents, then logits; sources are latents, then positions.

    ids          [position]           tokens of the prompt
    layer, position, within, number   [latent]  where each is active; within its layer, and counted over all layers
    activation   [latent]
    logits       [logit]              tokens
    probability  [logit]              that the model gives them
    prediction   [token]              probability of every next token
    edges        [target, source]
    value        [target]             pre-activation; logit less the mean of all logits
    constant     [target]             what biases contribute
    rest         [target]             what sources contribute that have no edge: latents beyond `most_latents`, and the first
                                      position where it was dropped
    left_out     how many active latents are no nodes
    drop_first   whether the first position is no source
    """

    ids: Tensor
    layer: Tensor
    position: Tensor
    within: Tensor
    number: Tensor
    activation: Tensor
    logits: Tensor
    probability: Tensor
    prediction: Tensor
    edges: Tensor
    value: Tensor
    constant: Tensor
    rest: Tensor
    left_out: int
    drop_first: bool

    @property
    def gap(self) -> Tensor:
        """[target]: what edges, rest and constant lack; rounding, where the linearisation is complete."""
        return self.value - self.edges.sum(1) - self.rest - self.constant

    @property
    def completeness_error(self) -> float:
        """Mean size of the gap over mean size of the targets."""
        return float(self.gap.abs().mean() / self.value.abs().mean())


def attribute(
    model: PreTrainedModel,
    adapter: TranscoderAdapter,
    ids: Tensor | Sequence[int],
    *,
    target: int | None = None,
    logits_mass: float = 0.95,
    most_logits: int = 10,
    most_latents: int = 10_000,
    batch: int = 64,
    drop_first: bool = False,
) -> Graph:
    """The graph of a prompt [position] in a model with the adapter beside its MLPs.

    target        the token whose logit is explained; None: the most probable, up to `logits_mass` of the probability and
                  `most_logits` of them
    most_latents  of more active ones these are nodes, chosen as they come by their influence on what is known so far
    batch         targets whose gradients are taken at once
    drop_first    the first position is no source, as in the paper's code: it collects attention and explains little
    """
    ids = torch.as_tensor(ids, dtype=torch.long)
    if ids.ndim != 1 or not len(ids):
        raise Refused(
            f"A prompt of shape {list(ids.shape)} is no row of tokens: attribution is of one prompt at a time."
        )
    device = next(model.parameters()).device
    with torch.enable_grad(), linearised(model) as seen:
        logits = model(input_ids=ids[None].to(device), use_cache=False, logits_to_keep=1).logits[0, -1]
        prediction = logits.detach().float().softmax(-1).cpu()
        tokens = _salient(prediction, logits_mass, most_logits) if target is None else torch.tensor([target])
        rows = _Rows(seen, batch, drop_first)
        rows.add(_demeaned(model, seen.last, tokens.to(device)), len(seen.active))
        rows.explain_latents(prediction[tokens], most_latents)
    return rows.graph(ids.cpu(), tokens, prediction, adapter.latents_per_layer)


class _Rows:
    """Rows of the edges as they are computed; columns are all active latents, then positions."""

    def __init__(self, seen: Seen, batch: int, drop_first: bool):
        self.seen, self.batch, self.drop_first = seen, batch, drop_first
        counts = [len(active) for active in seen.active.values()]  # layer by layer, as they are computed
        self.first = [sum(counts[:layer]) for layer in range(len(counts) + 1)]  # of each layer's latents
        self.layer = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        places = torch.cat(list(seen.places.values())).cpu()
        self.position, self.within = places.T
        self.columns = len(self.layer) + len(seen.embedded)
        self.edges: list[Tensor] = []
        self.constant: list[Tensor] = []
        self.value: list[Tensor] = []
        self.of = torch.empty(0, dtype=torch.long)  # latents that have rows; the logits' rows come before theirs
        self.dropped = torch.zeros(self.columns, dtype=torch.bool)
        if drop_first:
            self.dropped[: len(self.layer)] = self.position == 0
            self.dropped[len(self.layer)] = True

    def add(self, targets: Tensor, layer: int) -> None:
        """targets [target] that only latents below the layer lead to."""
        seen, below = self.seen, range(layer)
        leaves = [seen.embedded, *(seen.active[n] for n in below), *seen.biases]
        found = torch.autograd.grad(
            targets,
            leaves,
            torch.eye(len(targets), dtype=targets.dtype, device=targets.device),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        embedded, latents, biases = found[0], found[1 : layer + 1], found[layer + 1 :]
        edges = torch.zeros(len(targets), self.columns)
        for n, gradient in zip(below, latents, strict=True):
            if gradient is not None:
                edges[:, self.first[n] : self.first[n + 1]] = (gradient * seen.active[n].detach()).float().cpu()
        if embedded is not None:
            edges[:, len(self.layer) :] = (embedded * seen.embedded.detach()).float().sum(-1).cpu()
        constant = torch.zeros(len(targets), dtype=torch.float64)
        for bias, gradient in zip(seen.biases, biases, strict=True):
            if gradient is not None:
                constant += (gradient * bias.detach()).double().sum(-1).cpu()
        self.edges.append(edges)
        self.constant.append(constant.float())
        self.value.append(targets.detach().float().cpu())

    def explain_latents(self, probabilities: Tensor, most: int) -> None:
        """Rows of the latents: all, or those that have the most influence by the rows that are there."""
        nodes = (~self.dropped[: len(self.layer)]).nonzero()[:, 0]
        if len(nodes) <= most:
            self._explain(nodes)
            return
        # Influence flows from the logits down through rows that are known, and ends at latents that have none yet: the ones
        # it reaches most are explained next. What they lead to is then measured anew, since their rows open further paths.
        # The logits' rows were added first, and `influence` takes them last: hence the roll.
        while len(self.of) < most:
            waiting = torch.zeros(len(self.layer), dtype=torch.bool)
            waiting[nodes] = True
            waiting[self.of] = False
            known = torch.cat(self.edges).masked_fill(self.dropped, 0.0).roll(-len(probabilities), 0)
            strength = influence(known, probabilities, self.of)[: len(self.layer)].masked_fill(~waiting, -1.0)
            count = min(ROUND * self.batch, most - len(self.of))
            self._explain(strength.topk(count).indices)

    def _explain(self, latents: Tensor) -> None:
        for layer in self.layer[latents].unique().tolist():
            for some in latents[self.layer[latents] == layer].split(self.batch):
                position, within = (index[some].to(self.seen.embedded.device) for index in (self.position, self.within))
                self.add(self.seen.pre[layer][position, within], layer)
                self.of = torch.cat([self.of, some])

    def graph(self, ids: Tensor, logits: Tensor, prediction: Tensor, latents_per_layer: int) -> Graph:
        order = self.of.argsort()
        nodes = self.of[order]
        rows = torch.cat([len(logits) + order, torch.arange(len(logits))])
        kept = torch.zeros(self.columns, dtype=torch.bool)
        kept[nodes] = True
        kept[len(self.layer) :] = True
        whole = torch.cat(self.edges)[rows]
        edges = whole.masked_fill(self.dropped, 0.0)[:, kept]
        activations = torch.cat(list(self.seen.active.values())).detach().float().cpu()
        return Graph(
            ids=ids,
            layer=self.layer[nodes],
            position=self.position[nodes],
            within=self.within[nodes],
            number=self.layer[nodes] * latents_per_layer + self.within[nodes],
            activation=activations[nodes],
            logits=logits,
            probability=prediction[logits],
            prediction=prediction,
            edges=edges,
            value=torch.cat(self.value)[rows],
            constant=torch.cat(self.constant)[rows],
            rest=whole.double().masked_fill(kept & ~self.dropped, 0.0).sum(1).float(),
            left_out=len(self.layer) - len(nodes),
            drop_first=self.drop_first,
        )


def _salient(probabilities: Tensor, mass: float, most: int) -> Tensor:
    """The fewest tokens with this probability together, and no more than so many."""
    strongest = probabilities.topk(min(most, len(probabilities)))
    before = strongest.values.cumsum(0) - strongest.values
    return strongest.indices[before < mass]


def _demeaned(model: PreTrainedModel, last: Tensor, tokens: Tensor) -> Tensor:
    """[logit]: what the head gives for these tokens less its mean over all, in float32 or better; before a cap on logits, which is not linear."""
    head, dtype = head_of(model), torch.promote_types(last.dtype, torch.float32)
    weight = head.get_parameter("weight")
    found = last.to(dtype) @ (weight[tokens].to(dtype) - weight.mean(0, dtype=dtype)).mT
    bias = getattr(head, "bias", None)
    return found if bias is None else found + bias[tokens] - bias.mean()
