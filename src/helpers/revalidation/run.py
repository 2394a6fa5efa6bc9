"""Revalidation: do somebody's frozen monitors still work after their update? From what they gave to the report's plain JSON.

Nothing leaves the machine; the report holds names, hashes and numbers. `run` computes, `save` writes the monitors that came out.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers import results
from helpers.data.splits import Example
from helpers.models import compute, loading
from helpers.models.foreign import templates
from helpers.monitors import frozen
from helpers.monitors.frozen import Monitor
from helpers.revalidation import error_rates, observe, repair, score_file, screening, verdict, watches
from helpers.revalidation import inputs as checked_inputs
from helpers.revalidation.behaviour import comparison, replies, speech
from helpers.revalidation.behaviour.replies import AskedPrompts
from helpers.revalidation.candidate import movement, offer, steps
from helpers.revalidation.evidence import distances, kept
from helpers.revalidation.hypotheses import Panel
from helpers.revalidation.inputs import Inputs
from helpers.revalidation.observe import ObservedPair
from helpers.revalidation.options import Options
from helpers.revalidation.policy import GatePolicy
from helpers.revalidation.repair import Mended
from helpers.revalidation.report.files import REPAIRED
from helpers.revalidation.screening import Screened
from helpers.revalidation.watches import LabelEvidence
from helpers.seeding import derive_seed

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The report as plain JSON, and the monitors it tells of: those mended under the update, those fitted on the base."""

    report: dict[str, Any]
    repaired: tuple[Monitor, ...] = ()
    fitted: tuple[Monitor, ...] = ()


def run(options: Options, say: Say = print) -> Outcome:
    """The report of a revalidation, and what can be saved with it; `code` in it is the exit code, 0, 10 or 11.

    Errors are StudyErrors of one line with codes 2, 12, 13 or 14, raised before anything is written.
    """
    if options.scores:
        return Outcome(score_file.run_scores(options, say))
    begun = time.monotonic()
    say("revalidate: checking what was given")
    now = templates.clock(checked_inputs.instant(options))
    with now, loading.threads(options.threads or torch.get_num_threads()):
        found = _of_models(options, say)
    return replace(found, report=verdict.told(found.report, begun, say))


def save(outcome: Outcome, folder: Path) -> list[Path]:
    """The folders below `folder` that now hold monitors: `repaired` and `monitors`, each only where there are any."""
    saved = []
    for name, found in ((REPAIRED, outcome.repaired), ("monitors", outcome.fitted)):
        if found:
            frozen.save(found, folder / name)
            saved.append(folder / name)
    return saved


# ---------------------------------------------------------------- two models


def _of_models(options: Options, say: Say) -> Outcome:
    """The outcome of an update, or of the last of its checkpoints with what was seen at others."""
    found = steps.steps_in(Path(options.update)) if options.update else []
    inputs = checked_inputs.check_inputs(replace(options, update=str(found[-1].path)) if found else options)
    prompts = replies.asked_prompts(inputs.options, inputs.policy)
    say(f"{len(inputs.texts)} unlabelled and {len(inputs.labels)} labelled texts; the update is the {_kind(inputs)}")
    every = [_at(inputs, one.path) for one in found]  # all are checked before anything is loaded
    base = observe.observe_base(inputs, prompts, say)
    if not found:
        return _judged(inputs, prompts, observe.observe_update(inputs, prompts, base, say), say)
    outcomes: dict[int, Outcome] = {}

    def is_stale(i: int) -> bool:
        say(f"step {found[i].step}, {len(outcomes) + 1} looked at of {len(found)} there")
        outcomes[i] = _judged(every[i], prompts, observe.observe_update(every[i], prompts, base, say), say)
        return steps.has_stale(outcomes[i].report)

    first, last = steps.search(len(found), is_stale, options.steps), outcomes[len(found) - 1]
    at = None if first is None else found[first]
    seen = steps.looked_at({found[i]: one.report for i, one in outcomes.items()}, len(found), at, options.steps)
    return replace(last, report=steps.with_steps(last.report, seen))


def _at(inputs: Inputs, folder: Path) -> Inputs:
    """The inputs with another checkpoint for the update."""
    update = offer.check_update(str(folder), inputs.options.precision, inputs.base, inputs.reads, inputs.template)
    return replace(inputs, update=update)


