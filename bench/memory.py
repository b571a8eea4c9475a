"""What evaluations and losses hold at long contexts.   python bench/memory.py --base <folder> --tuned <folder>

Each runs once over one document of random words, in a process of its own: the peak of its memory over what it held once the
models were loaded, in MB, beside five whole float32 matrices of logits [token, vocabulary]. Two folders of random weights
will do: only shapes and the vocabulary matter. What latents take: --only examples segments --latents 32768.
"""

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from typing import Any

import torch

from tunediff import randomness
from tunediff.dictionary import L1, Crosscoder, Normalisation, TranscoderAdapter
from tunediff.evaluations import Trained
from tunediff.evaluations.pair.tokenizers import Tokenizers
from tunediff.evaluations.reading.examples import Examples
from tunediff.evaluations.reading.fidelity import Fidelity
from tunediff.evaluations.reading.kl_patching import KLPatching
from tunediff.evaluations.reading.segments import Segments
from tunediff.evaluations.transcoders.replacement import Replacement
from tunediff.models import ModelPair, ModelSource, replaceable
from tunediff.objectives import Distillation, Imitation
from tunediff.schedules import Constant, Length
from tunediff.text import Text
from tunediff.text.examples import MicroBatch, Step

MB = 1e6
EVALUATIONS = {"fidelity": Fidelity, "kl_patching": KLPatching, "replacement": Replacement, "tokenizers": Tokenizers}
DENSE = {"examples": Examples, "segments": Segments}  # which hold latents and no logits
LOSSES = ("imitation", "distillation")


def resident() -> float:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def text_of(context: int) -> Text:
    """Documents of `context` tokens, the first of two sides of the split held out."""
    words = randomness.chance(0, "words of a text").choices([format(n, "x") for n in range(4096)], k=context)
    rows = [{"text": " ".join(words)}, {"text": "learned"}]
    return Text(lambda: iter(rows), held_out=lambda key: "learned" not in key, context=context)


def evaluated(name: str, pair: ModelPair, context: int, latents: int) -> None:
    if name == "replacement":
        dictionary = TranscoderAdapter(pair.streams("mlp_in", "all", reads="adapter"), latents=64, sparsity=L1(0.0))
        pair.stand_beside(dictionary)
    else:
        kind = partial(Normalisation, kind="none")
        dictionary = Crosscoder(pair.streams("resid_post", 1), latents=latents, sparsity=L1(0.0), normalisation=kind)
    dictionary = dictionary.eval().requires_grad_(False)
    list({**EVALUATIONS, **DENSE}[name]().run(Trained(pair, text_of(context), context, dictionary=dictionary)))


def learned(name: str, pair: ModelPair, context: int) -> None:
    """One step of a loss, with its backward pass."""
    ids = torch.randint(1000, (1, context), generator=randomness.generator(0, "ids of a context"))
    micro_batch = MicroBatch(ids, torch.arange(context)[None], ids)
    step, model = Step([micro_batch], context, context), pair.models["tuned"]
    objective: Any
    if name == "imitation":
        objective = Imitation()
        model.requires_grad_(True)
    else:
        adapter = TranscoderAdapter(pair.streams("mlp_in", "all", reads="adapter"), latents=64, sparsity=L1(0.0))
        objective = Distillation().teach(adapter, Constant())
        model = replaceable(model, pair.models["base"], adapter)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for term in objective.terms(0, Length(1, context), 0):
        objective.part(model, micro_batch, term, step).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--only", nargs="+", default=[*EVALUATIONS, *LOSSES])
    parser.add_argument("--latents", type=int, default=256, help="of the dictionary that evaluations read")
    parser.add_argument("--one", action="store_true", help="the first of each, in this process")
    asked = parser.parse_args()
    if asked.one:
        sources = (ModelSource(path, dtype="float32") for path in (asked.base, asked.tuned))
        pair = ModelPair(*sources).load()
        before, (name, context) = resident(), (asked.only[0], asked.contexts[0])
        if name in LOSSES:
            learned(name, pair, context)
        else:
            evaluated(name, pair, context, asked.latents)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        vocabulary = pair.embedded("tuned")
        print(json.dumps({"peak": peak, "more": peak - before, "five": 5 * 4 * context * vocabulary}))
        return
    print("| | tokens | MB at the peak | more than loaded | five matrices of logits |\n|---|---|---|---|---|")
    for name in asked.only:
        for context in asked.contexts:
            command = [sys.executable, __file__, "--base", asked.base, "--tuned", asked.tuned, "--one"]
            command += ["--only", name, "--contexts", str(context), "--latents", str(asked.latents)]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            said = f"failed ({made.returncode})"
            if made.returncode == 0:
                found = json.loads(made.stdout.splitlines()[-1])
                said = " | ".join(f"{found[part] / MB:,.0f}" for part in ("peak", "more", "five"))
            print(f"| {name} | {context:,} | {said} |", flush=True)


if __name__ == "__main__":
    main()
