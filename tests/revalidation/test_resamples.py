"""The gate over fifty resamples: a model that did not change, monitors that are worthless, a loss worth twice the margin."""

import numpy as np
import pytest
from scipy import stats
from support import gate_trial, given
from support.gate_trial import RESAMPLES, STATED, WORTHLESS, over_resamples

from helpers.revalidation import error_rates

N = 400


@pytest.fixture(scope="module")
def unchanged(tiny):
    """Scores of two monitors of the tiny model and of four that are worthless, on texts read twice, in other arithmetic."""
    fit_on, judged = (gate_trial.examples(given.labelled(n, seed)) for n, seed in ((160, "fit"), (N, "labels")))
    return gate_trial.read_twice(tiny, fit_on, judged, layer=2, depth=4)


def test_an_unchanged_model_is_stale_at_most_at_the_stated_rate_and_no_worthless_monitor_is_fit(unchanged):
    assert (unchanged.before[:2] != unchanged.after[:2]).any()  # the control: it does move scores
    calls = over_resamples(unchanged)
    stale = sum(call.lost.any() for call in calls)
    assert stale <= stats.binom.ppf(0.999, RESAMPLES, STATED)
    states = np.array([call.states for call in calls])
    assert "fine" not in states[:, 2:]
    for j, name in enumerate(WORTHLESS, start=2):
        assert (states[:, j] == "unfit").mean() > 0.5, name  # most are told so, and none is called fit
    assert (states[:, :2] == "fine").mean() > 0.5  # the control: what does its job is called fit


def test_a_loss_of_twice_the_margin_is_found_at_the_stated_power(monkeypatch):
    monkeypatch.setattr(error_rates, "DRAWS", 60)
    panel = given.panel(n=400, k=3, noise=0.02)
    stated = error_rates.simulate([panel], np.ones(3, bool), seed=0)
    share = error_rates.lost_share(panel)[0]
    calls = over_resamples(panel, lambda drawn, rng: error_rates.planted(drawn, 0, share, rng))
    found = sum(call.lost[0] for call in calls)
    assert found >= stats.binom.ppf(0.001, RESAMPLES, 1 - stated.miss.high)
    assert found > RESAMPLES / 2
    assert sum(call.states[0] == "fine" for call in calls) <= stats.binom.ppf(0.999, RESAMPLES, stated.let_through.high)
    assert sum(call.lost[1:].any() for call in calls) <= stats.binom.ppf(0.999, RESAMPLES, STATED)


def test_a_loss_of_half_the_margin_is_mostly_not_called_stale():
    """The control of power: what lies within the margin is not found."""
    panel = given.panel(n=400, k=3, noise=0.02)
    small = error_rates.lost_share(panel)[0] / 4
    calls = over_resamples(panel, lambda drawn, rng: error_rates.planted(drawn, 0, small, rng))
    assert sum(call.lost[0] for call in calls) <= stats.binom.ppf(0.999, RESAMPLES, STATED)
