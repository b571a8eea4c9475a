"""Effect of latents on the logits: the tokens that its decoder direction raises and lowers most, through each model's own unembedding.

    effect = W_U (g * d / |d|), minus its mean over the vocabulary

with d the latent's decoder row of that model in the model's own units, g the gain of the final norm and W_U the
unembedding: the direct path to the logits, without the layers between and without the final norm's scale. Of a dictionary
over several layers the highest is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.given import Trained
from tunediff.evaluations.latents.splice import model_of
from tunediff.models import unembedding
from tunediff.shapes import Note, Table
from tunediff.text import Spelling

MATRICES = 4  # [direction, vocabulary] held at once: effects, the parts they are put together from, their negatives
WRITTEN = ("resid_pre", "resid_post", "attn_out", "mlp_out")  # hookpoints whose values are added to the residual stream


class LogitEffect:
    """tokens   number of raised and of lowered tokens per latent"""

    def __init__(self, *, tokens: int = 8):
        self.tokens = tokens

    @torch.no_grad()
    def run(self, trained: Trained) -> Iterator[Table | Note]:
        columns = defaultdict(list)
        for role in trained.roles:
            hookpoint, directions = written_rows(trained, role)
            if hookpoint not in WRITTEN:
                yield Note(f"Logit effects were not taken: values at {hookpoint} are not added to the residual stream.")
                return
            for latent, sign, tokens, effects in strongest_effects(trained, role, directions, tokens=self.tokens):
                columns["latent"] += [latent] * len(tokens)
                columns["rank"] += range(len(tokens))
                columns["token"] += tokens
                columns["effect"] += effects
                columns["role"] += [role] * len(tokens)
                columns["sign"] += [sign] * len(tokens)
        yield Table("logit_effect", dict(columns))


@torch.no_grad()
def strongest_effects(
    trained: Trained, role: str, directions: Tensor, *, tokens: int, signs: Sequence[int] = (1, -1)
) -> Iterator[tuple[int, int, list[str], list[float]]]:
    """Yields the index of a direction [direction, width] in a model, the sign, and the tokens it moves most that way, strongest
    first, with their effects."""
    model, tokenizer = model_of(role), trained.pair.tokenizers[trained.pair.entry(model_of(role))]
    weight, gain = unembedding(trained.pair.models[model])
    units = torch.nn.functional.normalize(directions, dim=-1).to(gain) * gain
    spelled = Spelling(tokenizer)
    known = min(len(weight), len(tokenizer))  # the rest pads the matrix
    matrix = (
        trained.logits_mb * 1e6 / MATRICES / 4
    )  # numbers of one [direction, vocabulary], or of a part of the unembedding
    rows, entries = (max(1, int(matrix / size)) for size in (known, len(gain)))
    for first in range(0, len(units), rows):
        some = units[first : first + rows]
        effect = torch.cat([some @ part.float().T for part in weight[:known].split(entries)], dim=-1)
        effect -= effect.mean(-1, keepdim=True)
        best = {sign: (sign * effect).topk(min(tokens, known), dim=-1) for sign in signs}
        for n in range(len(some)):
            for sign, (values, numbers) in best.items():
                words = list(map(spelled, numbers[n].tolist()))
                yield first + n, sign, words, [sign * value for value in values[n].tolist()]


def written_rows(trained: Trained, role: str) -> tuple[str, Tensor]:
    """The hookpoint at which latents write into a model, and their decoder rows there [latent, width]: each latent's own
    for a transcoder adapter, those of the highest layer for a dictionary over several."""
    dictionary = trained.dictionary
    if isinstance(dictionary, TranscoderAdapter):
        return "mlp_out", dictionary.W_dec
    highest = max(trained.streams_of(role), key=lambda n: dictionary.streams[n].layer)
    rows = dictionary.W_dec / dictionary.normalisation.scale
    return dictionary.streams[highest].hookpoint, rows.split(dictionary.widths, dim=-1)[highest]
