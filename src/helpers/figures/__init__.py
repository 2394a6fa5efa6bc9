"""Figures: what a chapter shows. A table in, a figure, a table for people or a sentence out.

- one file a chapter: `models` (01 to 03), `monitors`, `staleness`, `triage`, `projection`, `subspaces`, `neurons`, `repair`,
  `findings`; tables for people and sentences beside them: `staleness_tables`, `projection_tables`, `repair_tables`,
  `findings_tables`
- `tables`: numbers with intervals as text, and glued into prose; `drawing/`: style, panels, marks, dark mode, alt text;
  `titles/`: the sentence above each figure, made from its rows

May import: the science, study and the root files. No science wing imports it: methods know nothing of how they are shown.
A new figure is a function in its chapter's file; `tests/figures/` draws it from planted tables.
"""

from helpers import opener

__getattr__ = opener(__name__)


def style() -> None:
    """Sets the book's style; every figure shown from then on is exported with its data, its words and a dark form."""
    from helpers.figures.drawing import theme

    theme.style()
