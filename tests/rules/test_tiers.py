"""The tiers: what is slow says why, is a small share of all tests, and leaves something of each file to `make test`."""

from types import SimpleNamespace

import pytest
from conftest import COLLECTED
from support.tiers import MOST, mark_cases, mostly_slow, reasons, slow

WHY = "more of the same kind"


def test_few_tests_are_slow_and_each_says_why(request):
    """So that the mark cannot become the place for whatever is unloved: at most MOST of the cases, none without a reason."""
    items = request.config.stash[COLLECTED]
    if {item.path for item in items} != set(request.path.parents[1].rglob("test_*.py")):
        pytest.skip("not all test files were collected")
    found = [item for item in items if reasons(item)]
    assert [item.nodeid for item in found if not all(len(why.split()) > 2 for why in reasons(item))] == []
    assert 0 < len(found) <= MOST * len(items), f"{len(found)} of {len(items)} tests are slow"


def test_every_file_and_every_function_with_slow_cases_leaves_one_that_is_not(request):
    items = request.config.stash[COLLECTED]
    quick = [item for item in items if not reasons(item)]
    assert {item.path.name for item in items} == {item.path.name for item in quick}
    partly = {item.nodeid.partition("[")[0] for item in items if item.get_closest_marker("mostly_slow")}
    assert partly <= {item.nodeid.partition("[")[0] for item in quick}


class Case:
    """A case of a function, as the collection sees it."""

    def __init__(self, name: str, *marks: pytest.MarkDecorator):
        self.nodeid, self.callspec, self.marks = f"test_f[{name}]", SimpleNamespace(id=name), [mark.mark for mark in marks]

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [mark for mark in self.marks if mark.name == name]

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next(iter(self.iter_markers(name)), None)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark.mark)


@pytest.mark.parametrize(("keep", "expected"), [((), "a"), (("b",), "b"), (("a", "c"), "ac")])
def test_all_cases_but_those_to_keep_are_slow_with_the_reason(keep, expected):
    cases = [Case(name, mostly_slow(WHY, *keep)) for name in "abc"]
    mark_cases(cases)
    assert {case.callspec.id: reasons(case) for case in cases} == {name: [] if name in expected else [WHY] for name in "abc"}


def test_a_mark_without_a_reason_is_found_and_a_function_without_the_mark_is_left_alone():
    plain = Case("a")
    mark_cases([plain])
    assert reasons(plain) == []
    assert reasons(Case("a", pytest.mark.slow())) == reasons(Case("a", slow(""))) == [""]
