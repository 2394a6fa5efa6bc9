"""The book: from executed chapters to a site that needs no server.

- `pages`, `chapter_cells`, `site`: pages from notebooks, their cells as a reader meets them, and what is done to the built
  site; `appendices`, `parameter_table`, `provenance`:
  pages made from the project itself; `explore`, `explore_data`: the page Explore; `exercises`, `exercise_form`, `judging`:
  questions, checked, as a chapter holds them, and what is said of an answer
- `claim_pages`, `power`: verdicts with their reasons, coverage, and what more seeds or items would decide
- `answers/`: what was found, in sentences made from the tables of all seeds: boxes *In short*, *On Monday*, the page of questions
- `verdict_history/`: which verdicts moved between two folders of results, the record of it, its page and feed
- `lesson/`: what one run of `quick` gave, kept for the page on what a class will see
- `away/`: the book taken away, into a notebook on another machine (`launch`) and onto paper (`pdf`)
- `markup`: text as Markdown and HTML, escaped

May import: figures, study, runner, the science and the root files. Nothing imports it but the command line.
"""

from helpers import opener

__getattr__ = opener(__name__)
