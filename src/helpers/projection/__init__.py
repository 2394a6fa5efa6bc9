"""Projection: the alignment matrix V, its subspaces, and updates projected on them.

- `alignment_matrix`: V = W_aligned - W_base by module; `subspaces`: its leading directions
- `safelora`, `safety_inputs`, `restorations`: SafeLoRA, SPLoRA, their successors and controls; `restored_updates`: the same
  in variants
- `curves`, `recoveries`: restorations over strengths, and what they gave back
- `quantized_subspaces`, `stronger_alignment`: V of quantized weights, and V of harder tunings

May import: all wings of the science but neurons. A new restoration is a function and one line in
`restorations.RESTORATIONS`.
"""

from helpers import opener

__getattr__ = opener(__name__)
