"""A prompt -> which latents and tokens made the next token likely, through which latents.

linearised.py -> graph.py -> influence.py -> files.py          a linear backward pass, edges, what carries most, files
"""

from tunediff.attribution.files import write_graph
from tunediff.attribution.graph import Graph, attribute
from tunediff.attribution.influence import Pruned, check_share, influence, prune, summed
from tunediff.attribution.linearised import Seen, linearised
