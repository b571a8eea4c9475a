"""A text -> whole sequences to learn from, for dictionaries that stand inside the models: transcoder adapters change what
every later layer reads, so that there are no activations to shuffle. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from tunediff.shapes import Refused
from tunediff.text import Batches, Examples, Text, examples


@dataclass(frozen=True)
class WholeSequences:
    """Sizes of a step, and the held-out loss.

    batch         number of sequences of a step, over all processes
    micro_batch   number of sequences in one forward pass
    held_out      number of rows on which the loss is followed; 0: none
    evaluate_every           steps between two held-out losses, or a fraction of the run
    gradient_checkpointing   layers are computed again in the backward pass: less memory, a third more time
    """

    batch: int = 8
    micro_batch: int = 8
    held_out: int = 64
    evaluate_every: float | str = 0.1
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("micro_batch", 1), ("held_out", 0)):
            if getattr(self, name) < least:
                raise Refused(f"activations.{name}={getattr(self, name)}: give a number from {least}.")

    def read(self, text: Text, tokenizer, tokens: int) -> tuple[Examples, Examples | None]:
        """Examples to learn from, with at least so many tokens, prompts among them, and the held-out ones. Each is cut at
        text.context."""
        block = {"block": text.context, "setting": "text.context", "everything": True}
        learned = examples(text, tokenizer, tokens=tokens, **block)
        if not self.held_out:
            return learned, None
        return learned, examples(text, tokenizer, held_out=True, limit=self.held_out, **block)

    def batches(
        self, some: Examples, *, tokens: int | None = None, seed: int = 0, rank: int = 0, world: int = 1
    ) -> Batches:
        """Batches of these sequences, in the number of epochs that comes nearest to so many tokens; None: one epoch."""
        epochs = 1 if tokens is None else max(1, round(tokens / some.tokens))
        return Batches(
            some, batch=self.batch, micro_batch=self.micro_batch, epochs=epochs, seed=seed, rank=rank, world=world
        )
