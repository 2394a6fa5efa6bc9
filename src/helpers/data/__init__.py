"""Texts: where they come from, how they are split, and which of them make a task for a monitor.

- `sources`: packages, the hub and stand-ins, each pinned by its hash; `corpora`: the text sets that are drawn from them
- `tasks`: `TASKS`, what a monitor tells apart; `pii_templates`: sentences with and without personal data
- `splits`: train, validation and test without relatives across them; `user_files`: labelled files and scores of a user

May import: stats and the root files; no model. A new task is a function and one line in `tasks.TASKS`; `tests/data/` tries
each of them the moment it is listed.
"""

from helpers import opener

__getattr__ = opener(__name__)
