"""The runner: chapters executed by papermill, in order, resumably, and what each run cost.

- `plans`: a profile, checked; `jobs`: what of it is not done, made; `workflow`: by Snakemake; `execution`, `kernels`: one
  chapter in one kernel; `guards`: locks, disk
- `passes`, `budget`, `outlook`: tokens and minutes beforehand; `manifests`: what a finished run says of itself
- `verification`: a run made anew and compared; `doctor`, `installing`: the environment

May import: study, the science and the root files. Readers of the book never need it.
"""

from helpers import opener

__getattr__ = opener(__name__)
