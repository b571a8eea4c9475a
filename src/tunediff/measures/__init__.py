"""Measuring instruments that several evaluations share: intervals, comparisons, separation, matching. Know no dictionary.

clustered.py    sums per document; intervals over documents    next_tokens.py  cross-entropy and KL of next tokens
paired.py       shares; conditions on the same problems        matching.py     latents of two runs, one to one
separation.py   AUROC, its interval, and that of shuffled labels      samples.py  several answers to each problem
"""

from tunediff.measures.paired import (
    BudgetCurve,
    Interval,
    Recovered,
    difference,
    mcnemar,
    recovery,
    resampled,
    scaling,
    scaling_difference,
    share,
    wilson,
)
