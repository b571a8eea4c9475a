"""Training: dictionaries from a stream of activations; models, and adapters inside them, from whole sequences.

learner.py      a dictionary, or a transcoder        on_activations.py  the Lightning module of dictionaries
                adapter, with all that trains it     on_sequences.py    the Lightning module inside models
recipe.py       a fine-tune, but for model and text, memory.py          what it takes of each device
                and what of the model learns         checkpoints.py     any step -> the same run, resumed
under_edit.py   what is done to a model that learns  progress.py        what is said while it runs
resampling.py   dead latents begin anew
"""

from tunediff.training.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_position,
    names_in,
    whole_checkpoint,
)
from tunediff.training.learner import UNKNOWN, Learner, TranscoderLearner
from tunediff.training.memory import MemoryEstimate
from tunediff.training.on_activations import DictionaryTraining, Replicas, process_environment
from tunediff.training.on_sequences import FineTuning, Shards, interval
from tunediff.training.progress import Pulse, TokenProgress
from tunediff.training.recipe import AllWeights, Lora, Recipe
from tunediff.training.resampling import Resampling
from tunediff.training.under_edit import Added, GradientAlong, UnderEdit, Watched
