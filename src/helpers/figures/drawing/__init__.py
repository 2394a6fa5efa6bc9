"""What all figures share: `theme` and `layout` (style, panels, legends), `share_grid`, `named_points`, `task_lines` and
`two_heaps` (kinds of panels), `marks` (what was drawn, as data), `alt_text`, `dark_mode`, and `export` (a figure as PNG, SVG,
CSV and words on a page)."""

from helpers import opener

__getattr__ = opener(__name__)
