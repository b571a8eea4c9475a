"""Studies of simulated documents, problems, latents and labels -> the interval that a finding would have, and the truth.

Every study is of so many units of chance, and its interval is computed by the function that computes it for a finding. Units are
clustered as real ones are, unlike in length and difficulty. bench/coverage.py counts how often the intervals hold the truth.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.special import betainc, expit, ndtr

from tunediff.activations import RATES, STRENGTHS
from tunediff.measures import Interval, difference, mean_of, recovery, scaling, scaling_difference, share
from tunediff.measures.clustered import Bounded, of_sums, over_draws, quotient, ratio
from tunediff.measures.samples import change, mean, pass_at
from tunediff.measures.separation import separation
from tunediff.measures.shares import share_by_group

BUDGETS = [256, 512, 1024, 2048, 4096]
STEPS = np.arange(1, 6) / 5
DRAWS = 20


def tensor(values: ArrayLike) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, np.float64))


def bounded(found: Interval | None) -> Bounded:
    return (None, None, None) if found is None else (found.value, found.low, found.high)


# -- documents ---------------------------------------------------------------------------------------------------------


def lengths(chance: Generator, documents: int, cut: int = 1024) -> np.ndarray:
    """Tokens of documents, of which some are many times longer than others, cut where a context ends."""
    return np.minimum(np.ceil(400 * chance.lognormal(0, 0.8, documents)), cut)


def a_token(chance: Generator, documents: int, mean: float, cut: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a positive number over the tokens of documents that differ in it, and the numbers of tokens."""
    tokens = lengths(chance, documents, cut)
    level = mean * chance.lognormal(-0.08, 0.4, documents)
    return tokens * level * chance.gamma(tokens, 1 / tokens), tokens


def cost(chance: Generator, documents: int, cut: int = 1024) -> tuple[Bounded, float]:
    sums, tokens = a_token(chance, documents, 2.0, cut)
    return ratio(tensor(sums), tensor(tokens)).bounded(least=0.0), 2.0


