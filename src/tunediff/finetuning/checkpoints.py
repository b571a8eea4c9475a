"""A fine-tune stopped at any step -> the same fine-tune, gone on from there to the same bits.

    step-0000120.json   of a study: whose it is
    step-0000120.ckpt   step, curves, what learns and its moments, each whole, whichever way they lay on the devices

Examples and dropout follow from the number of the step, so there is nothing else to keep, and a run may go on with
another number of processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tunediff import processes
from tunediff.folders import write_atomically
from tunediff.shapes import Refused
from tunediff.training import Saving, write_state


class FineTuningCheckpoints(Saving):
    """`digest`: of whatever decides the steps to come besides the weights (examples, settings); one that differs is
    refused when a run goes on. `name`: of the study that goes on from them, for whoever plans a sweep without loading."""

    def __init__(self, folder: Path, *, seconds: float, digest: str, name: str | None = None):
        super().__init__(folder, seconds=seconds)
        self.digest, self.name = digest, name

    def write(self, path: Path, module) -> None:
        state = module.training_state()  # gathers what is sharded: every process takes part
        try:
            if processes.rank() == 0:
                if self.name is not None:
                    write_atomically(path.with_suffix(".json"), json.dumps([self.name]))
                write_state(path, {**state, "digest": self.digest})
        finally:
            if processes.count() > 1:  # one that left now could take the writing process with it
                torch.distributed.barrier()


def load_state(path: Path, *, digest: str) -> dict[str, Any]:
    """What FineTuning(state=...) goes on from. The weights stay on disk until they are read."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if state["digest"] != digest:
        raise Refused(
            f"{path} belongs to a fine-tune of other examples or settings. Choose another folder, or remove "
            f"{path.parent} to begin anew."
        )
    return state
