"""The gate on trial: texts read twice by one model, monitors that work and four that do not, resamples of them, planted losses.

The tests do it with the tiny model. `make gate` does it once with the embedded one and the example of the book's page, runs the
command of that page as well, and writes the table that the page shows.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

from helpers.data.splits import Example
from helpers.models import activations, compute, loading
from helpers.monitors import frozen, probes
from helpers.monitors.readouts import Pooled
from helpers.revalidation import error_rates, observe
from helpers.revalidation.hypotheses import Panel
from support import given

ROOT = Path(__file__).parents[2]
PLACE, EXAMPLE = ROOT / "book" / "_static" / "tables" / "gate.csv", ROOT / "book" / "_static" / "example"
RESAMPLES, DEPTH = 50, 0.6
KINDS = ("logistic", "lda")
WORTHLESS = ("at chance", "alarms on all", "never alarms", "promised 5 and gives 32 percent")
STATED = 0.05  # the rate at which a model that did not change may be called stale


def examples(found: Iterable[dict]) -> list[Example]:
    """Labelled rows as the gate reads them."""
    return [Example("t", "train", row["label"], "", row["text"]) for row in found]


def read_twice(folder: Path, fit_on: Sequence[Example], judged: Sequence[Example], layer: int, depth: int) -> Panel:
    """Scores of two monitors of a model and of four that are worthless, on texts read twice, in other arithmetic."""
    seen = {}
    for name, texts, how in (("fit", fit_on, "fp32"), ("before", judged, "fp32"), ("after", judged, "bf16")):
        with compute.using(how):
            what = observe.plan(texts, [given.monitor(layer=layer, layers=depth)], depth, 64)
            seen[name] = activations.read(loading.load(folder), what).pooled[f"mean/{layer}"].double().numpy()
    own, labels = (np.array([row.label for row in texts]) for texts in (fit_on, judged))
    scores, cuts = [], []
    for kind in KINDS:
        readout = probes.fit_probe(kind, Pooled(seen["fit"]), own, Pooled(seen["fit"]), own)
        negatives = probes.score(readout, Pooled(seen["before"]))[labels == 0]
        one = frozen.freeze(
            readout, negatives, task="t", pooling="mean", layer=layer, layers=depth, seed=0, reads="r", model="m"
        )  # fmt: skip
        scores.append([one.score(Pooled(seen[side])) for side in ("before", "after")])
        cuts.append(one.thresholds["5"])
    best, harmless = scores[0], scores[0][0][labels == 0]
    chance = np.random.default_rng(0).permutation(best[0])
    scores += [[chance, chance + best[1] - best[0]], best, best, best]
    cuts += [np.quantile(chance[labels == 0], 0.95), harmless.min() - 1, best[0].max() + 1, np.quantile(harmless, 0.68)]
    before, after = (np.array([pair[side] for pair in scores]) for side in (0, 1))
    return Panel((*KINDS, *WORTHLESS), labels, np.arange(len(labels)), before, after, np.array(cuts), np.full(6, STATED))


def resampled(panel: Panel, rng: np.random.Generator) -> Panel:
    """The panel on texts drawn with replacement, class by class, each draw a text of its own."""
    index = np.concatenate([rng.choice(np.flatnonzero(panel.labels == label), (panel.labels == label).sum()) for label in (0, 1)])
    return panel.take(index, np.arange(len(index)))


Change = Callable[[Panel, np.random.Generator], Panel]


def over_resamples(panel: Panel, change: Change = lambda panel, rng: panel, seed: int = 1) -> list[error_rates.Call]:
    """The calls of the gate on each resample, after a change of it."""
    rng, sound = np.random.default_rng(seed), np.array([name not in WORTHLESS for name in panel.names])
    return [error_rates.judge_states([change(resampled(panel, rng), rng)], sound) for _ in range(RESAMPLES)]


# ---------------------------------------------------------------- the embedded model, once


@dataclass(frozen=True)
class Line:
    """One line of the table: what was tried, in how many of the resamples it was so, and what the gate states of it."""

    what: str
    seen: float
    of: int
    stated: str
    holds: bool


def on_embedded() -> list[Line]:
    """The trial on the embedded model and the page's own example."""
    folder = loading.base_folder("embedded")
    depth = loading.load(folder).depth
    fit_on, judged = (examples(map(json.loads, (EXAMPLE / f"{name}.jsonl").open())) for name in ("fit", "labels"))
    panel = read_twice(folder, fit_on, judged, round(DEPTH * depth), depth)
    calls = over_resamples(panel)
    states = np.array([call.states for call in calls])
    stale = sum(call.lost[: len(KINDS)].any() for call in calls)
    fit = int((states[:, len(KINDS) :] == "fine").any(axis=1).sum())
    works, own = _first(panel, len(KINDS)), np.ones(len(KINDS), bool)
    stated, share = error_rates.simulate([works], own, seed=0), error_rates.lost_share(works)[0]
    hurt = over_resamples(works, lambda drawn, rng: error_rates.planted(drawn, 0, share, rng))
    found, through = sum(call.lost[0] for call in hurt), sum(call.states[0] == "fine" for call in hurt)
    low = stats.binom.ppf(0.001, RESAMPLES, 1 - stated.miss.high) / RESAMPLES
    most = stats.binom.ppf(0.999, RESAMPLES, stated.let_through.high)
    return [
        Line("nothing changed: a monitor is called stale", stale, RESAMPLES, f"at most {STATED:.0%}",
             stale <= stats.binom.ppf(0.999, RESAMPLES, STATED)),
        Line("nothing changed: one of four worthless monitors is called fit", fit, RESAMPLES, "never", fit == 0),
        Line("a loss of twice the margin: called stale", found, RESAMPLES,
             f"{1 - stated.miss.value:.0%} [{1 - stated.miss.high:.0%}, {1 - stated.miss.low:.0%}]", found >= low * RESAMPLES),
        Line("a loss of twice the margin: called fit", through, RESAMPLES,
             f"{stated.let_through.value:.0%} [{stated.let_through.low:.0%}, {stated.let_through.high:.0%}]", through <= most),
    ]  # fmt: skip


