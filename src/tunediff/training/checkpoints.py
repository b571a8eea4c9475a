"""A training stopped at any step -> the same training, gone on from there to the same bits.

    step-0000120.stream-0.ckpt   where a stream of activations stands, with its buffer; one file a process
    step-0000120.ckpt            members: weights, optimizer, counters, curves
    step-0000120.json            names of the members, for whoever plans without loading; readers of the stream; digest;
                                 size and sha256 of the other files; written last, so it means "whole"

Written to a temporary name, flushed, renamed. The last two steps are kept: one that is not as it was written is passed over
for the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.callbacks import Callback

from tunediff import processes
from tunediff.activations import ShuffledRows
from tunediff.folders import as_written, digest_of, put, read_json, write_sealed
from tunediff.shapes import Refused
from tunediff.training.memory import is_of_memory

log = logging.getLogger(__name__)


KEPT = 2  # steps


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, of files as long as they were written."""
    return next((path for path, wrong in _found(folder) if wrong is None), None)


def _found(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The checkpoints of a folder, the furthest first, each with a sentence where its files are not there at their length.
    One of a version that kept no checksums counts as complete, for `load_checkpoint` to say so."""
    found = {int(path.stem[5:]): path for path in folder.glob("step-*.json") if path.stem[5:].isdigit()}
    for step in sorted(found, reverse=True):
        path = found[step].with_suffix(".ckpt")
        yield path, _wrong(path, lambda file, size, _: file.stat().st_size == size)


def _wrong(path: Path, as_said: Callable[[Path, int, str], bool]) -> str | None:
    """A sentence about the first file of a checkpoint that is not there as its JSON says, by size in bytes and sha256."""
    try:
        said = _said(path)
        with as_written(path.with_suffix(".json")):
            files = [(path.with_name(name), size, digest) for name, (size, digest) in said.get("files", {}).items()]
        for file, size, digest in files:
            with as_written(file):
                if not as_said(file, size, digest):
                    raise ValueError("its length or checksum is another")
        path.stat()
    except OSError as error:  # it is not there, or the disk cannot read it
        return f"{error.filename or path}: {error.strerror}"
    except Refused as refusal:
        return str(refusal).partition(". Restore")[0]
    return None


def whole_checkpoint(path: Path | None) -> Path | None:
    """The checkpoint at `path`, or the furthest of its folder before it whose files all are as they were written; None where
    none is. Whichever is passed over is said."""
    if path is None or not path.parent.is_dir():
        return None
    for candidate, wrong in _found(path.parent):
        if wrong is None and _step(candidate) > _step(path):
            continue
        wrong = wrong or _wrong(candidate, lambda file, _, digest: digest_of(file) == digest)
        if wrong is None:
            return candidate
        log.warning("passed over the checkpoint at step %s: %s", f"{_step(candidate):,}", wrong)
    log.warning("no checkpoint of %s is as it was written: the training begins anew", path.parent)
    return None


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _said(path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint."""
    beside = path.with_suffix(".json")
    said = read_json(beside)
    with as_written(beside):
        kinds = {"members": list, "processes": int, "digest": str, "readers": list}
        if wrong := [name for name, kind in kinds.items() if not isinstance(said[name], kind)]:
            raise ValueError(f"its {wrong[0]} is of another type")
    return said


def names_in(path: Path) -> list[str]:
    """Names of the members that can go on from a checkpoint."""
    return _said(path)["members"]


def load_checkpoint(path: Path, *, digest: str = "") -> dict[str, Any]:
    """The state from which a training resumes. Raises Refused where the checkpoint was written under another digest, or by a
    version that kept no checksums."""
    said = _said(path)
    if "files" not in said:
        raise Refused(
            f"{path} was written by an earlier version, without checksums. Go on with that version, or remove {path.parent} to "
            "begin anew."
        )
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
    said = _said(path)
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
    everything is saved. SIGTERM, SIGHUP and SIGINT end the process after saving. The signal is only noted when it comes and
    answered at the end of the step, so a position is never between two steps.
    """

    def __init__(self, folder: Path, *, seconds: float, digest: str = "", stream: ShuffledRows | None = None):
        self.folder, self.seconds, self.digest, self.stream = folder, seconds, digest, stream
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self.last = time.monotonic()
        heard = [number for number in processes.ASKED_TO_END if signal.getsignal(number) is not signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._note) for number in heard}

    def _note(self, number: int, _frame) -> None:
        self.asked = self.asked or number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        due = trainer.global_rank == 0 and time.monotonic() - self.last > self.seconds
        wanted = due or self.asked is not None or pl_module.step == pl_module.steps
        leave = self.asked is not None
        if processes.count() > 1:  # all save at the same step, and all leave
            wanted, leave = processes.any_of(torch.tensor([wanted, leave], device=pl_module.device)).tolist()
        saved = wanted and self.save(pl_module)
        if wanted:
            self.last = time.monotonic()
        if not leave:
            return
        number = self.asked
        if number is None:  # the signal came to another process
            sys.exit(1)
        before = self.before.get(number)
        self._restore()
        log.warning("%s: %s at step %s", signal.Signals(number).name, "saved" if saved else "left", pl_module.step)
        if number == signal.SIGUSR2 and callable(before):
            with contextlib.suppress(KeyboardInterrupt):  # of whoever asks for nothing more than the end
                before(number, None)
                if processes.rank() > 0:  # the first process requeues the job; leaving early could end it before
                    time.sleep(60)
        sys.exit(128 + number)

    def on_train_end(self, trainer, pl_module) -> None:
        asked = self.asked
        self._restore()
        if asked is not None:  # it came behind the last step, which is saved
            os.kill(os.getpid(), asked)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def save(self, module) -> bool:
        """Saves a checkpoint and removes all but the last two; returns whether it could. A full disk, or no memory left,
        costs the checkpoint, not the run, and leaves nothing of it."""
        path = self.folder / f"step-{module.step:07d}.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write(path, module)
        except Exception as error:
            if not isinstance(error, OSError) and not is_of_memory(error):
                raise
            log.warning("No checkpoint at step %s: %s", module.step, error or type(error).__name__)
        saved = path.with_suffix(
            ".json"
        ).exists()  # written last; where the others do not see the disk, they remove nothing
        if processes.rank() == 0 and saved:
            self.forget(path)
        elif processes.rank() == 0:
            for file in self.folder.glob(f"{path.stem}.*"):
                file.unlink(missing_ok=True)
        return saved

    def forget(self, path: Path) -> None:
        """Removes all but the checkpoint at `path` and the complete one before it, and what other steps left."""
        kept = [one.stem for one, wrong in _found(self.folder) if wrong is None and _step(one) <= _step(path)][:KEPT]
        for old in sorted(
            self.folder.glob("step-*"), key=lambda file: file.suffix != ".json"
        ):  # without it, it is none
            if old.name.partition(".")[0] not in kept:
                old.unlink(missing_ok=True)

    def write(self, path: Path, module) -> None:
        """Writes a checkpoint. Every process calls it; the first one writes the file at `path`, and its JSON last of all."""
        state = module.training_state()  # gathers what is sharded: every process takes part
        written: dict[str, tuple[int, str]] = {}
        failure: str | None = None
        if processes.rank() == 0:
            path.with_suffix(".json").unlink(missing_ok=True)  # of the same step, written anew
        processes.meet()
        if self.stream is not None:
            position = self.stream.state_dict(rows=module.step < module.steps)  # at the end no row is needed any more
            own = path.with_name(f"{path.stem}.stream-{processes.rank()}.ckpt")
            try:
                written[own.name] = write_state(own, position)
            except (
                OSError,
                RuntimeError,
                MemoryError,
            ) as error:  # the others are told: none waits for a file that is not written
                failure = str(error) or type(error).__name__
        everything = processes.gathered((written, failure))
        if failures := [why for _, why in everything if why is not None]:
            raise OSError(failures[0])
        try:
            if processes.rank() == 0:
                written = {name: said for one, _ in everything for name, said in one.items()}
                written[path.name] = write_state(path, state)
                said = {"members": list(state["members"]), "processes": processes.count(), "digest": self.digest}
                said["readers"] = [] if self.stream is None else [learner.name for learner in module.learners]
                write_sealed(path.with_suffix(".json"), {**said, "files": written})
        finally:
            processes.meet()  # one that left now could take the writing process with it


class Hashed:
    """A file that is only written to, with the number and the sha256 of its bytes."""

    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.state = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.size += len(memoryview(data).cast("B"))
        self.state.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_state(path: Path, content: dict[str, Any]) -> tuple[int, str]:
    """Writes a file whole, and returns its size in bytes and its sha256."""
    with put(path) as partial, open(partial, "wb") as file:
        hashed: Any = Hashed(file)
        try:
            torch.save(content, hashed)  # given the path, it would write its name into the file
        except RuntimeError as error:  # of its writer, which hides the system's
            said = error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error).splitlines()[0])
            raise said from error
    return hashed.size, hashed.state.hexdigest()
