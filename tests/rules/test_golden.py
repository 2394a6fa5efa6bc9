"""Every definition still gives its golden values; a changed formula is told by the name of the definition that it changes."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from support import golden

from helpers import definitions
from helpers.definitions import DEFINITIONS, INTERVALS, QUANTIZE
from helpers.models import compute, loading
from helpers.stats import intervals
from helpers.study import fingerprints
from helpers.updates import quantizers


@pytest.fixture(autouse=True)
def one_way_of_computing():
    """Float32 on one thread, in which all machines agree to a few digits."""
    with compute.using("fp32"), loading.threads(1):
        yield


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_gives_the_values_of_its_number(name):
    moved = golden.check(DEFINITIONS[name])
    if moved:  # the values were just seen to hold; that its code is another is for a reviewer to see
        warnings.warn(moved, stacklevel=1)


def test_every_golden_file_belongs_to_a_definition_and_its_number():
    assert {path.name for path in golden.FOLDER.iterdir()} == {golden.path_of(one).name for one in DEFINITIONS.values()}


# ---------------------------------------------------------------- what is planted is told by name


def test_a_changed_formula_fails_by_the_name_of_its_definition(monkeypatch):
    real = quantizers.QUANTIZERS["rtn-4"]

    def thinner(weight, gram=None):
        return real(1.001 * weight, gram)

    monkeypatch.setitem(quantizers.QUANTIZERS, "rtn-4", thinner)
    with pytest.raises(AssertionError, match=rf"^{QUANTIZE} gives other numbers: raise its number or mend it; quantize/kept/rtn"):
        golden.check(QUANTIZE)


def wider(*args):
    """Wilson's bounds at another level."""
    return WILSON(*args[:2], 0.5 * args[2])


WILSON = intervals.wilson_bounds


def test_what_a_formula_calls_is_watched_too(monkeypatch):
    monkeypatch.setattr(intervals, "wilson_bounds", wider)
    with pytest.raises(AssertionError, match=f"^{INTERVALS} gives other numbers"):
        golden.check(INTERVALS)


def test_a_raised_number_without_its_golden_values_fails_and_says_what_to_do():
    with pytest.raises(AssertionError, match=r"intervals v9 has no golden values; run make golden and commit intervals-v9\.json"):
        golden.check(replace(INTERVALS, version=9))


# ---------------------------------------------------------------- the trip-wire, and what `make golden` does


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Golden files of the test's own."""
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    return tmp_path


def test_code_that_moved_is_told_and_recorded_and_its_values_stay(folder, monkeypatch):
    assert golden.record(INTERVALS) == f"{INTERVALS}: values written"
    assert golden.record(INTERVALS) == f"{INTERVALS}: unchanged"
    before = json.loads(golden.path_of(INTERVALS).read_text())
    monkeypatch.setattr(fingerprints, "code_hash", lambda modules: "moved")
    assert golden.check(INTERVALS) == f"the code of {INTERVALS} moved; its golden values hold: run make golden to record it"
    assert golden.record(INTERVALS) == f"{INTERVALS}: code recorded, values hold"
    after = json.loads(golden.path_of(INTERVALS).read_text())
    assert after == before | {"code": "moved"}
    assert golden.check(INTERVALS) == ""


def test_golden_values_are_never_replaced(folder, monkeypatch):
    golden.record(INTERVALS)
    before = golden.path_of(INTERVALS).read_bytes()
    monkeypatch.setattr(intervals, "wilson_bounds", wider)
    with pytest.raises(AssertionError, match="raise its number or mend it"):
        golden.record(INTERVALS)
    assert golden.path_of(INTERVALS).read_bytes() == before
    assert golden.record(replace(INTERVALS, version=9)) == "intervals v9: values written"
    assert sorted(path.name for path in folder.iterdir()) == [golden.path_of(INTERVALS).name, "intervals-v9.json"]


# ---------------------------------------------------------------- what counts as the same

ROWS = torch.linspace(-1.0, 1.0, 40)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (ROWS * (1 + 1e-6), ""),
        (ROWS + 1e-6 * torch.randn(40, generator=torch.Generator().manual_seed(0)), ""),  # rounding, also of what is near 0
        (ROWS * (1 + 1e-3), "x[40, 40 finite]: "),
        (ROWS.flip(0), "x[40, 40 finite]: "),
        (ROWS[:39], "x[40, 40 finite] is gone"),
        (torch.where(ROWS > 0.9, torch.nan, ROWS), "x[40, 40 finite] is gone"),
    ],
)
def test_what_rounding_moves_is_the_same_and_what_a_formula_moves_is_not(after, told):
    found = golden.differences(dict(golden._flat("x", ROWS)), dict(golden._flat("x", after)))
    assert bool(found) == bool(told)
    assert not told or found[0].startswith(told)


@pytest.mark.parametrize(
    ("before", "after", "same"), [("a b", "a b", True), ("a b", "a c", False), (0.0, 1e-12, True), (0, 1, False)]
)
def test_texts_and_single_numbers(before, after, same):
    assert (golden.differences(dict(golden._flat("x", before)), dict(golden._flat("x", after))) == []) is same


def test_the_cases_are_those_of_the_definitions():
    from support.golden_cases import CASES

    assert list(CASES) == list(DEFINITIONS) == [one.name for one in vars(definitions).values() if one in DEFINITIONS.values()]
