"""One question a file: a trained dictionary -> findings."""

from tunediff.evaluations.examples import Examples
from tunediff.evaluations.fidelity import Fidelity
from tunediff.evaluations.geometry import Geometry
from tunediff.evaluations.label_alignment import LabelAlignment
from tunediff.evaluations.trained import Reading, Trained

__all__ = ["Examples", "Fidelity", "Geometry", "LabelAlignment", "Reading", "Trained"]
