"""One stream of activations and one or more dictionaries -> trained dictionaries and their curves.

member.py       a dictionary with all that trains it        checkpoints.py  any step -> the same run, gone on from there
fit.py          the Lightning module                        progress.py     what is said while it runs
resampling.py   dead latents begin anew
"""

from tunediff.training.checkpoints import (
    Checkpoints,
    Saving,
    latest_checkpoint,
    load_checkpoint,
    members_of,
    write_state,
)
from tunediff.training.fit import DictionaryTraining, Replicas, process_environment, sum_gradients
from tunediff.training.member import Member
from tunediff.training.progress import Pulse, TokenProgress
from tunediff.training.resampling import Resampling

__all__ = [
    "Checkpoints",
    "DictionaryTraining",
    "Member",
    "Pulse",
    "Replicas",
    "Resampling",
    "Saving",
    "TokenProgress",
    "latest_checkpoint",
    "load_checkpoint",
    "members_of",
    "process_environment",
    "sum_gradients",
    "write_state",
]
