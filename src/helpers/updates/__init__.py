"""Updates: what is done to a model - quantize, tune, merge - and the variants that come of it.

- `quantizers`: `QUANTIZERS`; `packed_codes`: a weight as it is stored
- `quantized_models`, `weight_errors`: models made with them, and how far their weights lie off
- `recipes`, `names`: what an update is called, and how it is trained
- `training`, `preferences`, `salora`, `safety_tuning`: the training, its loss on pairs, and the aligned model
- `endings`: by what a training ends before its recipe does: refusals broken, or a size reached
- `lora`: low-rank changes, kept low rank
- `variants`: one concrete model, built from its name; `measurements`: each variant measured once, and kept by content

May import: stats, data, models and the root files. A new quantizer is a function and one line in `quantizers.QUANTIZERS`.
"""

from helpers import opener

__getattr__ = opener(__name__)
