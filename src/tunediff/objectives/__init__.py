"""What training minimises: a batch -> losses."""

from tunediff.objectives.imitation import Imitation
from tunediff.objectives.reconstruction import Losses, Reconstruction

__all__ = ["Imitation", "Losses", "Reconstruction"]
