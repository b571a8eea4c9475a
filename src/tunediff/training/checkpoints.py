"""A training group stopped at any step -> the same group, gone on from there to the same bits.

    step-0000120.stream-0.ckpt   the stream's position with its buffer, one file a process
    step-0000120.json            the names of the members, for whoever plans without loading
    step-0000120.ckpt            members: weights, optimizer, dead counters, curves; written last, so it means "whole"

Written to a temporary name, flushed, renamed; older steps are removed afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from tunediff import processes
from tunediff.activations import ShuffledRows
from tunediff.folders import write_atomically
from tunediff.shapes import Refused

log = logging.getLogger(__name__)


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step."""
    return max((path for path in folder.glob("step-*.ckpt") if ".stream-" not in path.name), default=None)


def names_in(path: Path) -> list[str]:
    """Who can go on from a checkpoint."""
    return json.loads(path.with_suffix(".json").read_text())


def load_checkpoint(path: Path, *, rank: int, world: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members' part and this process's position in the stream."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["processes"] != world:
        raise Refused(
            f"{path} was written by {state['processes']} processes, now there are {world}: go on with as many "
            f"(trainer.devices, trainer.num_nodes), or remove {path.parent} to begin anew."
        )
    stream = path.with_name(f"{path.stem}.stream-{rank}.ckpt")
    return state, torch.load(stream, map_location="cpu", weights_only=True)


class Saving(Callback):
    """Abstract. Saves every `seconds`, at the last step, and when a signal says that the process must go.

    SIGUSR2 is how submitit tells of a time limit or preemption: its own handler, which requeues the job, is called once
    everything is saved. SIGTERM and SIGINT end the process after saving. The signal is only noted when it comes and
    answered at the end of the step, so a position is never between two steps.
    """

    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self, folder: Path, *, seconds: float):
        self.folder, self.seconds = folder, seconds
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer, module) -> None:
        self.last = time.monotonic()
        self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def _note(self, number: int, _frame) -> None:
        self.asked = self.asked or number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        due = trainer.global_rank == 0 and time.monotonic() - self.last > self.seconds
        wanted = due or self.asked is not None or module.step == module.steps
        leave = self.asked is not None
        if processes.count() > 1:  # all save at the same step, and all leave
            wanted, leave = processes.any_of(torch.tensor([wanted, leave], device=module.device)).tolist()
        if wanted:
            self.save(module)
            self.last = time.monotonic()
        if leave and self.asked is None:
            sys.exit(1)
        if leave:
            number, before = self.asked, self.before.get(self.asked)
            self._restore()
            log.warning("%s: saved at step %s", signal.Signals(number).name, module.step)
            if number == signal.SIGUSR2 and callable(before):
                before(number, None)
                if processes.rank() > 0:  # the first process requeues the job; leaving early could end it before
                    time.sleep(60)
            sys.exit(128 + number)

    def on_train_end(self, trainer, module) -> None:
        self._restore()

    def on_exception(self, trainer, module, exception) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def save(self, module) -> None:
        """A disk that is full costs the checkpoint, not the run."""
        path = self.folder / f"step-{module.step:07d}.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write(path, module)
            if processes.rank() == 0:
                for old in self.folder.glob("step-*"):
                    if not old.name.startswith(path.stem):
                        old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("No checkpoint at step %s: %s", module.step, error)

    def write(self, path: Path, module) -> None:
        """Called in every process. The file at `path` is written last, by the first process."""
        raise NotImplementedError


class Checkpoints(Saving):
    """Of a group of dictionaries and of the stream that they read."""

    def __init__(self, folder: Path, stream: ShuffledRows, *, seconds: float):
        super().__init__(folder, seconds=seconds)
        self.stream = stream

    def write(self, path: Path, module) -> None:
        position = self.stream.state_dict(rows=module.step < module.steps)  # at the end no row is needed any more
        write_state(path.with_name(f"{path.stem}.stream-{processes.rank()}.ckpt"), position)
        if processes.count() > 1:
            torch.distributed.barrier()
        if processes.rank() == 0:
            readers = [learner.name for learner in module.learners]
            state = {**module.training_state(), "processes": processes.count(), "readers": readers}
            write_atomically(path.with_suffix(".json"), json.dumps(list(state["members"])))
            write_state(path, state)


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, flushed, then renamed: a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