def layers(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """The largest of 28 layers' numbers, of documents that all layers share, at 99 %; what it is at that layer."""
    truths = 1 + 0.3 * np.sin(np.arange(28) / 6)
    tokens, level = lengths(chance, documents), chance.lognormal(-0.08, 0.4, documents)[:, None]
    sums = tokens[:, None] * truths * level * chance.lognormal(-0.005, 0.1, (documents, 28))
    found = ratio(tensor(sums), tensor(tokens)[:, None])
    at = int(found.value.argmax())
    return found.entries(lambda field: field[..., at]).bounded(0.99), truths[at]


def variance(chance: Generator, documents: int, models: int = 1) -> tuple[Bounded, float]:
    """What two models leave unexplained, on documents that are hard for both, added in each document."""
    tokens, hard = lengths(chance, documents), chance.lognormal(-0.08, 0.4, documents)
    names = ("unexplained", "spread")
    sums = np.zeros((documents, 2))
    for _ in range(models):
        spread = tokens * chance.lognormal(-0.02, 0.2, documents)
        sums += np.stack([0.2 * spread * hard * chance.lognormal(-0.005, 0.1, documents), spread], 1)
    estimate = of_sums(lambda s: 1 - s["unexplained"] / s["spread"], tensor(sums), names, "spread")
    return estimate.bounded(most=1.0), 0.8


def recovered_of(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """Of what an ablation costs, the share that a splice does not."""
    whole, tokens = a_token(chance, documents, 3.0)
    left = 0.1 * whole * chance.lognormal(-0.08, 0.4, documents)
    kept, of = ratio(tensor(whole - left), tensor(tokens)), ratio(tensor(whole), tensor(tokens))
    return quotient(kept, of, most=1.0), 0.9


def barely(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """The same where the ablation costs as much as documents differ by, so that it is often not told from none."""
    tokens = lengths(chance, documents)
    whole = tokens * chance.normal(1.0, 0.5 * np.sqrt(documents), documents)
    left = 0.3 * whole + tokens * chance.normal(0, 0.5, documents)
    return quotient(ratio(tensor(left), tensor(tokens)), ratio(tensor(whole), tensor(tokens))), 0.3


def drawn(chance: Generator, documents: int, *, draws: int = DRAWS, of: bool = False) -> tuple[Bounded, float]:
    """Numbers of random draws, each of all documents, with what draws, documents and their meeting add; `of` base's."""
    tokens = lengths(chance, documents)
    hard = chance.lognormal(-0.045, 0.3, documents)
    base = tensor(tokens * hard)
    each = [
        ratio(tensor(tokens * hard * level * chance.lognormal(-0.02, 0.2, documents)), tensor(tokens))
        for level in chance.gamma(4, 0.125, draws)
    ]
    whole = over_draws(each)
    if not of:
        return whole.bounded(least=0.0), 0.5
    gap = ratio(base, tensor(tokens))
    return quotient(gap - whole, gap, most=1.0), 0.5


# -- problems ----------------------------------------------------------------------------------------------------------


def difficulties(chance: Generator, problems: int, share: float, alike: float = 1.0) -> np.ndarray:
    """The chance that a problem is solved: most are nearly always or nearly never."""
    return chance.beta(share * alike, (1 - share) * alike, problems)


def once(chance: Generator, problems: int, truth: float) -> tuple[Bounded, float]:
    return share(int((chance.random(problems) < difficulties(chance, problems, truth)).sum()), problems), truth


def often(
    chance: Generator, problems: int, truth: float, alike: float = 0.5, samples: int = 16
) -> tuple[Bounded, float]:
    return mean(chance.binomial(samples, difficulties(chance, problems, truth, alike)) / samples), truth


def one_of_four(chance: Generator, problems: int) -> tuple[Bounded, float]:
    hard = difficulties(chance, problems, 0.1)
    right = chance.random((problems, 16)) < hard[:, None]
    return mean(pass_at(right, 4)), pass_at_truth(0.1)


def pass_at_truth(share: float) -> float:
    """E[1 - (1 - p)^4] of p ~ Beta(share, 1 - share)."""
    return float(1 - np.prod([(1 - share + n) / (1 + n) for n in range(4)]))


def two_models(chance: Generator, problems: int, samples: int, gain: float) -> tuple[Bounded, float]:
    """Problems of which the second model solves a share `gain` that the first does not always."""
    hard = difficulties(chance, problems, 0.3, 0.7)
    after = np.where(chance.random(problems) < gain, 1.0, hard)
    one, other = (chance.binomial(samples, p) / samples for p in (hard, after))
    truth = 0.7 * gain
    if samples == 1:
        return bounded(difference((one > 0.5).tolist(), (other > 0.5).tolist())), truth
    return change(one, other), truth


def below(level: float, hard: float) -> float:
    """P(hard * u + (1 - hard) * v < level) of uniform u and v, for hard above a half."""
    if level > 0.5:
        return 1 - below(1 - level, hard)
    own = 1 - hard
    return level**2 / (2 * hard * own) if level < own else (level - own / 2) / hard


def curve(chance: Generator, problems: int, top: float, hard: np.ndarray) -> np.ndarray:
    """Right answers under budgets, of problems as hard as that: who solves one within a budget solves it within larger ones."""
    return 0.8 * hard + 0.2 * chance.random((problems, 1)) < top * STEPS


def doubling(top: float) -> float:
    """The slope of the true accuracies under `curve`, in percentage points a doubling."""
    return 100 * float(np.polyfit(np.log2(BUDGETS), [below(top * step, 0.8) for step in STEPS], 1)[0])


def of_curve(name: str) -> Callable[[Generator, int], tuple[Bounded, float]]:
    heights = [below(0.7 * step, 0.8) for step in STEPS]
    truths = {"best": heights[-1], "per_doubling": doubling(0.7), "area": float(np.trapezoid(heights) / 4)}

    def study(chance: Generator, problems: int) -> tuple[Bounded, float]:
        found = scaling(curve(chance, problems, 0.7, chance.random((problems, 1))), BUDGETS)
        return bounded(getattr(found, name)), truths[name]

    return study


def flat_best(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Budgets that are all alike: a largest accuracy that is chosen where it is measured is above the truth."""
    return bounded(scaling(chance.random((problems, 5)) < 0.5, BUDGETS).best), 0.5


def gained(chance: Generator, problems: int) -> tuple[Bounded, float]:
    hard = chance.random((problems, 1))
    first, second = (curve(chance, problems, top, hard) for top in (0.4, 0.7))
    return bounded(scaling_difference(first, second, BUDGETS).per_doubling), doubling(0.7) - doubling(0.4)


def recovered(chance: Generator, problems: int) -> tuple[Bounded, float]:
    hard, levels = chance.random(problems), (0.25, 0.55, 0.75)
    base, lora, full = ((0.7 * hard + 0.3 * chance.random(problems) < level) for level in levels)
    low, middle, high = (below(level, 0.7) for level in levels)
    return bounded(recovery(base, lora, full).share), (middle - low) / (high - low)


def recovered_lengths(chance: Generator, problems: int) -> tuple[Bounded, float]:
    hard = chance.lognormal(0, 0.6, problems)
    values = [mean * hard * chance.gamma(4, 0.25, problems) for mean in (100, 340, 500)]
    return bounded(recovery(*values).share), 0.6


def hesitating(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Hesitations per 1,000 tokens: counts that problems differ in, over lengths that they differ in as well."""
    tokens, own = 300 * chance.lognormal(0, 0.6, problems), chance.gamma(1.0, 1.0, problems)
    return ratio(tensor(1000 * chance.poisson(0.01 * tokens * own)), tensor(tokens)).skewed(least=0.0), 10.0


def in_turn(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Accuracy under 20 random draws that answer the problems in turn; the draws' own run from 0 to 1."""
    draws = min(DRAWS, problems)
    right = chance.random(problems) < chance.random(draws)[np.arange(problems) % draws]
    each = [right[draw::draws] for draw in range(draws)]
    return mean_of([np.mean(one) for one in each], least=0.0, most=1.0, weights=[len(one) for one in each]), 0.5


def over_random(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Tokens under an edit less those under the draws, draw by draw."""
    draws = min(DRAWS, problems)
    hard, level = 300 * chance.lognormal(-0.18, 0.6, problems), chance.gamma(4, 0.25, draws)
    own, other = (hard * chance.gamma(4, 0.25, problems) for _ in range(2))
    apart = 0.5 * own - other * level[np.arange(problems) % draws]
    each = [apart[draw::draws] for draw in range(draws)]
    return ratio(tensor([one.sum() for one in each]), tensor([len(one) for one in each])).skewed(), -150.0


def apart_over_random(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Accuracy of a model less that under 20 random draws that answer the same problems in turn."""
    draws = min(DRAWS, problems)
    hard, harm = chance.random(problems), chance.random(draws)[np.arange(problems) % draws]
    apart = (chance.random(problems) < hard).astype(float) - (chance.random(problems) < hard * harm)
    each = [apart[draw::draws] for draw in range(draws)]
    return mean_of([np.mean(one) for one in each], least=-1.0, most=1.0, weights=[len(one) for one in each]), 0.25


def tokens_of(chance: Generator, problems: int) -> tuple[Bounded, float]:
    tokens = 300 * chance.lognormal(-0.18, 0.6, problems) * chance.gamma(4, 0.25, problems)
    return ratio(tensor(tokens), torch.ones(problems).double()).skewed(least=0.0), 300.0


def tokens_apart(chance: Generator, problems: int) -> tuple[Bounded, float]:
    """Tokens under an edit less those without it, of problems that are long for both."""
    hard = 300 * chance.lognormal(-0.18, 0.6, problems)
    apart = hard * (chance.gamma(4, 0.25, problems) - 1.2 * chance.gamma(4, 0.25, problems))
    return ratio(tensor(apart), torch.ones(problems).double()).skewed(), -60.0


def answers_apart(chance: Generator, problems: int, gain: float) -> tuple[Bounded, float]:
    """`two_models` of one answer, by the interval that lengths and rates have as well."""
    hard = difficulties(chance, problems, 0.3, 0.7)
    after = np.where(chance.random(problems) < gain, 1.0, hard)
    apart = (chance.random(problems) < after).astype(float) - (chance.random(problems) < hard)
    return ratio(tensor(apart), torch.ones(problems).double()).skewed(), 0.7 * gain


def judged(chance: Generator, latents: int) -> tuple[Bounded, float]:
    """Balanced accuracies of latents, many of them 1: 1.2 of a Beta(6, 2), and no more than 1."""
    truth = 0.9 * betainc(7, 2, 5 / 6) + 1 - betainc(6, 2, 5 / 6)
    return mean_of((1.2 * chance.beta(6, 2, latents)).clip(max=1), least=0.0, most=1.0), float(truth)


# -- latents -------------------------------------------------------------------------------------------------------------


def matched(chance: Generator, concepts: int) -> tuple[Bounded, float]:
    """Latents that a twin has too: a concept is split over 1.8 latents, as of dictionaries of the toy pair, and is found of most
    of its latents or of few."""
    parts = chance.geometric(0.55, concepts)
    found = chance.random(parts.sum()) < np.repeat(chance.beta(1.2, 0.8, concepts), parts)
    return share_by_group(found, np.repeat(np.arange(concepts), parts)), 0.6


def named(chance: Generator, directions: int) -> tuple[Bounded, float]:
    """Planted directions that a dictionary names, nearly all or nearly none of a strength and rate; those are not drawn."""
    seen = np.array([expit(4 * np.log(size * rate**0.5 / 0.026)) for size in STRENGTHS for rate in RATES])
    each = seen[np.linspace(0, len(seen), directions, endpoint=False).astype(int)]
    return share(int((chance.random(directions) < each).sum()), directions), float(each.mean())


def nu(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """A latent's nu: what the other model still holds of it, over what its own does. It fires in some documents often."""
    often = np.minimum(0.01 * chance.lognormal(-1.125, 1.5, documents), 0.5)
    fires = chance.poisson(lengths(chance, documents) * often)
    own = 0.75 * chance.gamma(np.maximum(2 * fires, 1e-9)) / 1.5
    other = 0.15 * own * chance.lognormal(-0.08, 0.4, documents) + 0.1 * np.sqrt(own) * chance.normal(size=documents)
    return ratio(tensor(other), tensor(own)).bounded(), 0.15


# -- labels --------------------------------------------------------------------------------------------------------------


def told(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """AUROC of a score that differs between documents, as does what the label adds to it; two stretches of five in each."""
    tokens = 100
    label = np.zeros((documents, tokens), bool)
    label[:, 20:25] = label[:, 60:65] = True
    own, added = chance.normal(0, 0.7, (documents, 1)), chance.normal(1, 0.5, (documents, 1))
    score = own + label * added + chance.normal(size=label.shape)
    document = np.repeat(np.arange(documents), tokens)
    found = separation(tensor(score.ravel()).float(), torch.as_tensor(label.ravel()), torch.as_tensor(document))
    return found, float(ndtr(1 / np.sqrt(2 * (0.49 + 1) + 0.25)))


def told_by_few(chance: Generator, documents: int) -> tuple[Bounded, float]:
    """AUROC of a latent that knows nothing of the label, and fires now and then, in stretches and in some documents often."""
    tokens, places = 100, np.arange(100)
    starts = chance.integers(0, tokens - 5, (documents, 3))
    label = ((places >= starts[..., None]) & (places < starts[..., None] + 5)).any(1)
    often = np.minimum(0.01 * chance.lognormal(0, 1.5, (documents, 1)), 0.3)
    begins = chance.random(label.shape) < often
    fires = begins | np.roll(begins, 1, 1) | np.roll(begins, 2, 1)
    score = fires * chance.gamma(4, 0.25, label.shape)
    document = np.repeat(np.arange(documents), tokens)
    return separation(tensor(score.ravel()).float(), torch.as_tensor(label.ravel()), torch.as_tensor(document)), 0.5
