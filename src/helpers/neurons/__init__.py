"""Neurons: those that carry refusals are ranked, silenced, patched, and spared from quantization.

- `neuron_scores`: `NEURON_SCORES`; `interventions`: ablation and patching as context managers
- `hybrid_precision`: layers that keep chosen neurons in high precision; `experiments`: chapter 09's measurements

May import: stats, data, models, updates, monitors and the root files. A new score is a function and one line in
`neuron_scores.NEURON_SCORES`.
"""

from helpers import opener

__getattr__ = opener(__name__)
