"""Sums over the tokens of each document -> a number and its interval, with whole documents as the units of chance.

Tokens of one document are not independent, so that an interval which counts tokens is far too narrow. Here every
document gives one number, its influence: what the value would change without it. The variance is the jackknife's (Tukey
1958; of clusters of unequal size it is CR3 of Cameron and Miller 2015, Journal of Human Resources 50:317, section VI.B), for
clustered standard errors (Miller 2024, arXiv 2411.00640) that longer documents do not make too small. Student's t has the
degrees of freedom of documents whose numbers vary as their lengths do, (sum n^2)^2 / sum n^4 less one in D (Bell and
McCaffrey 2002, Survey Methodology 28:169, for independent document means); of D equal ones they are D - 1.

Where random controls were drawn as well, draws and documents are both units of chance: their variances add up (two ways of
clustering, Cameron, Gelbach and Miller 2011, Journal of Business & Economic Statistics 29:238, section 2.2, without the
subtraction that can make a variance negative), with the degrees of freedom of Satterthwaite 1946 (Biometrics Bulletin 2:110).
bench/coverage.py says how often these intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

# a value, its lower and its upper bound, as a finding has them
Bounded = tuple[float | None, float | None, float | None]


class DocumentSums:
    """Sums over the tokens of every document, in the order in which documents are first met. A document may go on in the
    next batch."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def documents(self) -> list[int]:
        """Indices of the documents."""
        return list(self._sums)

    def add(self, rows: Tensor, documents: Tensor) -> None:
        """Adds rows [token, ...] of tokens of these documents [token]."""
        self.merge(by_document(rows, documents))

    def merge(self, sums: Mapping[int, Tensor]) -> None:
        """Adds sums of whole documents."""
        for document, part in sums.items():
            self._sums[document] = self._sums[document] + part if document in self._sums else part

    def stacked(self) -> Tensor:
        """Sums [document, ...] of all documents."""
        return torch.stack(list(self._sums.values()))


def by_document(rows: Tensor, documents: Tensor) -> dict[int, Tensor]:
    """Index of a document -> sum [...] of its rows, from rows [token, ...] of tokens of these documents [token]."""
    return {document: rows[documents == document].sum(0) for document in documents.unique().tolist()}


class Estimate(NamedTuple):
    """A number that documents have given, in float64.

    value       [...]             influence   [document, ...], what each document adds to value - its expectation
    drawn       [draw, ...]       the same of each random draw; None where nothing was drawn
    freedom     [...]             degrees of freedom of the documents; None: their number less one
    """

    value: Tensor
    influence: Tensor
    drawn: Tensor | None = None
    freedom: Tensor | None = None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two numbers over the same documents: it pairs them, and their draws where both have some."""
        drawn = self.drawn if self.drawn is not None or other.drawn is None else torch.zeros_like(other.drawn)
        if drawn is not None and other.drawn is not None:
            drawn = drawn - other.drawn
        freedom = self.freedom if other.freedom is None else other.freedom
        return Estimate(self.value - other.value, self.influence - other.influence, drawn, freedom)

    def entries(self, chosen: Callable[[Tensor], Tensor]) -> Estimate:
        """Some entries of [...], or means of some, over the same documents: what is chosen of the value, of all fields."""
        drawn, freedom = (None if field is None else chosen(field) for field in (self.drawn, self.freedom))
        return Estimate(chosen(self.value), chosen(self.influence), drawn, freedom)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bound [...] of the confidence interval at a level such as 0.99; NaN for fewer than two documents or
        draws."""
        reach = self.quantile(level) * self.variance().sqrt()
        return self.value - reach, self.value + reach

    def bounded(self, level: float = 0.95, *, least: float = -inf, most: float = inf) -> Bounded:
        """Value and confidence interval of a finding, None where they are not defined; bounds are clamped to what the measure
        can be, from `least` to `most`. Documents of which no two differ have no interval: that says nothing of chance."""
        if bool(self.variance() <= (1e-12 * self.value).square()):
            return number(self.value), None, None
        low, high = self.interval(level)
        return number(self.value), number(low.clamp(least, most)), number(high.clamp(least, most))

    def skewed(self, level: float = 0.95, *, least: float = -inf, most: float = inf) -> Bounded:
        """`bounded` for counts and lengths, of which a few units have far more than others: Student's t is brought back through the
        cubic that takes the skewness of the value away, T + k T^2 / 3 + k^2 T^3 / 27 + k / 6 (Hall 1992, Journal of the Royal
        Statistical Society B 54:221), so that the interval reaches further to the side on which the rare large ones lie. Its degrees
        of freedom are fewer where the tails are heavy."""
        value, low, high = self.bounded(level)
        if low is None or high is None:
            return value, low, high
        error, reach = self.variance().sqrt(), self.quantile(level, heavy=True)
        cubes = [part.pow(3).sum(0) for part in (self.influence, self.drawn) if part is not None]
        skewness = float(sum(cubes) / error.pow(3))
        low, high = (float(self.value - error * _brought_back(sign * float(reach), skewness)) for sign in (1, -1))
        return value, min(max(low, least), most), min(max(high, least), most)

    def sign(self, level: float = 0.95) -> int:
        """1 or -1 where the number lies above or below 0 beyond doubt, else 0; that of the value where there is no interval."""
        if not bool(self.variance().isfinite()):
            return int(self.value.nan_to_num().sign())
        low, high = self.interval(level)
        return int(low > 0) - int(high < 0)

    def variance(self) -> Tensor:
        """The variance [...] of the value: that over documents, and that over draws."""
        return sum(_moments(self, self), start=torch.zeros_like(self.value))

    def quantile(self, level: float, *, heavy: bool = False) -> Tensor:
        """The quantile [...] of Student's t that bounds a two-sided interval at this level; `heavy` where units may have tails
        heavier than a normal distribution's."""
        of_documents, of_draws = (*_moments(self, self), torch.zeros_like(self.value))[:2]
        documents = torch.as_tensor(max(len(self.influence) - 1, 1) if self.freedom is None else self.freedom)
        draws = torch.tensor(1 if self.drawn is None else max(len(self.drawn) - 1, 1))
        if heavy:
            documents = documents.minimum(_freedom(self.influence))
            draws = draws if self.drawn is None else draws.minimum(_freedom(self.drawn))
        freedom = (of_documents + of_draws).square() / (of_documents.square() / documents + of_draws.square() / draws)
        found = stdtrit(freedom.nan_to_num(nan=1.0).numpy(), 0.5 + level / 2)
        return torch.as_tensor(found, dtype=self.value.dtype)


