"""What all figures share: `theme` and `layout` (style, panels, legends, the sentence above), `named_points`, `task_lines`,
`heat_cells`, `spectrum_panels`, `spoken` and `two_heaps` (kinds of panels), `pooled` (shares over updates), `marks` (what was
drawn, as data), `alt_text`, `dark_mode`, and `export` (a figure as PNG, SVG, CSV and words on a page)."""

from helpers import opener

__getattr__ = opener(__name__)
