"""Replay: a report judged anew from the evidence that it keeps, perhaps under another policy, without a model.

First everything is checked that can be: the hashes of evidence and policy, that the states which the report tells follow from its
evidence under its own policy, and that the files given beside it are those it is about.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.data import user_files
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, shown
from helpers.revalidation import verdict, watches
from helpers.revalidation.behaviour import comparison
from helpers.revalidation.evidence import kept
from helpers.revalidation.options import Options, check_required, with_policy
from helpers.revalidation.policy import GatePolicy, policy_of
from helpers.revalidation.report import files

REMEDY = "make the report again with python -m helpers revalidate"


def replay(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The report that the evidence gives under the policy of `options`, or under its own where none is named.

    StudyError 12 where report and evidence do not belong together, 13 where a file given beside them is another than theirs.
    """
    begun, path = time.monotonic(), Path(options.evidence)
    old = files.read(path)
    say("revalidate: checking the evidence")
    told = _checked(old)
    _same_files(old, options)
    policy, source = _policy(told, old, options)
    return verdict.told(_judged(old, policy, source, path), begun, say)


def _policy(told: GatePolicy, old: Mapping[str, Any], options: Options) -> tuple[GatePolicy, str]:
    """The policy by which is judged, and the file that it stands in."""
    if options.policy:
        found, source = with_policy(options)[1], Path(options.policy).name
    else:
        asked = with_policy(options)[1].required
        found, source = replace(told, required=asked or told.required), old["policy"]["file"] or ""
    check_required(found.monitors, [monitor["name"] for monitor in old["monitors"]])
    measured = [one["name"] for one in (old["behaviour"] or {}).get("measures", [])]
    for name in found.behaviour:
        if not any(name in {one, one.partition("/")[0]} for one in measured):
            raise StudyError(f"behaviour/{name} is required, and the evidence holds nothing of it; run with --prompts", REFUSED)
    return found, source


# ---------------------------------------------------------------- what is checked


def _checked(old: Mapping[str, Any]) -> GatePolicy:
    """The report's own policy, if everything in the report that follows from something else in it does."""
    evidence, told = old.get("evidence"), policy_of(old["policy"])
    if not evidence:
        raise StudyError(f"report: it holds no evidence, as those of older versions; {REMEDY}", REFUSED)
    if kept.digest(evidence) != evidence["sha256"]:
        raise StudyError(f"report: evidence is not that of its sha256, so it was edited; {REMEDY}", REFUSED)
    if told.hash != old["policy"]["hash"]:
        raise StudyError(f"report: policy is not that of its hash, so it was edited; {REMEDY}", REFUSED)
    panels, again = kept.panels_of(evidence, told)
    kept.items_of(evidence)
    required = {monitor["name"]: monitor["required"] for monitor in old["monitors"]}
    if set(evidence["same"]) != set(required) or {name for panel in panels for name in panel.names} - set(required):
        raise StudyError(f"report: evidence is of other monitors than the report; {REMEDY}", REFUSED)
    found = watches.states_shown(panels, required, again)
    for monitor in old["monitors"]:
        name = monitor["name"]
        state = _with_same(found.get(name, "inconclusive"), evidence["same"][name])
        if state != monitor["state"]:
            said = f"state of {shown(name)} is {monitor['state']}, its evidence gives {state}"
            raise StudyError(f"report: {said}: it was edited, or made by another version; {REMEDY}", REFUSED)
    return told


def _with_same(state: str, same: bool) -> str:
    return "no update" if same and state != "unfit" else state


def _same_files(old: Mapping[str, Any], options: Options) -> None:
    """Raises StudyError where base, update, texts, labels or monitors were given and are not those that the report is about."""
    compared = old["compared"]
    for side in ("base", "update"):
        folder = Path(getattr(options, side) or "-")
        if folder.is_dir():
            from helpers.revalidation.candidate import offer  # it imports torch

            _agree(f"--{side} {folder.name}", offer.content_hash(folder), compared[side]["fingerprint"])
    if options.scores:
        digest = hashlib.sha256(Path(options.scores).read_bytes()).hexdigest()
        _agree(f"--scores {Path(options.scores).name}", digest, compared["update"]["fingerprint"])
    for side, read in (("texts", user_files.unlabelled), ("labels", user_files.labelled)):
        if given := getattr(options, side):
            then = (compared[side] or {}).get("sha256")
            _agree(f"--{side} {Path(given).name}", kept.texts_digest(read(Path(given), old["evidence"]["seed"])), then)
    if options.monitors:
        from helpers.monitors import frozen

        hashes = {monitor["name"]: monitor["hash"] for monitor in old["monitors"]}
        for one in frozen.load(Path(options.monitors)):
            if one.name in hashes:
                _agree(f"monitor {one.name}", one.hash, hashes[one.name])


def _agree(what: str, now: str, then: str | None) -> None:
    if now != then:
        said = f"{what} is not what the evidence is about ({now[:12]} and {(then or 'none')[:12]})"
        raise StudyError(f"{said}; give that, or revalidate this one", NOT_COMPARABLE)


# ---------------------------------------------------------------- judging


def _judged(old: Mapping[str, Any], policy: GatePolicy, source: str, path: Path) -> dict[str, Any]:
    """The report under a policy; what no policy changes is taken over."""
    evidence, monitors = old["evidence"], {monitor["name"]: monitor for monitor in old["monitors"]}
    panels, again = kept.panels_of(evidence, policy)
    required = {name: name in (policy.monitors or [name]) for name in monitors}
    seed = evidence["seed"] if policy.seed is None else policy.seed
    judged = watches.judge(panels, required, again, seed)
    renewed = {control.name for control in judged.controls}
    others = [verdict.Control(one["name"], one["passed"], one["detail"]) for one in old["controls"] if one["name"] not in renewed]
    judged = replace(judged, controls=(*judged.controls, *others))
    watched = [
        watches.watch(judged, name, evidence["same"][name], one.get("standing"), required=required[name], screened=None,
                      mended=None, **{key: one[key] for key in ("task", "kind", "layer", "hash")})
        for name, one in monitors.items()
    ]  # fmt: skip
    behaviour = old["behaviour"] and {
        **old["behaviour"], "measures": comparison.measures(kept.items_of(evidence), policy)
    }  # fmt: skip
    notes = [*old["notes"], f"judged anew from the evidence of {path.name}; no model was read"]
    budget = (old["triage"] or {}).get("budget") or 0
    found = (watched, judged, old["compared"], notes, budget, behaviour, old["moved"])
    return _with_rest(verdict.build_report(*found, policy=policy, source=source, evidence=evidence), old)


def _with_rest(report: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The report with screening and repairs as they were found, and with what to do about monitors that still are stale."""
    before = {monitor["name"]: monitor for monitor in old["monitors"]}
    report["monitors"] = [
        {**one, **{key: before[one["name"]][key] for key in ("screening", "repair")}} for one in report["monitors"]
    ]
    stale = {one["name"] for one in report["monitors"] if one["state"] == before[one["name"]]["state"] == "stale"}
    known = {step["monitor"]: step for step in old["next"] if step["monitor"] in stale}
    return {**report, "triage": old["triage"], "next": [known.get(step["monitor"], step) for step in report["next"]]}
