"""Groups on this machine: one process each, a few at a time, each with its own GPU where there are several."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tunediff import folders, processes
from tunediff.study.devices import Device, device_here
from tunediff.study.run import Run
from tunediff.sweep.plan import Group, Member


class Local:
    """This machine, on which so many groups run at a time; for None one per GPU, or one."""

    wait = here = True
    after_ctrl_c = "the same line goes on from here"

    def __init__(self, *, parallel: int | None):
        self.parallel = parallel

    def queued(self, sweep: Path) -> dict[str, str]:
        """Jobs that are queued: none, for nothing waits here once the sweep has ended."""
        return {}

    def device(self, run: Run) -> Device | None:
        """The device on which a group would run."""
        return device_here(run.cfg)

    def run(self, sweep: Path, groups: Sequence[Group], members: Sequence[Member]) -> None:
        """Runs the groups until all have ended. Their folders hold the outcome."""
        gpus = visible_gpus()
        slots = self.parallel or max(1, len(gpus))
        free = list(range(slots))
        waiting, running = list(groups), {}
        try:
            while waiting or running:
                while waiting and free:
                    slot, group = free.pop(0), waiting.pop(0)
                    gpu = gpus[slot % len(gpus)] if slots > 1 and len(gpus) > 1 else None
                    running[slot] = group, group.start(gpu=gpu)
                for slot, (group, process) in list(running.items()):
                    if process.poll() is not None:
                        processes.stop([process])
                        del running[slot]
                        free.append(slot)
                        note_end(group, processes.ending(process.returncode))
                time.sleep(0.1)
        except BaseException:
            processes.stop([process for _, process in running.values()])
            for group, process in running.values():
                asked = process.returncode in STOPPED
                note_end(group, "the sweep was interrupted" if asked else processes.ending(process.returncode))
            raise


STOPPED = {sign * number + (128 if sign > 0 else 0) for number in processes.ASKED_TO_END for sign in (1, -1)}


def note_end(group: Group, ending: str) -> None:
    """Writes into the members of a group that did not end by themselves what ended them."""
    for member in group.members:
        folders.note_end(member.run.folder, ending)


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES spells them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
