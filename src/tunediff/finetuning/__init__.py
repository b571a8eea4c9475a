"""A model and examples -> the tuned model or its adapter.

recipe.py       all that a fine-tune is, but for the model and the text
adapting.py     a transcoder adapter with all that trains it
trainable.py    what of the model learns              checkpoints.py  any step -> the same fine-tune, gone on from there
fit.py          the Lightning module                  estimate.py     what it will take of each device
"""

from tunediff.finetuning.adapting import AdapterMember
from tunediff.finetuning.checkpoints import FineTuningCheckpoints, load_state
from tunediff.finetuning.estimate import Estimate, memory
from tunediff.finetuning.fit import FineTuning, Shards, interval
from tunediff.finetuning.recipe import Recipe
from tunediff.finetuning.trainable import Lora, Trainable, Whole

__all__ = [
    "AdapterMember",
    "Estimate",
    "FineTuning",
    "FineTuningCheckpoints",
    "Lora",
    "Recipe",
    "Shards",
    "Trainable",
    "Whole",
    "interval",
    "load_state",
    "memory",
]
