"""Groups on this machine: one process each, a few at a time, each with its own GPU where there are several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from tunediff import folders
from tunediff.sweep.plan import Group


def start(group: Group, *, gpu: str | None = None) -> subprocess.Popen:
    """The process of a group, or torchrun over its processes. It ends when this process ends."""
    trainer = group.members[0].run.cfg.trainer
    module = ["-m", "tunediff.sweep.work", str(group.folder), "--with-parent"]
    if trainer.devices > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={trainer.devices}", *module]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
    return subprocess.Popen([sys.executable, *module], stdin=subprocess.PIPE, env=environment)


def run_groups(groups: Sequence[Group], *, parallel: int | None) -> None:
    """Until all have ended. What became of them stands in their folders."""
    gpus = visible_gpus()
    slots = parallel or max(1, len(gpus))
    free = list(range(slots))
    waiting, running = list(groups), {}
    try:
        while waiting or running:
            while waiting and free:
                slot = free.pop(0)
                alone = slots > 1 and len(gpus) > 1
                group = waiting.pop(0)
                running[slot] = group, start(group, gpu=gpus[slot % len(gpus)] if alone else None)
            for slot, (group, process) in list(running.items()):
                if process.poll() is not None:
                    process.stdin.close()
                    del running[slot]
                    free.append(slot)
                    note_end(group, process.returncode)
            time.sleep(0.1)
    except BaseException:
        for _, process in running.values():  # they save and end; a second Ctrl-C does not wait for them
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()
            process.stdin.close()
        raise


def note_end(group: Group, status: int) -> None:
    """A process that was killed could not say so itself."""
    for member in group.members:
        state = folders.state_of(member.run.folder)
        if state.get("state") not in (folders.FINISHED, folders.FAILED):
            folders.say(member.run.folder, state=folders.INTERRUPTED, error=f"its process ended with status {status}")


def visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
