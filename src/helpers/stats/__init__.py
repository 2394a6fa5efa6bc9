"""Statistics: every interval and test of the project is made here, and nowhere else.

- `intervals`: an `Estimate` (value, low, high, n), and intervals of rates, means, differences, and over seeds
- `roc`: AUROC, rates at a threshold, and their changes when the same texts are scored twice
- `paired_rates`: whether a rate fell or held, by the score test of paired rates

May import: the root files. A new measure is a function here that returns an `Estimate`, held against a closed form or a
simulation in `tests/stats/`.
"""

from helpers import opener

__getattr__ = opener(__name__)
