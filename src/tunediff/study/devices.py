"""The devices that an estimate is made for: their memory and their speed, from data sheets and not from a clock.

Peak rates are dense ones of the vendor's data sheets (NVIDIA H200 and H100 SXM5, A100 SXM4 80 GB). Of a peak rate ASSUMED is
taken for what a run reaches, of the peak bandwidth as well: an assumption, the same for every device. A CPU has no one data
sheet: a core is counted with two units of eight float32 products and sums at 2.5 GHz, 80 GFLOP/s, in every precision.
A busy machine is therefore no slower here than an idle one, and the same line says the same hours everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from tunediff.training.memory import GB

ASSUMED = 0.4  # of the peak rate
HALF = ("bfloat16", "float16")
TF32 = "tf32"  # float32 products where half precision was asked for, as trainer=auto allows them


class Device(NamedTuple):
    """A device: bytes of memory, FLOP/s by the numbers that are multiplied, and bytes read of its memory per second."""

    name: str
    memory: float
    peak: Mapping[str, float]
    bandwidth: float

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"

    def seconds(self, flops: Mapping[str, float], read: float = 0.0) -> float:
        """Seconds for so many FLOPs by kind of number, or for reading so many bytes where that takes longer."""
        computing = sum(count / self.peak[kind] for kind, count in flops.items())
        return max(computing, read / self.bandwidth) / ASSUMED

    @property
    def described(self) -> str:
        """The words on the rate that hours are counted with."""
        kinds = {"bfloat16": "bf16", TF32: "TF32", "float32": "float32"}
        peaks = ", ".join(f"{words} {self.peak[kind] / 1e12:,.3g}" for kind, words in kinds.items())
        cores = "" if self.is_gpu else f" ({cores_here()} cores of 80 GFLOP/s)"
        return f"hours of one {self.name}{cores}, assuming {ASSUMED:.0%} of its peak: {peaks} TFLOP/s"


def _gpu(name: str, memory_gb: float, half: float, tf32: float, single: float, bandwidth: float) -> Device:
    """A GPU by its data sheet: GB, TFLOP/s dense, TB/s."""
    peak = {**dict.fromkeys(HALF, half * 1e12), TF32: tf32 * 1e12, "float32": single * 1e12}
    return Device(name, memory_gb * GB, peak, bandwidth * 1e12)


GPUS = {
    "h200": _gpu("h200", 141, 989, 494, 67, 4.8),
    "h100": _gpu("h100", 80, 989, 494, 67, 3.35),
    "a100": _gpu("a100", 80, 312, 156, 19.5, 2.04),
}


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> Device:
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Device("cpu", memory, dict.fromkeys((*HALF, TF32, "float32"), 80e9 * cores_here()), 50e9)


def device_here(cfg: DictConfig) -> Device | None:
    """The device of this machine that a trainer would take; None where a GPU is asked for and none of known speed is here."""
    asked = cfg.trainer.accelerator
    if asked in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        named = torch.cuda.get_device_name(0).lower()
        known = next((gpu for name, gpu in GPUS.items() if name in named), None)
        return known and known._replace(memory=float(torch.cuda.get_device_properties(0).total_memory))
    if asked in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return None
    return _cpu() if asked in ("auto", "cpu") else None


def device_named(name: str | None, cfg: DictConfig) -> Device | None:
    """The device of this name; without one that of this machine."""
    if name is None:
        return device_here(cfg)
    return _cpu() if name == "cpu" else GPUS[name]


def memory_of(device: Device | None, *, given_gb: float | None = None) -> float:
    """Bytes of one device: as given, else the device's; infinite for one that is not known."""
    if given_gb is not None:
        return given_gb * GB
    if device is None and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float("inf") if device is None else device.memory
