"""Texts: where they come from, how they are split, and which of them make a task for a monitor.

- `sources`: files of pinned packages, verified in the cache; `source_list`, `downloads`, `archives`: which, and how they come
- `corpora`: the text sets drawn from them, and what a model is tuned on; `stand_ins`: the same form without a download
- `text_rows`, `near_duplicates`: one exchange, and texts that are one in other words; `human_labels`: what people said of replies
- `tasks`: `TASKS`, what a monitor tells apart; `elsewhere`: second test sets, and harmless texts for thresholds;
  `pii_templates`: sentences with and without personal data
- `splits`: train, validation and test without relatives across them; `user_files`: labelled files and scores of a user;
  `intake/`: whether a file can be read, and which of its rows are

May import: stats and the root files; no model. A new task is a function and one line in `tasks.TASKS`; `tests/data/` tries
each of them the moment it is listed.
"""

from helpers import opener

__getattr__ = opener(__name__)
