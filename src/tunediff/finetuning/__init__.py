"""A model and examples -> the tuned model or its adapter.

trainable.py    what of the model learns              checkpoints.py  any step -> the same fine-tune, gone on from there
fit.py          the Lightning module                  estimate.py     what it will take of each device
"""

from tunediff.finetuning.checkpoints import FineTuningCheckpoints, load_state
from tunediff.finetuning.estimate import Estimate, memory
from tunediff.finetuning.fit import FineTuning, Shards
from tunediff.finetuning.trainable import Lora, Trainable, Whole

__all__ = [
    "Estimate",
    "FineTuning",
    "FineTuningCheckpoints",
    "Lora",
    "Shards",
    "Trainable",
    "Whole",
    "load_state",
    "memory",
]
