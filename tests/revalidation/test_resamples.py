"""The gate over fifty resamples: a model that did not change, monitors that are worthless, a loss worth twice the margin."""

import numpy as np
import pytest
from scipy import stats
from support import given

from helpers.data.splits import Example
from helpers.models import activations, compute, loading
from helpers.monitors import frozen, probes
from helpers.monitors.readouts import Pooled
from helpers.revalidation import error_rates, observe
from helpers.revalidation.hypotheses import Panel

RESAMPLES, N = 50, 400
WORTHLESS = ("at chance", "alarms on all", "never alarms", "promised 5 and gives 32 percent")


def rows(n, seed):
    """Bland labelled texts."""
    return [Example("t", "train", row["label"], "", row["text"]) for row in given.labelled(n, seed)]


@pytest.fixture(scope="module")
def unchanged(tiny):
    """Scores of two monitors of the tiny model and of four that are worthless, on texts read twice, in other arithmetic."""
    seen, fit_on, judged = {}, rows(160, "fit"), rows(N, "labels")
    for name, examples, how in (("fit", fit_on, "fp32"), ("before", judged, "fp32"), ("after", judged, "bf16")):
        with compute.using(how):
            what = observe.plan(examples, [given.monitor(layer=2)], 4, 64)
            seen[name] = activations.read(loading.load(tiny), what).pooled["mean/2"].double().numpy()
    own, labels = np.array([row.label for row in fit_on]), np.array([row.label for row in judged])
    scores, cuts = [], []
    for kind in ("logistic", "lda"):
        readout = probes.fit_probe(kind, Pooled(seen["fit"]), own, Pooled(seen["fit"]), own)
        negatives = probes.score(readout, Pooled(seen["before"]))[labels == 0]
        one = frozen.freeze(
            readout, negatives, task="t", pooling="mean", layer=2, layers=4, seed=0, reads="r", model="m"
        )  # fmt: skip
        scores.append([one.score(Pooled(seen[side])) for side in ("before", "after")])
        cuts.append(one.thresholds["5"])
    best, harmless = scores[0], scores[0][0][labels == 0]
    chance = np.random.default_rng(0).permutation(best[0])
    scores += [[chance, chance + best[1] - best[0]], best, best, best]
    cuts += [np.quantile(chance[labels == 0], 0.95), harmless.min() - 1, best[0].max() + 1, np.quantile(harmless, 0.68)]
    before, after = (np.array([pair[side] for pair in scores]) for side in (0, 1))
    names = ("logistic", "lda", *WORTHLESS)
    return Panel(names, labels, np.arange(N), before, after, np.array(cuts), np.full(6, 0.05))


def resampled(panel, rng):
    """The panel on texts drawn with replacement, class by class, each draw a text of its own."""
    index = np.concatenate([rng.choice(np.flatnonzero(panel.labels == label), (panel.labels == label).sum()) for label in (0, 1)])
    return panel.take(index, np.arange(len(index)))


def over_resamples(panel, change=lambda panel, rng: panel, seed=1):
    """The calls of the gate on each resample."""
    rng, sound = np.random.default_rng(seed), np.array([name not in WORTHLESS for name in panel.names])
    return [error_rates.judge_states([change(resampled(panel, rng), rng)], sound) for _ in range(RESAMPLES)]


def test_an_unchanged_model_is_stale_at_most_at_the_stated_rate_and_no_worthless_monitor_is_fit(unchanged):
    assert (unchanged.before[:2] != unchanged.after[:2]).any()  # the control: it does move scores
    calls = over_resamples(unchanged)
    stale = sum(call.lost.any() for call in calls)
    assert stale <= stats.binom.ppf(0.999, RESAMPLES, 0.05)
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
    assert sum(call.lost[1:].any() for call in calls) <= stats.binom.ppf(0.999, RESAMPLES, 0.05)


def test_a_loss_of_half_the_margin_is_mostly_not_called_stale():
    """The control of power: what lies within the margin is not found."""
    panel = given.panel(n=400, k=3, noise=0.02)
    small = error_rates.lost_share(panel)[0] / 4
    calls = over_resamples(panel, lambda drawn, rng: error_rates.planted(drawn, 0, small, rng))
    assert sum(call.lost[0] for call in calls) <= stats.binom.ppf(0.999, RESAMPLES, 0.05)
