"""A training stopped at any step -> the same training, gone on from there to the same bits.

    step-0000120.stream-0.ckpt   where a stream of activations stands, with its buffer; one file a process
    step-0000120.json            names of the members, for whoever plans without loading; readers of the stream; digest
    step-0000120.ckpt            members: weights, optimizer, counters, curves; written last, so it means "whole"

Written to a temporary name, flushed, renamed; older steps are removed afterwards.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from tunediff import processes
from tunediff.activations import ShuffledRows
from tunediff.folders import replacing, write_atomically
from tunediff.shapes import Refused

log = logging.getLogger(__name__)


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    return max((path for path in folder.glob("step-*.ckpt") if ".stream-" not in path.name), default=None)


def names_in(path: Path) -> list[str]:
    """Names of the members that can go on from a checkpoint."""
    return json.loads(path.with_suffix(".json").read_text())["members"]


def load_checkpoint(path: Path, *, digest: str = "") -> dict[str, Any]:
    """The state from which a training resumes. Raises Refused where the checkpoint was written under another digest."""
    said = json.loads(path.with_suffix(".json").read_text())
    if said["digest"] != digest:
        raise Refused(
            f"{path} belongs to a training on other examples or with other settings. Choose another folder, or remove "
            f"{path.parent} to begin anew."
        )
    # whole models stay on disk until they are read
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=not said["readers"])
    log.info("going on from step %s", f"{state['step']:,}")
    return state


def load_position(path: Path, names: Sequence[str], *, rank: int, world: int) -> tuple[dict[str, Any], list[int]]:
    """The position of this process in the stream, and the numbers that the readers with these names had. Raises Refused for
    another number of processes."""
    said = json.loads(path.with_suffix(".json").read_text())
    if said["processes"] != world:
        raise Refused(
            f"{path} was written by {said['processes']} processes, now there are {world}: go on with as many "
            f"(trainer.devices, trainer.num_nodes), or remove {path.parent} to begin anew."
        )
    position = torch.load(path.with_name(f"{path.stem}.stream-{rank}.ckpt"), map_location="cpu", weights_only=True)
    return position, [said["readers"].index(name) for name in names]


class Checkpoints(Callback):
    """Saves every `seconds`, at the last step, and when a signal says that the process must go.

    digest   digest of what decides the steps to come besides the state (examples, settings)
    stream   activations that the dictionaries read; each process saves its own position in them

    SIGUSR2 is how submitit tells of a time limit or preemption: its own handler, which requeues the job, is called once
    everything is saved. SIGTERM and SIGINT end the process after saving. The signal is only noted when it comes and
    answered at the end of the step, so a position is never between two steps.
    """

    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self, folder: Path, *, seconds: float, digest: str = "", stream: ShuffledRows | None = None):
        self.folder, self.seconds, self.digest, self.stream = folder, seconds, digest, stream
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self.last = time.monotonic()
        self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def _note(self, number: int, _frame) -> None:
        self.asked = self.asked or number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        due = trainer.global_rank == 0 and time.monotonic() - self.last > self.seconds
        wanted = due or self.asked is not None or pl_module.step == pl_module.steps
        leave = self.asked is not None
        if processes.count() > 1:  # all save at the same step, and all leave
            wanted, leave = processes.any_of(torch.tensor([wanted, leave], device=pl_module.device)).tolist()
        if wanted:
            self.save(pl_module)
            self.last = time.monotonic()
        if not leave:
            return
        number = self.asked
        if number is None:  # the signal came to another process
            sys.exit(1)
        before = self.before.get(number)
        self._restore()
        log.warning("%s: saved at step %s", signal.Signals(number).name, pl_module.step)
        if number == signal.SIGUSR2 and callable(before):
            before(number, None)
            if processes.rank() > 0:  # the first process requeues the job; leaving early could end it before
                time.sleep(60)
        sys.exit(128 + number)

    def on_train_end(self, trainer, pl_module) -> None:
        self._restore()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def save(self, module) -> None:
        """Saves a checkpoint and removes older ones. A full disk costs the checkpoint, not the run."""
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
        """Writes a checkpoint. Every process calls it; the first one writes the file at `path`, last of all."""
        state = module.training_state()  # gathers what is sharded: every process takes part
        if self.stream is not None:
            position = self.stream.state_dict(rows=module.step < module.steps)  # at the end no row is needed any more
            write_state(path.with_name(f"{path.stem}.stream-{processes.rank()}.ckpt"), position)
        processes.meet()
        try:
            if processes.rank() == 0:
                said = {"members": list(state["members"]), "processes": processes.count(), "digest": self.digest}
                said["readers"] = [] if self.stream is None else [learner.name for learner in module.learners]
                write_atomically(path.with_suffix(".json"), json.dumps(said))
                write_state(path, state)
        finally:
            processes.meet()  # one that left now could take the writing process with it


def write_state(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:  # torch.save would write a path's name into it
        torch.save(content, file)
