"""Examples of what each direction of each adapter fires on. Its positive and its negative activations are separate units, each with
its strongest held-out documents (arXiv 2511.06739).

The units are a dictionary themselves (Polarities), and their examples are those of examples.py. Tables: adapter_units, one
row a unit; adapter_examples, the columns of `examples`, with `scaled_activation` the norm of what the direction then adds to
its module's output. Nearly every unit fires on about half of the tokens: how strongly is what tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunediff.evaluations.given import Given, Needs, Work
from tunediff.evaluations.lora.units import adapter_units, check_adapters, read_columns
from tunediff.evaluations.reading.examples import Examples
from tunediff.models import ModelPair
from tunediff.shapes import Finding, Stream, Table
from tunediff.text import Text


class PolarityExamples:
    """strongest, quantiles, random   examples of each kind kept for every unit
    before, after   tokens shown on each side of the peak

    Raises Refused for a pair without adapters."""

    needs = Needs.PAIR

    def __init__(self, *, strongest: int = 50, quantiles: int = 5, random: int = 2, before: int = 20, after: int = 10):
        self.examples = Examples(strongest=strongest, quantiles=quantiles, random=random, before=before, after=after)

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """The tuned model, read twice for its units."""
        return Work(passes=2)

    def check(self, pair: ModelPair, text: Text) -> None:
        check_adapters(pair)

    def run(self, given: Given) -> Iterator[Finding | Table]:
        polarities, units = adapter_units(given.pair)
        reading = given.reading(polarities)
        seen = reading.statistics
        written = seen.maximum * polarities.code_norms().cpu()
        yield Table("adapter_units", read_columns(units) | seen.columns() | {"max_written": written.tolist()})
        for table in self.examples.run(reading):
            named = {"unit" if name == "latent" else name: values for name, values in table.columns.items()}
            yield Table("adapter_examples", named)
        silent = int((~seen.alive).sum())
        meaning = "units: both polarities of every direction of every adapter"
        yield Finding("polarity_examples/units", len(units), meaning=meaning)
        yield Finding("polarity_examples/silent", silent, meaning="units that fire on no held-out token")
