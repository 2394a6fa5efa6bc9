"""What the book says was found: sentences that are made from the tables of all seeds, with a branch for each outcome.

`facts` (numbers that no claim asks for), `numbers` (all of them, of all runs of a profile, and how each is written and linked),
`statements` (a sentence for each outcome: so, not so, in part, cannot be told and why, not measured), `wording` and `questions`
(the sentences themselves: the boxes of the chapters, the first page, and the page of questions), `parts` (what stands on a page).
"""

from helpers import opener

__getattr__ = opener(__name__)
