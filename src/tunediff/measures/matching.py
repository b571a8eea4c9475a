"""Stability of latents over two seeds: one-to-one matching by the cosine of decoder rows, over all streams together.

The matching has the largest summed cosine of all that pair rows no further apart than `near` (the Hungarian algorithm, in
each connected part of the graph of such pairs, so that tens of thousands of latents are no burden). A latent is stable
where it has a partner.
"""

from __future__ import annotations

import numpy
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

NEAR = 0.7
BLOCK = 4096


def partners(first: Tensor, second: Tensor, *, near: float = NEAR) -> Tensor:
    """Cosine [latent of first] of each row with its partner among the rows of `second` [latent, width]; 0 without one."""
    a, b = (torch.nn.functional.normalize(rows.float(), dim=-1) for rows in (first, second))
    edges, weights = [], []
    for n in range(0, len(a), BLOCK):
        cosines = a[n : n + BLOCK] @ b.T
        places = (cosines >= near).nonzero()
        weights.append(cosines[places[:, 0], places[:, 1]])
        edges.append(places + torch.tensor([n, 0]))
    edge, weight = torch.cat(edges).numpy(), torch.cat(weights).numpy()
    found = torch.zeros(len(a))
    count = len(a) + len(b)
    graph = coo_array((numpy.ones(len(edge)), (edge[:, 0], edge[:, 1] + len(a))), shape=(count, count))
    part = connected_components(graph, directed=False)[1][edge[:, 0]]
    order = numpy.argsort(part, kind="stable")
    for here in numpy.split(order, numpy.flatnonzero(numpy.diff(part[order])) + 1) if len(order) else ():
        rows, row = numpy.unique(edge[here, 0], return_inverse=True)
        columns, column = numpy.unique(edge[here, 1], return_inverse=True)
        gain = numpy.zeros((len(rows), len(columns)))
        gain[row, column] = weight[here]
        chosen_rows, chosen_columns = linear_sum_assignment(gain, maximize=True)
        found[rows[chosen_rows]] = torch.from_numpy(gain[chosen_rows, chosen_columns]).float()
    return found
