"""BatchTopK twice in one dictionary: latents that a partition designates as shared are selected apart from the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tunediff.dictionary.codes import Screened, SparseCodes
from tunediff.dictionary.sparsity import BatchTopK, Sparsity
from tunediff.schedules import Anneal, Length, Schedule
from tunediff.shapes import Refused


class DualBatchTopK(Sparsity):
    """BatchTopK over the shared latents of a partition and, apart from it, over all others, each with its own threshold
    outside training (Delta-Crosscoder, arXiv 2603.04426: k 200 and a "shared k multiplier" of 2).

    Differs from arXiv 2603.04426, which leaves open whether there are two selections, and over what: two are its natural
    reading, so that what is shared cannot crowd out what is not.

    k          active latents a token, on average, of those that are not shared
    k_shared   the same of those that are shared, beside the others
    k_schedule, threshold_memory   as in BatchTopK, for either
    """

    few = True

    def __init__(
        self,
        k: int,
        *,
        k_shared: int,
        k_schedule: Schedule = Anneal(5.0, 0.1),  # noqa: B008 (a frozen dataclass)
        threshold_memory: float = 0.95,
    ):
        super().__init__()
        for name, count in (("k", k), ("k_shared", k_shared)):
            if count < 1:
                raise Refused(f"dictionary.sparsity.{name}={count}: at least one latent a token must be active.")
        self.k, self.k_shared, self.k_schedule = k, k_shared, k_schedule
        self.shared = BatchTopK(k_shared, k_schedule=k_schedule, threshold_memory=threshold_memory)
        self.others = BatchTopK(k, k_schedule=k_schedule, threshold_memory=threshold_memory)

    def prepare(self, latents: int, *, shared: int = 0, width: int = 1) -> None:
        if not 0 < shared < latents:
            raise Refused(
                f"dictionary.sparsity.k_shared={self.k_shared} is of latents that a partition shares, and of {latents} latents "
                f"{shared} are shared: set dictionary.partition, as dictionary=delta_crosscoder does, or choose "
                "dictionary/sparsity=batchtopk."
            )
        for name, k, there in (("k_shared", self.k_shared, shared), ("k", self.k, latents - shared)):
            if k > there:
                raise Refused(
                    f"dictionary.sparsity.{name}={k} is larger than its part of the dictionary: it has {there} latents. "
                    "Lower it, or raise dictionary.latents or the share of the part in dictionary.partition."
                )
        self.shared.prepare(shared)
        self.others.prepare(latents - shared)
        self.parts = [("k_shared", self.shared, slice(0, shared)), ("k", self.others, slice(shared, latents))]

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {name: part.scheduled(step, length)["k"] for name, part, _ in self.parts}

    def schedules(self) -> dict[str, Schedule]:
        return {"k_schedule": self.k_schedule}

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        return torch.cat([part(pre[:, here], norms[here]) for _, part, here in self.parts], dim=-1)

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        chosen = [part.select(pre[:, here], norms[here], {"k": settings[name]}) for name, part, here in self.parts]
        return torch.cat(chosen, dim=-1)

    def select_sparse(self, screened: Screened, norms: Tensor, settings: Mapping[str, float]) -> SparseCodes:
        shared, others = (
            part.select_sparse(screened.part(here), norms[here], {"k": settings[name]})
            for name, part, here in self.parts
        )
        return shared.beside(others)

    def settle(self) -> None:
        self.shared.settle()
        self.others.settle()

    def observed(self) -> dict[str, Tensor]:
        return {"threshold": self.others.threshold, "threshold_shared": self.shared.threshold}
