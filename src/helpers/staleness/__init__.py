"""Staleness: what frozen monitors lose on an updated model, and whether it could have been foreseen.

- `cohorts`: which monitors are counted together: one pooling at a time, the weak apart
- `drops`: AUROC drops, alarms, refits, angles; `verdicts`, `interaction`, `score_histograms`: what they add up to
- `own_replies`: monitors that read what the model itself replies, before and while it does
- `drift_signals`: `SIGNALS`, what can be seen without labels; `forecast_data`: signals beside drops, one row a cell
- `moved_weights`: by how much an update moved what a model multiplies by, in all and along a direction
- `predictors`, `triage`, `threshold_rules`: which monitors to revalidate first; `order_measures`: how well such an order does
- `policies`: what a whole policy of checks and repairs costs and leaves

May import: stats, data, models, updates, monitors and the root files. A new signal is one line in `drift_signals.SIGNALS`.
"""

from helpers import opener

__getattr__ = opener(__name__)
