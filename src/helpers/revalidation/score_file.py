"""Scores alone: monitors that are not ours, told by what they said of the same items before and after an update."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers.data import user_files
from helpers.data.user_files import ScoreRow
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, shown
from helpers.revalidation import error_rates, screening, verdict, watches
from helpers.revalidation.evidence import distances, kept
from helpers.revalidation.hypotheses import Panel
from helpers.revalidation.options import Options, check_required, with_policy
from helpers.revalidation.policy import BEHAVIOUR, GatePolicy
from helpers.seeding import derive_seed
from helpers.stats import roc
from helpers.stats.roc import RATES

ENOUGH = 20  # rows, below which nothing is said of their scale
SAME_ORDER = 0.95  # rank correlation: an update that lost something changes the order
OTHER_SCALE = 5.0  # times the spread


def run_scores(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The report of scores alone, timed; `code` in it is the exit code, 0, 10 or 11. Errors are StudyErrors of one line."""
    begun = time.monotonic()
    say("revalidate: checking what was given")
    return verdict.told(score_report(options), begun, say)


def scored(options: Options) -> dict[str, list[ScoreRow]]:
    """The rows of a score file by monitor; the options that need a model must be absent."""
    given = [name for name in ("update", "monitors", "fit", "texts", "labels") if getattr(options, name)]
    if given:
        raise StudyError(f"--scores was given with --{given[0]}; scores need no model and no text, so leave that out")
    if options.prompts or any(name.startswith(BEHAVIOUR) for name in options.required):
        raise StudyError("--scores holds nothing of behaviour; leave out --prompts and required behaviour, or give models")
    found = user_files.scores(Path(options.scores))
    check_required(options.required, list(found))
    for monitor, rows in found.items():
        _check_rows(monitor, rows)
    return found


def _check_rows(monitor: str, rows: Sequence[ScoreRow]) -> None:
    """Raises StudyError where rows are counted twice under other ids, or the two sides are not on one scale."""
    pairs = Counter((one.before, one.after, one.label) for one in rows)
    if len(pairs) >= ENOUGH and min(pairs.values()) > 1:
        what = f"each of its {len(pairs)} rows stands {min(pairs.values())} times under other ids"
        raise StudyError(f"monitor {shown(monitor)}: {what}; give each item once", REFUSED)
    before, after = np.array([(one.before, one.after) for one in rows]).T
    old, new = (float(np.subtract(*np.percentile(side, [75, 25]))) for side in (before, after))
    order = roc.midranks(np.stack([before, after]))
    if len(rows) < ENOUGH or not min(old, new) > 0 or np.corrcoef(order)[0, 1] < SAME_ORDER:
        return
    bounded = [bool((side >= 0).all() and (side <= 1).all()) for side in (before, after)]
    times = max(new / old, old / new)
    if times >= OTHER_SCALE or (bounded[0] != bounded[1] and times >= 2):
        what = f"its scores after spread {new / old:.3g} times as far as before, in the same order"
        raise StudyError(
            f"monitor {shown(monitor)}: {what}: another scale, to which no threshold carries over; give both on one",
            NOT_COMPARABLE,
        )


def score_report(options: Options) -> dict[str, Any]:
    """The report as plain JSON, of the scores in a file; states are those of `revalidation`, by the same tests."""
    options, policy = with_policy(options)
    by_monitor = scored(options)
    rows = next(iter(by_monitor.values()))
    required = {name: name in (policy.monitors or [name]) for name in by_monitor}
    panels = _score_panels({name: found for name, found in by_monitor.items() if not math.isnan(found[0].label)}, policy)
    judged = watches.judge(panels, required, None, options.seed)
    sides = {name: [np.array(side) for side in zip(*((o.before, o.after) for o in found), strict=True)]
              for name, found in by_monitor.items()}  # fmt: skip
    cuts = {name: found[0].threshold for name, found in by_monitor.items()}
    screened = {name: screening.screen(before, after, cuts[name], RATES["5"]) for name, (before, after) in sides.items()}
    if not panels:
        judged = replace(judged, controls=error_rates.drift(sides, cuts, None, derive_seed(options.seed, "drift")))
    unknown = {"task": None, "kind": None, "layer": None, "hash": None, "mended": None}
    stands = {name: distances.standing(before, after, cuts[name]) for name, (before, after) in sides.items()}
    watched = [
        watches.watch(judged, name, one.same, stands[name], required=required[name], screened=one, **unknown)
        for name, one in screened.items()
    ]  # fmt: skip
    digest = hashlib.sha256(Path(options.scores).read_bytes()).hexdigest()
    compared: dict[str, Any] = {
        "base": {"name": "scores before", "fingerprint": None},
        "update": {"name": "scores after", "kind": None, "size": None, "fingerprint": digest},
        **dict.fromkeys(("precision", "serving", "template", "device", "compute", "threads")),
        "versions": verdict.versions(), "settings": [],
        "texts": {"n": len(rows), "sha256": None}, "labels": _labels(judged.panels),
    }  # fmt: skip
    notes = ["scores alone were given: thresholds count as frozen for 5 % false positives, and no repair can be tried"]
    evidence = kept.keep(panels, None, {name: one.same for name, one in screened.items()}, options.seed)
    found, source = (watched, judged, compared, notes, options.budget), Path(options.policy).name
    return verdict.build_report(*found, policy=policy, source=source, evidence=evidence)


def _score_panels(by_monitor: Mapping[str, Sequence[ScoreRow]], policy: GatePolicy) -> list[Panel]:
    """Monitors that were scored on the same items, with the same labels and groups, in one panel."""
    alike: dict[tuple, list[str]] = {}
    ordered = {name: sorted(rows, key=lambda one: one.id) for name, rows in by_monitor.items()}
    for name, rows in ordered.items():
        alike.setdefault(tuple((one.id, one.label, one.group) for one in rows), []).append(name)
    return [_panel(items, [ordered[name] for name in names], names, policy) for items, names in alike.items()]


def _panel(items: Sequence[tuple], rows: Sequence[Sequence[ScoreRow]], names: Sequence[str], policy: GatePolicy) -> Panel:
    before, after = (np.array([[getattr(one, side) for one in of] for of in rows]) for side in ("before", "after"))
    return Panel(
        tuple(names), np.array([int(label) for _, label, _ in items]), np.array([group or name for name, _, group in items]),
        before, after, np.array([of[0].threshold for of in rows]), np.full(len(names), RATES["5"]), policy,
    )  # fmt: skip


def _labels(panels: Sequence[Panel]) -> dict[str, Any] | None:
    """The labelled items of the largest panel."""
    if not panels:
        return None
    largest = max(panels, key=lambda panel: len(panel.labels))
    return verdict.labels_entry(largest.labels, largest.groups.tolist(), None)
