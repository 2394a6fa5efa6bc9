"""Taking the book away: into a notebook on another machine, and onto paper.

- `launch`: what a public address of the repository switches on: its buttons on every page, and a notebook a chapter that
  clones it and runs there
- `document`, `pdf`: all pages of the built site as one document, and that printed by chromium, with cover and contents

All read what was built or committed; none knows a model.
"""

from helpers import opener

__getattr__ = opener(__name__)
