"""Revalidation: the gate for somebody's own model, update and monitors.

- `options`, `policy`, `inputs`, `score_file`: what was asked for, checked; `candidate/`: the update, compared field by field and
  built; `observe`: both models read
- `hypotheses`, `floors`, `error_rates`, `screening`, `repair`: what was lost, what a monitor must do, how sure that is, labels
  needed, repairs; `watches`: all that is known of each monitor; `verdict`: the same in words
- `behaviour/`: what the model itself says, before and after; `evidence/`: the scores that a verdict rests on, judged anew
- `run`, `cli`: the whole, and its command line; `report/`: one report in five files, and a comment

May import: the science and the root files, never study, figures or book: it could be a package of its own.
"""

from helpers import opener

__getattr__ = opener(__name__)
