"""Two tiers: `make test` runs what a change needs, `make test-all` also what is marked slow. Each mark says why.

CONTRIBUTING lists what is slow and what stands for it in `make test`; test_tiers.py keeps the share small.
"""

from collections.abc import Iterable

import pytest

# The dearest files, which two workers take up first: none of them is the tail.
FIRST = ("test_study", "test_jobs")
MOST = 0.15  # the share of all tests that may be slow


def slow(why: str) -> pytest.MarkDecorator:
    """The mark of a test that is worth having but not each time."""
    return pytest.mark.slow(why)


def mostly_slow(why: str, *keep: str) -> pytest.MarkDecorator:
    """The same for the cases of a function, but for those to `keep`, named by their ids; without a name, for the first."""
    return pytest.mark.mostly_slow(why, *keep)


def mark_cases(items: Iterable[pytest.Item]) -> None:
    """Marks as slow the cases that `mostly_slow` means."""
    kept: dict[str, tuple[str, ...]] = {}
    for item in items:
        mark = item.get_closest_marker("mostly_slow")
        if mark:
            why, *keep = mark.args
            own = item.callspec.id
            if own not in kept.setdefault(item.nodeid.partition("[")[0], tuple(keep) or (own,)):
                item.add_marker(slow(why))


def reasons(item: pytest.Item) -> list[str]:
    """Why a test is slow, one reason a mark; "" where a mark does not say."""
    return [" ".join(mark.args) for mark in item.iter_markers("slow")]
