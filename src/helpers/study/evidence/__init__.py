"""Evidence: what one run's tables say on each component of a claim; None where nothing was measured.

`behaviour` (what models refuse and are good for), `monitors` (what frozen monitors lose), `replies` (those that read the model's
own replies), `repair` (what brings monitors back).
"""

from helpers import opener

__getattr__ = opener(__name__)
