"""(seed, purpose) -> a generator of random numbers. Every draw of the project has a purpose of its own, and so a stream of its own.

Two generators with the same seed give the same numbers, and what is drawn first from either is equal: the truth of a benchmark
and the start of what is to find it, for one. So no seed is used as it is; it is hashed together with a purpose, as JAX folds
data into a key and NumPy's SeedSequence spawns children.
"""

from __future__ import annotations

import hashlib
import random

import numpy
import torch

Part = int | str


def seed_for(seed: int, purpose: str, *of: Part) -> int:
    """A seed from 0 to 2 ** 63 - 1 for a purpose, and within it for parts such as a step or the number of a draw.

    Generators of torch on the CPU take its last 32 bits."""
    return int.from_bytes(hashlib.sha256(repr((seed, purpose, *of)).encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *of: Part) -> torch.Generator:
    """A torch generator on the CPU."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *of))


def numpy_generator(seed: int, purpose: str, *of: Part) -> numpy.random.Generator:
    """A generator of NumPy."""
    return numpy.random.default_rng(seed_for(seed, purpose, *of))


def chance(seed: int, purpose: str, *of: Part) -> random.Random:
    """A generator of Python's own, which hashes words itself."""
    return random.Random(" ".join(map(str, (purpose, *of, seed))))
