"""What training minimises: a batch -> losses."""

from tunediff.objectives.reconstruction import Losses, Reconstruction

__all__ = ["Losses", "Reconstruction"]
