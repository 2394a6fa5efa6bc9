"""Baselines read what the monitors read, and learn from training alone."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.bland import row, things

from helpers.data.splits import Example
from helpers.monitors.baselines import BASELINES


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_reads_what_the_monitor_reads_and_is_the_same_every_time(baseline):
    """A planted word, or length, in the reply's first words is found; behind the cut, or in the prompt, it is not."""
    tail = {"bag-of-words": ("wizard", "clerk"), "length": ("wagon wagon wagon", "")}[baseline]

    def planted(place, i, label):
        text = {"reply": f"{tail[label]} {things(i)}", "prompt": things(i), "end": f"{things(i)} {tail[label]}"}[place]
        return Example("t", "", label, "", tail[label] + " x" if place == "prompt" else "ask", text)

    found = {}
    for place in ("reply", "prompt", "end"):
        train, test = ([planted(place, f"{part} {i // 2}", i % 2) for i in range(40)] for part in ("a", "b"))
        scores = BASELINES[baseline](train, test, 8 if place == "end" else None)
        np.testing.assert_array_equal(scores, BASELINES[baseline](train, test, 8 if place == "end" else None))
        found[place] = roc_auc_score([r.label for r in test], scores)
    assert found["reply"] == 1.0  # for `length`, the flagged rows are the shorter ones: the sign comes from training
    assert found["prompt"] == found["end"] == 0.5


def test_the_sign_of_the_length_comes_from_training_alone():
    train = [row("one two three", 0), row("one", 1)]
    np.testing.assert_array_equal(BASELINES["length"](train, [row("a b"), row("a b c d", 0)]), [-2.0, -4.0])
