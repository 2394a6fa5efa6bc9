"""Revalidation: the gate for somebody's own model, update and monitors.

- `options`, `inputs`, `candidate`, `score_file`: what was asked for, checked; `observe`: both models read
- `hypotheses`, `error_rates`, `screening`, `repair`: tests, their error rates, labels needed, repairs; `watches`: all that is
  known of each monitor; `verdict`: the same in words
- `run`, `cli`: the whole, and its command line; `report/`: one report in five files

May import: the science and the root files, never study, figures or book: it could be a package of its own.
"""

from helpers import opener

__getattr__ = opener(__name__)
