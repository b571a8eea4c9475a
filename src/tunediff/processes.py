"""Processes that train together: how they are started, and sums over them. With one process every sum is what it was given."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LAUNCHER = "TUNEDIFF_LAUNCHER"  # in the environment of a process that was started here: the id of this one
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Asked(KeyboardInterrupt):
    """A signal that asks a process to end, answered as Ctrl-C is."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(left: BaseException) -> int:
    """Exit status of a process that left so: 128 and the number of the signal."""
    return 128 + getattr(left, "number", signal.SIGINT)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Context in which each signal that asks this process to end raises Asked; one that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():  # which alone is given signals
        yield
        return
    before = {number: signal.getsignal(number) for number in ASKED_TO_END}
    for number in (number for number, handler in before.items() if handler is not signal.SIG_IGN):
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _frame) -> None:
    raise Asked(number)


def start(command: Sequence[str], *, devices: int = 1, gpu: str | None = None) -> subprocess.Popen:
    """Starts `python <command>` as one process, or by torchrun as one for each of `devices`. Its input is a pipe that closes
    when this process is gone. `gpu` is the one GPU that it sees; None leaves that as it is."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"] if devices > 1 else []
    own = {LAUNCHER: str(os.getpid())} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    return subprocess.Popen([sys.executable, *torchrun, *command], stdin=subprocess.PIPE, env={**os.environ, **own})


def end_with_launcher(*, seconds: float = 600.0) -> None:
    """Asks this process to save and end once the one that started it is gone, and ends it where it has not in so many
    seconds. Does nothing in a process that was not started by `start`."""
    if LAUNCHER not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):  # empty once the other end is gone
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait(process: subprocess.Popen) -> int:
    """Exit status of a process. Where this one is asked to end, that one is too, and has saved when this returns."""
    try:
        return process.wait()
    finally:
        stop([process])


def stop(started: Sequence[subprocess.Popen]) -> None:
    """Asks all processes to save and end, and waits until they have; a second Ctrl-C does not wait."""
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def ending(status: int) -> str:
    """The end of a process in words, by its exit status; a negative one is that of a signal, 128 and more that of a process
    that answered one."""
    number = -status if status < 0 else status - 128
    if number not in set(signal.Signals):
        return f"its process ended with status {status}"
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        less = "let fewer run at a time (hydra.launcher.parallel=1, launcher.pack=false) or lower activations.buffer"
        return f"its process was ended by {name}, as the system does where memory runs out: {less}"
    return f"its process ended at {name}"


def count() -> int:
    """Number of processes that share each batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if count() > 1 else 0


def meet() -> None:
    """Waits until all processes are here."""
    if count() > 1:
        dist.barrier()


def gathered(said: Any) -> list[Any]:
    """The word of each process, by rank."""
    everything = [said] * count()
    if count() > 1:
        dist.all_gather_object(everything, said)
    return everything


def part() -> None:
    """Ends what the processes share; each goes on alone."""
    if count() > 1:
        dist.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    return _reduced(values, "SUM")


def smallest(values: Tensor) -> Tensor:
    return _reduced(values, "MIN")


def any_of(flags: Tensor) -> Tensor:
    """Flags [...] that are true where they are in one of the processes."""
    return flags if count() == 1 else _reduced(flags.int(), "MAX").bool()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sums the gradients of the parameters over all processes, as one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def take_from_first(*tensors: Tensor) -> None:
    """Gives the tensors the values that they have in the first process."""
    for tensor in tensors if count() > 1 else ():
        sent = tensor.detach().contiguous()
        dist.broadcast(sent, 0)
        tensor.detach().copy_(sent)


def _reduced(values: Tensor, operation: str) -> Tensor:
    if count() == 1:
        return values
    values = values.contiguous().clone()
    dist.all_reduce(values, op=getattr(dist.ReduceOp, operation))
    return values


def kth_largest(scores: Tensor, kept: int) -> Tensor:
    """The `kept`-th largest of the flat scores of all processes; the smallest where there are fewer."""
    here = min(kept, scores.numel())
    largest = torch.topk(scores, here, sorted=False).values
    if count() == 1:
        return largest.min()
    mine = torch.full((kept,), -torch.inf, device=scores.device, dtype=scores.dtype)
    mine[:here] = largest
    everyone = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(everyone, mine)
    return torch.cat(everyone).topk(kept).values[-1]