def _judged(inputs: Inputs, prompts: AskedPrompts | None, seen: ObservedPair, say: Say) -> Outcome:
    """The outcome of what both models showed."""
    options = inputs.options
    say(f"judging {len(seen.monitors)} monitors")
    required = {m.name: m.name in (inputs.policy.monitors or [m.name]) for m in seen.monitors}
    with loading.threads(1):
        panels, again = _panels(inputs, seen)
        judged = watches.judge(panels, required, again, options.seed)
        screened = _screened(seen)
        if not panels:
            judged = replace(judged, controls=_drift(seen, derive_seed(options.seed, "drift")))
        judged = replace(judged, controls=(*judged.controls, _explained(seen)))
        still = not inputs.update.differing  # a setting of generation changes the replies that a monitor is given to read
        same = {m.name: still and seen.moved.lowest >= m.layer and screened[m.name].same for m in seen.monitors}
        mended = _mended(inputs, seen, judged, screened, say)
    known = {m.name: {"task": m.task, "kind": m.kind, "layer": m.layer, "hash": m.hash} for m in seen.monitors}
    stands = _standing(seen)
    watched = [
        watches.watch(judged, name, same[name], stands[name], required=required[name], screened=screened[name],
                      mended=mended.get(name), **who)
        for name, who in known.items()
    ]  # fmt: skip
    compared = _compared(inputs, seen, prompts)
    behaviour = {**speech.summary(*seen.spoken), "measures": comparison.measures(seen.said, inputs.policy)}
    notes, source = [*inputs.notes, *_noted(seen)], Path(options.policy).name
    found = (watched, judged, compared, notes, options.budget, behaviour, _moved(seen))
    evidence = kept.keep(panels, again, same, options.seed, seen.said)
    report = verdict.build_report(*found, policy=inputs.policy, source=source, evidence=evidence)
    repaired = tuple(replace(m.monitor, model=inputs.update.name) for m in mended.values() if m.monitor)
    return Outcome(report, repaired, () if inputs.monitors else seen.monitors)


def _kind(inputs: Inputs) -> str:
    words = {"adapter": "adapter", "merged": "merged model", "quantizer": "quantizer"}[inputs.update.kind]
    return f"{words} {inputs.update.name}"


def _panels(inputs: Inputs, seen: ObservedPair) -> tuple[list[Panel], list[np.ndarray]]:
    """One panel a task that has labels, and the base's scores of the same texts in other batches."""
    tasks = np.array([row.task for row in inputs.labels])
    panels, again = [], []
    for task in dict.fromkeys(tasks.tolist()):
        rows, own = np.flatnonzero(tasks == task), [m for m in seen.monitors if m.task == task]
        panels.append(_panel(own, [inputs.labels[i] for i in rows], seen, seen.labels[rows], inputs.policy))
        again.append(observe.score(seen.again, own, rows))  # with labels, they alone were read again
    return panels, again


def _panel(own: Sequence[Monitor], rows: Sequence[Example], seen: ObservedPair, index: np.ndarray, policy: GatePolicy) -> Panel:
    cuts, nominal = np.array([observe.cut(monitor) for monitor in own]).T
    return Panel(
        tuple(monitor.name for monitor in own), np.array([row.label for row in rows]), np.array([row.group for row in rows]),
        observe.score(seen.before, own, index), observe.score(seen.after, own, index), cuts, nominal, policy,
    )  # fmt: skip


def _screened(seen: ObservedPair) -> dict[str, Screened]:
    """What unlabelled texts say of each monitor; where there are none, the labelled ones, their labels unused."""
    index = seen.texts if len(seen.texts) else seen.labels
    before, after = (observe.score(found, seen.monitors, index) for found in (seen.before, seen.after))
    return {m.name: screening.screen(before[j], after[j], *observe.cut(m)) for j, m in enumerate(seen.monitors)}


def _standing(seen: ObservedPair) -> dict[str, dict[str, Any] | None]:
    """How far scores of unlabelled texts, where there are any, stand from each monitor's threshold."""
    index = seen.texts if len(seen.texts) else seen.labels
    before, after = (observe.score(found, seen.monitors, index) for found in (seen.before, seen.after))
    return {m.name: distances.standing(before[j], after[j], observe.cut(m)[0]) for j, m in enumerate(seen.monitors)}


def _explained(seen: ObservedPair) -> error_rates.Control:
    """Where neither weights nor settings differ, no state may: else something that decides was not compared."""
    odd, lowest = movement.unexplained(seen.before, seen.after, seen.moved.lowest), seen.moved.lowest
    layers = sum(int(name.split("/")[1]) <= lowest for name in seen.before.pooled)
    detail = f"states differ at {odd[0]}, below every change that was found" if odd else (
        f"{layers} places lie below every change that was found, and their states are the same bit by bit")  # fmt: skip
    return error_rates.Control("same weights, same states", not odd, detail)


def _drift(seen: ObservedPair, seed: int) -> tuple[error_rates.Control, ...]:
    """The controls of a run without labels; without them, the unlabelled texts are read again."""
    before, again = (observe.score(found, seen.monitors, index) for found, index in
                     ((seen.before, seen.checked), (seen.again, np.arange(len(seen.checked)))))  # fmt: skip
    names = [monitor.name for monitor in seen.monitors]
    cuts = {monitor.name: observe.cut(monitor)[0] for monitor in seen.monitors}
    pairs = dict(zip(names, zip(before, again, strict=True), strict=True))
    return error_rates.drift(pairs, cuts, pairs, seed)


