"""What learns, and how: dictionaries from a stream of activations; models, and adapters inside them, from whole sequences.

member.py             a dictionary with all that trains it     on_activations.py  their Lightning module
transcoder_member.py  the same of a transcoder adapter         on_sequences.py    the Lightning module inside models
recipe.py             a fine-tune, but for model and text      trainable.py       what of a model learns
checkpoints.py        any step -> the same run, resumed        memory.py          what it takes of each device
resampling.py         dead latents begin anew                  progress.py        what is said while it runs
"""

from tunediff.training.checkpoints import (
    Checkpoints,
    FineTuningCheckpoints,
    Saving,
    latest_checkpoint,
    load_checkpoint,
    load_state,
    members_of,
    write_state,
)
from tunediff.training.member import Member
from tunediff.training.memory import Estimate, memory
from tunediff.training.on_activations import DictionaryTraining, Replicas, process_environment, sum_gradients
from tunediff.training.on_sequences import FineTuning, Shards, interval
from tunediff.training.progress import Pulse, TokenProgress
from tunediff.training.recipe import Recipe
from tunediff.training.resampling import Resampling
from tunediff.training.trainable import Lora, Trainable, Whole
from tunediff.training.transcoder_member import AdapterMember

__all__ = [
    "AdapterMember",
    "Checkpoints",
    "DictionaryTraining",
    "Estimate",
    "FineTuning",
    "FineTuningCheckpoints",
    "Lora",
    "Member",
    "Pulse",
    "Recipe",
    "Replicas",
    "Resampling",
    "Saving",
    "Shards",
    "TokenProgress",
    "Trainable",
    "Whole",
    "interval",
    "latest_checkpoint",
    "load_checkpoint",
    "load_state",
    "memory",
    "members_of",
    "process_environment",
    "sum_gradients",
    "write_state",
]
