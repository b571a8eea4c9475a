"""Responses by vLLM, for long unedited runs on GPUs. Written against its interface and tried against a stand-in
only."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

from tunediff import randomness
from tunediff.edits import opening_of
from tunediff.generation.responses import Request, Response
from tunediff.generation.writer import before_stop
from tunediff.shapes import Refused


@dataclass(frozen=True)
class VLLM:
    """share   of the GPU's memory that it takes; the pair is on the GPU as well
    batch   prompts that are handed over, and whose responses are kept, together
    """

    share: float = 0.5
    batch: int = 256

    def respond(self, request: Request) -> Iterator[tuple[int, Response]]:
        """Responses in the order of the prompts. Raises Refused for what vLLM computes otherwise or not at all, and where it
        is not installed."""
        pair, role, asked, decoding, edits, tokenizer, _ = request
        if edits or decoding.forces:
            raise Refused(
                "vLLM runs neither edits nor budget forcing: choose engine._target_=tunediff.generation.Batched."
            )
        if decoding.min_p > 0 and decoding.top_p < 1:
            raise Refused(
                f"vLLM takes min_p={decoding.min_p} before top_p={decoding.top_p}, and so draws from other tokens: leave one of "
                "them out, or choose engine._target_=tunediff.generation.Batched."
            )
        if pair.follows_length(role):
            raise Refused(
                f"{pair.source(role).path} has rotary factors by the length of a text (longrope, dynamic), of which vLLM keeps "
                "one set for all lengths: choose engine._target_=tunediff.generation.Batched."
            )
        try:
            vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise Refused('engine=tunediff.generation.VLLM needs vLLM: pip install "tunediff[vllm]".') from error
        source = pair.sources.get(role)
        if source is None or source.adapter is not None or source.beside is not None:
            raise Refused(
                "vLLM is given whole models of architectures it has: merge a low-rank adapter into a folder of its own; a model "
                "with transcoder adapters needs engine._target_=tunediff.generation.Batched."
            )
        ends = pair.ends(role) | {tokenizer.eos_token_id}
        model = vllm.LLM(
            source.location,
            revision=source.commit or source.revision,
            dtype=source.dtype,
            gpu_memory_utilization=self.share,
        )
        for start in range(0, len(asked), self.batch):
            some = asked[start : start + self.batch]
            settings = [
                vllm.SamplingParams(
                    max_tokens=decoding.budget,
                    temperature=decoding.temperature,
                    top_k=decoding.top_k,
                    top_p=decoding.top_p,
                    min_p=decoding.min_p,
                    repetition_penalty=decoding.repetition_penalty,
                    stop=list(decoding.stop),
                    stop_token_ids=sorted(ends),
                    seed=randomness.seed_for(decoding.seed, "responses of vLLM", one.name),
                )
                for one in some
            ]
            outputs = model.generate([vllm.TokensPrompt(prompt_token_ids=one.ids) for one in some], settings)
            for n, (one, output) in enumerate(zip(some, outputs, strict=True)):
                best = output.outputs[0]
                ids = before_stop([token for token in best.token_ids if token not in ends], decoding.stop, tokenizer)
                finished = best.finish_reason == "stop"
                opened = opening_of(tokenizer, one.ids, pair.layouts)
                yield start + n, Response(ids, tokenizer.decode(ids), finished, opened)
