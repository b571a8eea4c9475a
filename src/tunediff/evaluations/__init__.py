"""One question a file: a trained dictionary, or the pair alone -> findings."""

from tunediff.evaluations.adapter_ablation import AdapterAblation
from tunediff.evaluations.adapter_recovery import AdapterRecovery
from tunediff.evaluations.attention_sinks import AttentionSinks
from tunediff.evaluations.attribution_graphs import AttributionGraphs
from tunediff.evaluations.autointerp import Autointerp
from tunediff.evaluations.benchmark import Benchmark
from tunediff.evaluations.examples import Examples
from tunediff.evaluations.fidelity import Fidelity
from tunediff.evaluations.geometry import Geometry
from tunediff.evaluations.intervention import Intervention
from tunediff.evaluations.judge import Judge
from tunediff.evaluations.kl_patching import KLPatching
from tunediff.evaluations.label_alignment import LabelAlignment
from tunediff.evaluations.latent_cache import LatentCache
from tunediff.evaluations.latent_classes import LatentClasses
from tunediff.evaluations.latent_scaling import LatentScaling, Scaling, latent_scaling
from tunediff.evaluations.latent_sets import LatentSets
from tunediff.evaluations.layer_divergence import LayerDivergence
from tunediff.evaluations.logit_effect import LogitEffect
from tunediff.evaluations.polarity_examples import PolarityExamples
from tunediff.evaluations.probing import Probing
from tunediff.evaluations.recovery import Recovery
from tunediff.evaluations.replacement import Replacement
from tunediff.evaluations.segments import Segments
from tunediff.evaluations.selection import Telling
from tunediff.evaluations.steering_sweep import SteeringSweep
from tunediff.evaluations.tokenizers import Tokenizers
from tunediff.evaluations.trained import Reading, Trained
from tunediff.evaluations.truth import Score, score
from tunediff.evaluations.unit_comparison import UnitComparison

__all__ = [
    "AdapterAblation",
    "AdapterRecovery",
    "AttentionSinks",
    "AttributionGraphs",
    "Autointerp",
    "Benchmark",
    "Examples",
    "Fidelity",
    "Geometry",
    "Intervention",
    "Judge",
    "KLPatching",
    "LabelAlignment",
    "LatentCache",
    "LatentClasses",
    "LatentScaling",
    "LatentSets",
    "LayerDivergence",
    "LogitEffect",
    "PolarityExamples",
    "Probing",
    "Reading",
    "Recovery",
    "Replacement",
    "Scaling",
    "Score",
    "Segments",
    "SteeringSweep",
    "Telling",
    "Tokenizers",
    "Trained",
    "UnitComparison",
    "latent_scaling",
    "score",
]
