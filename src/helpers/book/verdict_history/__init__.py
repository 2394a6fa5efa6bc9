"""When a verdict changed: two folders of results compared, a record of what moved, and where the book says so.

`sides` (one folder of a profile's results: its verdicts, and the parts of its claims), `moves` (what differs between two of
them), `record` (the file of all changes that were recorded, and its form), `shown` (the section of the page on changes, and the
feed), `lines` (verdicts and moves for a terminal), `command` (`python -m helpers findings`).
"""

from helpers import opener

__getattr__ = opener(__name__)
