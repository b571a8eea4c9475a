"""One question a file: a trained dictionary, or the pair alone -> findings."""

from tunediff.evaluations.behaviour.benchmark import Benchmark
from tunediff.evaluations.behaviour.direction_necessity import DirectionNecessity
from tunediff.evaluations.behaviour.direction_steering import DirectionSteering
from tunediff.evaluations.behaviour.intervention import Intervention
from tunediff.evaluations.behaviour.recovery import Recovery
from tunediff.evaluations.behaviour.steering_sweep import SteeringSweep
from tunediff.evaluations.behaviour.trait import Trait
from tunediff.evaluations.given import KEPT, TWIN, Evaluation, Given, Needs, Reading, Trained, Work, declared
from tunediff.evaluations.judging.autointerp import Autointerp
from tunediff.evaluations.judging.chat import Judge
from tunediff.evaluations.judging.delphi_cache import LatentCache
from tunediff.evaluations.judging.latent_classes import LatentClasses
from tunediff.evaluations.judging.sentences import SentenceJudge
from tunediff.evaluations.judging.traits import TraitJudge, persona_questions
from tunediff.evaluations.latents.scaling import latent_scaling
from tunediff.evaluations.latents.selection import Telling
from tunediff.evaluations.lora.ablation import LoraAblation
from tunediff.evaluations.lora.polarity_examples import PolarityExamples
from tunediff.evaluations.lora.unit_comparison import UnitComparison
from tunediff.evaluations.pair.attention_sinks import AttentionSinks
from tunediff.evaluations.pair.directions import DirectionsByLayer
from tunediff.evaluations.pair.gradient import Gradient
from tunediff.evaluations.pair.layer_divergence import LayerDivergence
from tunediff.evaluations.pair.tokenizers import Tokenizers
from tunediff.evaluations.reading.examples import Examples
from tunediff.evaluations.reading.fidelity import Fidelity
from tunediff.evaluations.reading.geometry import Geometry
from tunediff.evaluations.reading.kl_patching import KLPatching
from tunediff.evaluations.reading.label_alignment import LabelAlignment
from tunediff.evaluations.reading.latent_scaling import LatentScaling
from tunediff.evaluations.reading.logit_effect import LogitEffect
from tunediff.evaluations.reading.planted_truth import score
from tunediff.evaluations.reading.positions import Positions
from tunediff.evaluations.reading.probing import Probing
from tunediff.evaluations.reading.segments import Segments
from tunediff.evaluations.reading.twin import Twin
from tunediff.evaluations.transcoders.attribution_graphs import AttributionGraphs
from tunediff.evaluations.transcoders.latent_sets import LatentSets
from tunediff.evaluations.transcoders.recovery import AdapterRecovery
from tunediff.evaluations.transcoders.replacement import Replacement
