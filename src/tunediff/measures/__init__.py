"""Measuring instruments that several evaluations share: intervals, comparisons, separation, matching. Know no dictionary.

clustered.py    sums per document; intervals over documents    next_tokens.py  cross-entropy and KL of next tokens
shares.py       means of what has bounds                       matching.py     latents of two runs, one to one
paired.py       conditions on the same problems; budgets  gradients.py    of hidden vectors, along a direction
separation.py   AUROC, its interval, and that of shuffled labels      samples.py  several answers to each problem
"""

from tunediff.measures.paired import (
    BudgetCurve,
    Interval,
    Recovered,
    difference,
    mcnemar,
    recovery,
    scaling,
    scaling_difference,
)
from tunediff.measures.shares import mean_of, share, wilson
