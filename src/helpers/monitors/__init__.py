"""Monitors: probes fitted on hidden states, frozen with a threshold, read on every variant, and repaired.

- `probes`: `PROBES`, the kinds; `readouts`: what a fitted probe is; `baselines`: what needs no model
- `readings`: which texts are read at which places; `frozen`: a monitor and its threshold, on disk
- `fitting`: monitors of a model, and those that are fitted with simulated updates
- `stale`: what makes a monitor stale, the one place that says it
- `realignment`, `repair_case`, `repairs`: maps and thresholds that make a stale monitor fit again, from cheap to dear;
  `gate`: which monitors need that, by unlabelled texts; `repair_measures`, `repair_ladder`: what every rung gave
- `exchange/`: monitors that were fitted elsewhere, scikit-learn's among them
- `spot_check`: a quick look at a model with few texts

May import: stats, data, models, updates and the root files. A new kind of probe is one line in `probes.PROBES`.
"""

from helpers import opener

__getattr__ = opener(__name__)
