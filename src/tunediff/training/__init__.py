"""Training: dictionaries from a stream of activations; models, and adapters inside them, from whole sequences.

learner.py            a dictionary with all that trains it     on_activations.py  their Lightning module
transcoder_learner.py the same of a transcoder adapter         on_sequences.py    the Lightning module inside models
recipe.py             a fine-tune, but for model and text      trainable.py       what of a model learns
checkpoints.py        any step -> the same run, resumed        memory.py          what it takes of each device
resampling.py         dead latents begin anew                  progress.py        what is said while it runs
"""

from tunediff.training.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_position,
    names_in,
    write_state,
)
from tunediff.training.learner import Learner
from tunediff.training.memory import MemoryEstimate, memory
from tunediff.training.on_activations import DictionaryTraining, Replicas, process_environment, sum_gradients
from tunediff.training.on_sequences import FineTuning, Shards, interval
from tunediff.training.progress import Pulse, TokenProgress
from tunediff.training.recipe import Recipe
from tunediff.training.resampling import Resampling
from tunediff.training.trainable import AllWeights, Lora, Trainable
from tunediff.training.transcoder_learner import TranscoderLearner

__all__ = [
    "TranscoderLearner",
    "Checkpoints",
    "DictionaryTraining",
    "MemoryEstimate",
    "FineTuning",
    "Lora",
    "Learner",
    "Pulse",
    "Recipe",
    "Replicas",
    "Resampling",
    "Shards",
    "TokenProgress",
    "Trainable",
    "AllWeights",
    "interval",
    "latest_checkpoint",
    "load_checkpoint",
    "load_position",
    "memory",
    "names_in",
    "process_environment",
    "sum_gradients",
    "write_state",
]
