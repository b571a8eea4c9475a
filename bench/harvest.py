"""What the models cost: tokens a second with LM head, without it, and stopped at the layer that is read.

    python bench/harvest.py [--width 256 --layers 8 --vocabulary 32000] [--tokens 4096] [--repeats 5]

Randomly initialised Qwen2 models; the three ways take turns in one run, medians and their ratios are printed.
"""

import argparse
import statistics
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tunediff import randomness
from tunediff.hookpoints import ForwardStopped, Point, reading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()

    config = Qwen2Config(
        vocab_size=asked.vocabulary,
        hidden_size=asked.width,
        intermediate_size=4 * asked.width,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // 64,
        num_key_value_heads=asked.width // 64,
    )
    model = Qwen2ForCausalLM(config).to(asked.device, getattr(torch, asked.dtype)).eval()
    ids = torch.randint(
        asked.vocabulary,
        (max(1, asked.tokens // 512), min(512, asked.tokens)),
        generator=randomness.generator(0, "ids to harvest"),
    ).to(asked.device)
    point = Point("resid_post", asked.layers // 2)

    def stopped() -> None:
        with reading(model, [point]):
            try:
                model.base_model(ids, use_cache=False)
            except ForwardStopped:
                return

    ways = {
        "whole model with LM head": lambda: model(ids, use_cache=False),
        "without LM head": lambda: model.base_model(ids, use_cache=False),
        f"stopped at layer {point.layer}": stopped,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for repeat in range(asked.repeats + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                if asked.device == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first round warms up
                    seconds[name].append(time.perf_counter() - begun)
    slowest = statistics.median(seconds["whole model with LM head"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28s} {ids.numel() / median:12,.0f} tokens/s   x{slowest / median:.2f}")


if __name__ == "__main__":
    main()
