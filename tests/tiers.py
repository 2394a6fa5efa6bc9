"""Two tiers: `make test` runs what a change needs, `make test-all` also what is marked slow. Each such mark says why.

CONTRIBUTING lists what is slow and what stands for it in `make test`; test_tiers.py keeps the share small.
"""

from collections.abc import Collection, Iterable

import pytest

# The dearest files, which two workers take up first: none of them is the tail.
FIRST = ("test_study", "test_run")
MOST = 0.15  # the share of all tests that may be slow


def slow(why: str) -> pytest.MarkDecorator:
    """The mark of a test that is worth having but not each time."""
    return pytest.mark.slow(why)


def mostly_slow(cases: Iterable, why: str, first: int = 1, keep: Collection = ()) -> list:
    """The cases of a parametrization, all but the `first` ones and those to `keep` marked slow."""
    return [case if i < first or case in keep else _slow(case, why) for i, case in enumerate(cases)]


def _slow(case: object, why: str) -> object:
    if hasattr(case, "values") and hasattr(case, "marks"):  # a pytest.param
        return pytest.param(*case.values, marks=[*case.marks, slow(why)], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow(why))


def reasons(item: pytest.Item) -> list[str]:
    """Why a test is slow, one reason a mark; "" where a mark does not say."""
    return [" ".join(str(word) for word in mark.args) for mark in item.iter_markers("slow")]
