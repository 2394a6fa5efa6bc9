"""What a class will see: the numbers, answers and figures that a run of `quick` gave, kept small, and the teachers' page of them.

`quick_run` (what is kept of a run, the file that keeps it, and the part of the page that is made from it).
"""

from helpers import opener

__getattr__ = opener(__name__)