def _first(panel: Panel, count: int) -> Panel:
    """The panel with its first monitors alone."""
    own = {name: getattr(panel, name)[:count] for name in ("names", "before", "after", "cuts", "nominal")}
    return replace(panel, **own)


def timed(out: Path) -> tuple[float, float, float, int]:
    """Seconds, seconds to its first line, GB at most, and exit code of the page's command: six monitors, 64 + 64 prompts."""
    prompts = out.with_name("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": row["text"], "kind": kind}) + "\n" for kind in ("harmful", "safe")
                               for row in given.labelled(64, kind)))  # fmt: skip
    given_texts = [f"--{name}={EXAMPLE / name}.jsonl" for name in ("fit", "texts", "labels")]
    words = ["revalidate", "--base=embedded", "--update=nf4", f"--out={out}", f"--prompts={prompts}", *given_texts]
    begun, most, first = time.monotonic(), 0, 0.0
    child = subprocess.Popen([sys.executable, "-m", "helpers", *words], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "2"})  # fmt: skip
    process = psutil.Process(child.pid)
    os.set_blocking(child.stdout.fileno(), False)
    while child.poll() is None:
        try:
            most = max(most, process.memory_info().rss)
        except psutil.Error:
            break
        if not first and child.stdout.readline():
            first = time.monotonic() - begun
        time.sleep(0.02)
    child.stdout.close()
    return time.monotonic() - begun, first, most / 1e9, child.wait()


def main() -> None:
    """Writes the table of the book's page."""
    with tempfile.TemporaryDirectory() as place:
        took, first, memory, code = timed(Path(place) / "out")
    lines = on_embedded()
    made_in = compute.resolve("auto", "cpu").name
    rows = [
        *((line.what, f"{line.seen:g} of {line.of}", line.stated, "yes" if line.holds else "no") for line in lines),
        (f"the command above with 64 + 64 prompts, computing in {made_in} on {os.cpu_count()} cores",
         f"{took:.0f} s, the first line after {first:.1f} s, {memory:.1f} GB, exit code {code}", "", ""),
    ]  # fmt: skip
    with PLACE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("what", "seen", "stated", "holds"), *rows])
    for row in rows:
        print(*row, sep="; ")


if __name__ == "__main__":
    main()
