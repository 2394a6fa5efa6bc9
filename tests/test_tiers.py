"""The tiers: what is slow says why, is a small share of all tests, and is what the nightly run adds."""

import pytest
from conftest import COLLECTED
from tiers import MOST, mostly_slow, reasons, slow


def test_few_tests_are_slow_and_each_says_why(request):
    """So that the mark cannot become the place for whatever is unloved: at most MOST of the cases, none without a reason."""
    items = request.config.stash[COLLECTED]
    files = {item.path for item in items}
    if len(files) < len(list(request.path.parent.glob("test_*.py"))):
        pytest.skip("not all test files were collected")
    found = [item for item in items if reasons(item)]
    assert [item.nodeid for item in found if not all(len(why.split()) > 2 for why in reasons(item))] == []
    assert 0 < len(found) <= MOST * len(items), f"{len(found)} of {len(items)} tests are slow"
    for path in files - {item.path for item in items if not reasons(item)}:
        raise AssertionError(f"{path.name} is slow as a whole: leave one case of it to `make test`")


def test_cases_are_marked_with_the_reason_except_those_that_stay():
    def whys(cases):
        return [[mark.args for mark in getattr(case, "marks", ())] for case in cases]

    why = ("many like it",)
    assert whys(mostly_slow("abc", *why)) == [[], [why], [why]]
    assert whys(mostly_slow("abc", *why, first=0, keep="b")) == [[why], [], [why]]
    kept, *rest = mostly_slow([(1, 2), (3, 4), pytest.param(5, 6, marks=pytest.mark.real, id="x")], *why)
    assert kept == (1, 2)
    assert [case.values for case in rest] == [(3, 4), (5, 6)]
    assert [mark.name for mark in rest[1].marks] == ["real", "slow"]
    assert rest[1].id == "x"


def test_a_mark_without_a_reason_is_found(request):
    request.node.add_marker(slow(""))
    assert reasons(request.node) == [""]
