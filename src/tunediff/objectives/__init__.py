"""Objectives, which training minimises: a batch -> losses.

reconstruction.py   of activations, by a dictionary        distillation.py   of the tuned model, by adapters
terms.py            further terms of its loss              imitation.py        of a text, by a model
"""

from tunediff.objectives.distillation import Distillation
from tunediff.objectives.imitation import Imitation
from tunediff.objectives.pass_losses import PassLosses
from tunediff.objectives.reconstruction import Losses, Objective, Reconstruction
from tunediff.objectives.terms import AuxK, DeltaLoss, Difference, Term, TermInputs