def _mended(
    inputs: Inputs, seen: ObservedPair, judged: LabelEvidence, screened: Mapping[str, Screened], say: Say
) -> dict[str, Mended]:
    """What was tried on each stale monitor; without labels of its task, on each whose flags surely changed."""
    drifted, found = set(screening.suspects(screened)), {}
    for monitor in seen.monitors:
        panel = next((panel for panel in judged.panels if monitor.name in panel.names), None)
        sick = judged.watches[monitor.name]["state"] == "stale" if panel else monitor.name in drifted
        if sick and len(seen.texts):  # every repair is fitted on unlabelled texts
            say(f"mending {monitor.name}")
            case = _case(monitor, seen, panel, np.array([row.task for row in inputs.labels]) == monitor.task)
            found[monitor.name] = repair.mend(case, derive_seed(inputs.options.seed, monitor.name))
    return found


def _case(monitor: Monitor, seen: ObservedPair, panel: Panel | None, of_task: np.ndarray) -> repair.MonitorTexts:
    before, after = (observe.features(found, monitor, seen.texts) for found in (seen.before, seen.after))
    both = (observe.states(seen.before, monitor, seen.texts), observe.states(seen.after, monitor, seen.texts))
    if panel is None:
        return repair.MonitorTexts(monitor, before, after, both)
    j = panel.names.index(monitor.name)
    alone = replace(panel, names=(monitor.name,), before=panel.before[[j]], after=panel.after[[j]], cuts=panel.cuts[[j]],
                    nominal=panel.nominal[[j]])  # fmt: skip
    labelled = observe.features(seen.after, monitor, seen.labels[of_task])
    return repair.LabelledTexts(monitor, before, after, both, labelled, alone)


def _moved(seen: ObservedPair) -> dict[str, Any]:
    """Which layers moved, and how the shift lies to each linear monitor's direction."""
    every = np.arange(seen.before.counts["texts"])
    found = [
        screening.direction(m, *(observe.states(side, m, every) for side in (seen.before, seen.after)))
        for m in seen.monitors
    ]  # fmt: skip
    directions = [
        {"monitor": one.monitor, "layer": one.layer, "shift_along": one.shift, "angle": one.angle, "share": one.share,
         "share_by_chance": one.by_chance}
        for one in found if one
    ]  # fmt: skip
    return {"by_layer": screening.moved_layers(seen.before.pooled, seen.after.pooled), "directions": directions}


def _noted(seen: ObservedPair) -> list[str]:
    """What was seen on the way that a reader should know."""
    counts, bare = seen.before.counts, [m.name for m in seen.monitors if not m.thresholds]
    notes = [f"{counts['cut']} of {counts['texts']} texts were cut to the limit of tokens"] if counts["cut"] else []
    if bare:
        why = "frozen on fewer than 19 harmless validation texts; without one no monitor can be shown fine"
        notes.append(f"{len(bare)} monitor(s) have no threshold, such as {bare[0]}: {why}")
    return notes


# ---------------------------------------------------------------- what was compared


def _compared(inputs: Inputs, seen: ObservedPair, prompts: AskedPrompts | None) -> dict[str, Any]:
    update, options = inputs.update, inputs.options
    hashed = offer.content_hash(update.folder) if update.folder else None
    return {
        "base": {"name": results.slug(options.base), "fingerprint": offer.content_hash(inputs.base)},
        "update": {"name": update.name, "kind": update.kind, "fingerprint": hashed, "size": _size(seen, inputs)},
        "precision": update.name if update.kind == "quantizer" else options.precision,
        "serving": offer.serving(update) or None, "template": inputs.reads, "device": options.device,
        "settings": [asdict(one) for one in update.settings], "tokens_read": inputs.limit,
        "compute": compute.current(options.device).name, "threads": torch.get_num_threads(), "versions": verdict.versions(),
        "texts": {"n": len(inputs.texts), "sha256": kept.texts_digest(inputs.texts)} if inputs.texts else None,
        "labels": _labels(inputs.labels),
        "asked": prompts and {"n": len(prompts.rows), "harmful": int((prompts.kinds == "harmful").sum()),
                              "sha256": prompts.sha256},
    }  # fmt: skip


def _size(seen: ObservedPair, inputs: Inputs) -> float | str:
    """The relative size of the update; in words where no weight differs and yet something does."""
    if seen.moved.relative > 0 or seen.moved.lowest > seen.monitors[0].layers:
        return seen.moved.relative
    others = len(inputs.update.differing)
    return f"no linear weight differs, {others} setting(s) do" if others else "no linear weight differs, others do"


def _labels(rows: Sequence[Example]) -> dict[str, Any] | None:
    if not rows:
        return None
    return verdict.labels_entry((row.label for row in rows), (row.group for row in rows), kept.texts_digest(rows))