def _freedom(influence: Tensor) -> Tensor:
    """Degrees of freedom [...] of the variance of influences [unit, ...] that may have heavy tails: n / (1 + excess kurtosis), not
    below 3; infinity for fewer than four units. In the variance of a variance, s^4 (excess / n + 2 / (n - 1)), the excess is
    counted twice, for few units seldom show the large ones that make it (bench/coverage.py)."""
    units = len(influence)
    if units < 4:
        return torch.full_like(influence[0], torch.inf)
    kurtosis = units * influence.pow(4).sum(0) / influence.square().sum(0).square()
    excess = (units - 1) / ((units - 2) * (units - 3)) * ((units + 1) * (kurtosis - 3) + 6)
    return (units / (1 + excess.nan_to_num(0.0).clamp(min=0))).clamp(min=3)


def _brought_back(transformed: float, skewness: float) -> float:
    """The T whose cubic is `transformed`."""
    if abs(skewness) < 1e-6:
        return transformed
    return 3 / skewness * (float(np.cbrt(1 + skewness * (transformed - skewness / 6))) - 1)


def _moments(one: Estimate, other: Estimate) -> list[Tensor]:
    """Covariances [...] of two numbers over documents, and over draws where both have some; NaN for fewer than two."""
    found = []
    for first, second in ((one.influence, other.influence), (one.drawn, other.drawn)):
        if first is not None and second is not None:
            units = len(first)
            found.append((first * second).sum(0) * (units / (units - 1) if units > 1 else torch.nan))
    return found


def over_draws(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one number over random draws, all of the same documents; its interval is over draws and documents."""
    values = torch.stack([one.value for one in estimates])
    influence = torch.stack([one.influence for one in estimates]).mean(0)
    return Estimate(values.mean(0), influence, (values - values.mean(0)) / len(values), estimates[0].freedom)


def quotient(
    above: Estimate, below: Estimate, level: float = 0.95, *, least: float = -inf, most: float = inf
) -> Bounded:
    """The ratio of two numbers over the same documents, with the interval of Fieller 1954 (Journal of the Royal Statistical
    Society B 16:175): every ratio at which above - ratio * below is not told from 0. Where `below` itself is not, all ratios
    are possible and none is given; a denominator far from 0 gives what the delta method does."""
    if not below.sign(level):
        return None, None, None
    ratio = above.value / below.value
    scaled = below.entries(lambda field: ratio * field)._replace(freedom=below.freedom)
    rest = above - scaled
    if not bool(rest.variance() > (1e-12 * above.value).square()):
        return number(ratio), None, None
    reach = rest.quantile(level).square()
    parts = ((below, below), (above, below), (above, above))
    a, b, c = (one.value * other.value - reach * sum(_moments(one, other)) for one, other in parts)
    if not a > 0:  # told from 0 by its own degrees of freedom and not by those of the ratio
        return None, None, None
    root = (b * b - a * c).clamp(min=0).sqrt()
    low, high = (b - root) / a, (b + root) / a
    return number(ratio), number(low.clamp(least, most)), number(high.clamp(least, most))


def interval_columns(name: str, bounded: Bounded) -> dict[str, float | None]:
    """A value and its bounds as the columns <name>, <name>_low and <name>_high of a table."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), bounded, strict=True))


def number(value: Tensor) -> float | None:
    """The value of a finding: None where it is not defined, such as a rate over no token."""
    return float(value) if torch.isfinite(value) else None


def ratio(sums: Tensor, counts: Tensor) -> Estimate:
    """The sum of `sums` [document, ...] divided by the sum of `counts` [document, ...]: a mean over tokens where `counts` are
    tokens. Trailing axes broadcast."""
    total, whole = counts.sum(0), sums.sum(0)
    value = whole / total
    return jackknifed(value, (whole - sums) / (total - counts), counts)


def of_sums(
    measure: Callable[[Mapping[str, Tensor]], Tensor], sums: Tensor, names: Sequence[str], counted: str
) -> Estimate:
    """One number that `measure` makes, entry by entry, of named sums over all documents, of sums [document, name]; the sum that
    is `counted` says how much of the number each document is."""
    totals = sums.sum(0)
    value, without = (measure(dict(zip(names, some.unbind(-1), strict=True))) for some in (totals, totals - sums))
    return jackknifed(value, without, sums[:, names.index(counted)])


def jackknifed(value: Tensor, without: Tensor, counts: Tensor) -> Estimate:
    """The estimate of a value [...] that is `without` [document, ...] where a document is left out, and rests on `counts`."""
    documents = len(without)
    square = counts.square().sum(0)
    freedom = (square.square() / counts.square().square().sum(0) * (documents - 1) / documents).clamp(min=1)
    influence = (value - without) * ((documents - 1) / documents)
    return Estimate(value, influence, None, freedom.expand(value.shape))
