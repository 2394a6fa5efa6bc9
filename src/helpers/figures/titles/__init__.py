"""What a figure says, as the sentence above it: made from the rows that it draws, with a branch for each outcome. One file a
group of chapters; chapters 05 and 06 have theirs in `staleness_tables` and `triage`. `parts`: what they share."""

from helpers import opener

__getattr__ = opener(__name__)
