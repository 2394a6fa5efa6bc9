"""Restored updates: what is kept of a prepared restoration is what was made, and it is made once."""

import pandas as pd
import pytest
import torch
from test_curves import HOMES, empty_cache, parts  # noqa: F401

from helpers import cache
from helpers.projection import restored_updates

NAMES = ("safelora", "splora", "zero", "random-modules")


@pytest.fixture
def made(monkeypatch):
    """The restorations that were made, in their order, and not read from the cache."""
    found, make = [], restored_updates._made
    monkeypatch.setattr(restored_updates, "_made", lambda *args: found.append(args[3]) or make(*args))
    return found


def files():
    return sorted(cache.cache_path("restored", "x").parent.glob("*.safetensors"))


def equal(one, two):
    left, right = one.at(0.5), two.at(0.5)
    pd.testing.assert_frame_equal(left.table, right.table, check_dtype=False)
    assert left.update.keys() == right.update.keys()
    pairs = [(left.update[module], right.update[module]) for module in left.update]
    return all(torch.equal(a.left, b.left) and torch.equal(a.right, b.right) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_was_made_and_it_is_made_once(parts, made, name):  # noqa: F811
    first = restored_updates.prepared(parts, HOMES["attached"], name)
    again = restored_updates.prepared(parts, HOMES["attached"], name)
    assert made == [name]
    assert len(files()) == 1
    assert equal(first, again)


def test_a_torn_file_and_one_of_another_form_are_made_again(parts, made):  # noqa: F811
    first = restored_updates.prepared(parts, HOMES["attached"], "safelora")
    (path,) = files()
    path.write_bytes(path.read_bytes()[:-100])
    assert equal(first, restored_updates.prepared(parts, HOMES["attached"], "safelora"))
    path.write_bytes(b"")
    assert equal(first, restored_updates.prepared(parts, HOMES["attached"], "safelora"))
    assert made == ["safelora"] * 3


def test_another_source_another_update_and_whole_weights_are_not_taken_for_it(parts, made):  # noqa: F811
    restored_updates.prepared(parts, HOMES["attached"], "safelora")
    restored_updates.prepared(parts, HOMES["attached"], "safelora:nf4-both")
    restored_updates.prepared(parts, HOMES["attached to 4 bits"], "safelora")
    assert len(files()) == 3
    restored_updates.prepared(parts, HOMES["whole weights"], "safelora")  # dense: made each time
    assert len(files()) == 3
    assert len(made) == 4
