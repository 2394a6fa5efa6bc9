"""Statistics: every interval and test of the project is made here, and nowhere else.

- `intervals`: an `Estimate` (value, low, high, n), and intervals of rates, means and differences; `over_seeds`: of several runs
- `unbalanced`: of several runs that do not all have the same units
- `roc`: AUROC, and rates at a threshold; `paired_aurocs`: AUROCs of the same texts compared, and the answers to a margin
- `paired_rates`: whether a rate fell or held, by the score test of paired rates
- `kappa`: the agreement of two raters; `p_values`: many tests at once, and equivalence

May import: the root files. A new measure is a function here that returns an `Estimate`, held against a closed form or a
simulation in `tests/stats/`.
"""

from helpers import opener

__getattr__ = opener(__name__)
