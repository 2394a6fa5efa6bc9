"""The study: its chapters and parameters, and what it claims.

- `parameters`, `chapters`: parameters of notebooks and profiles, checked; which chapter needs which
- `claims`: `CLAIMS`, one entry a claim; `evidence`: what each rests on; `findings`: the verdicts over seeds

May import: the science (for the names in its registries) and the root files; nothing that runs or draws. A new claim is one
entry in `claims.CLAIMS` and its evidence.
"""
