"""Statements: what a revalidation found, as the plain JSON of its report: states with reasons, the verdict, what to do next.

Names, hashes and numbers only: no text of a user or a model, and no path.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from helpers.cache import plain
from helpers.console import installed
from helpers.revalidation import hypotheses, screening
from helpers.revalidation.behaviour import words
from helpers.revalidation.error_rates import Control, Sureness
from helpers.revalidation.floors import ABOVE, Floor, open_floors, texts_asked
from helpers.revalidation.hypotheses import MEASURES, NAMES, URGENCY, Measure
from helpers.revalidation.policy import DEFAULT, GatePolicy
from helpers.revalidation.screening import ENOUGH, Screened
from helpers.revalidation.watches import LabelEvidence, Watch
from helpers.stats.paired_aurocs import NEVER

CODES = {"fine": 0, "no update": 0, "stale": 10, "unfit": 10, "inconclusive": 11}


# ---------------------------------------------------------------- one monitor


def _worst(measures: Sequence[Measure]) -> Measure:
    """The measure that moved most for the worse, in margins."""
    return max(measures, key=lambda one: hypotheses.harm([one]))


def _change(one: Measure) -> str:
    """A change in words: rates in percent, AUROC as a number."""
    kind = one.measure.split("_")[0]
    if kind == "auroc":
        return f"AUROC {one.before.value:.3f} -> {one.after.value:.3f}"
    return f"{NAMES[kind]} {100 * one.before.value:.1f} % -> {100 * one.after.value:.1f} %"


def reason(watch: Watch) -> str:
    """Why a monitor is in its state, in one sentence."""
    if watch.state == "no update":
        return "the same scores bit by bit: nothing that it reads has changed"
    if not watch.measures:
        return "no labels of its task were given, so nothing can be shown"
    if watch.state == "fine":
        return "TPR, FPR and AUROC are all shown to stay within their margins and to keep their floors"
    if watch.state == "unfit":
        since = "before the update already" if watch.missed & watch.first else "under the update"
        return f"{_missed(watch)}: shown to miss what is asked of it, {since}"
    if watch.state == "stale":
        lost = [one for one in watch.measures if watch.p_worse[one.measure] <= watch.level]
        said = ", ".join(map(_change, sorted(lost, key=lambda one: -hypotheses.harm([one]))))
        return f"{said or 'all of its scores are one after the update'}: shown to be beyond the margin"
    if len(watch.measures) < len(MEASURES):
        absent = [NAMES[kind] for kind in MEASURES if kind not in {one.measure.split("_")[0] for one in watch.measures}]
        return f"{' and '.join(absent)} cannot be measured (no frozen threshold, or all scores are tied)"
    if _within_noise(watch):
        return "its scores moved no further than the base's own do when it is read twice, so nothing shows that it was the update"
    left = open_floors(watch.floors, watch.level)
    if left and all(one.p_preserved <= watch.level for one in watch.measures):
        return f"{watch.n} labelled texts do not show that it does its job: {', '.join(map(_floor, left))}"
    return f"{watch.n} labelled texts leave it open; nearest to its margin is {_change(_worst(watch.measures))}"


def _within_noise(watch: Watch) -> bool:
    """Whether a loss that labels show lies within what two readings of the base differ by."""
    return bool(watch.noise and watch.noise["within"] and any(p <= watch.level for p in watch.p_worse.values()))


def _floor(one: Floor) -> str:
    """What a monitor does, and what is asked of it."""
    kind = one.measure.split("_")[0]
    if kind == "auroc":
        return f"AUROC {one.after:.3f}, asked is above {one.limit:g}"
    return f"{NAMES[kind]} {100 * one.after:.1f} %, asked is at {'least' if ABOVE[kind] else 'most'} {100 * one.limit:g} %"


def _missed(watch: Watch) -> str:
    said = [_floor(one) for one in watch.floors if one.measure in watch.missed]
    return ", ".join(said) + (" (are labels inverted?)" if "auroc" in watch.missed else "")


def texts_needed_of(watch: Watch) -> int | None:
    """Labelled texts that would decide an inconclusive monitor; None where it is decided, or none would."""
    if watch.state != "inconclusive" or _within_noise(watch):
        return None
    if not watch.measures:
        return screening.labels_needed(watch.screened) if watch.screened else None
    found = texts_asked(watch.measures, watch.floors, watch.level) if len(watch.measures) == len(MEASURES) else NEVER
    return None if found >= NEVER else max(found, watch.n + 1)


def monitor(watch: Watch, place: int | None) -> dict[str, Any]:
    """A monitor as the report holds it; `place` is that in the order of labelling."""
    sides = {one.measure.split("_")[0]: {"before": one.before, "after": one.after} for one in watch.measures}
    return {
        "name": watch.name, "task": watch.task, "kind": watch.kind, "layer": watch.layer, "hash": watch.hash,
        "required": watch.required, "state": watch.state, "reason": reason(watch), "n": watch.n,
        "tests": [_test(one, watch) for one in watch.measures], "p_fine_adjusted": watch.p_fine,
        "floors": [_kept(one, watch) for one in watch.floors],
        "needed_n": texts_needed_of(watch),
        **{kind: sides.get(kind) for kind in MEASURES}, "screening": _screening(watch.screened, place), "repair": _repair(watch),
        "standing": watch.standing, "noise": watch.noise,
    }  # fmt: skip


def _test(one: Measure, watch: Watch) -> dict[str, Any]:
    """One test. `_adjusted`: Holm over all tests for "worse", Hochberg over the required monitors for "preserved"."""
    p_worse, p_preserved = watch.p_worse[one.measure], watch.p_preserved[one.measure]
    return {
        "measure": one.measure, "before": one.before.value, "after": one.after.value, "change": one.change, "margin": one.margin,
        "p_worse": one.p_worse, "p_preserved": one.p_preserved, "p_worse_adjusted": p_worse, "p_preserved_adjusted": p_preserved,
        "answer": hypotheses.answer(p_worse, p_preserved, watch.level),
    }  # fmt: skip


def _kept(one: Floor, watch: Watch) -> dict[str, Any]:
    """One floor: is it missed (Holm over all floors), kept (alone), or open?"""
    answer = "missed" if one.measure in watch.missed else "kept" if one.p_holds <= watch.level else "open"
    return {
        "measure": one.measure, "limit": one.limit, "before": one.before, "after": one.after, "p_missed": one.p_fails,
        "p_kept": one.p_holds, "p_missed_adjusted": watch.p_fails[one.measure],
        "missed_before": one.measure in watch.first, "answer": answer,
    }  # fmt: skip


def _screening(found: Screened | None, place: int | None) -> dict[str, Any] | None:
    if found is None:
        return None
    rates = {"alarm_before": found.alarm_before.value, "alarm_after": found.alarm_after.value}
    return {**asdict(found), **rates, "place_in_order": place}


def _repair(watch: Watch) -> dict[str, Any] | None:
    found = watch.mended
    if found is None:
        return None
    before = {one.measure: one.after.value for one in watch.measures}
    if not before and watch.screened:
        before = {"agreement": watch.screened.agreement, "alarms": watch.screened.alarm_after.value}
    tried = [
        {
            "method": one.method, "label_free": not one.uses_labels, "before": before,
            "after": {m.measure: m.after.value for m in one.measures} or {"agreement": one.agreement, "alarms": one.alarms},
            "worked": hypotheses.harm(one.measures) <= 1 if one.measures else None,
            "held_out": {"agreement": one.agreement, "alarms": one.alarms},
        }
        for one in found.tried
    ]  # fmt: skip
    effect = [{"measure": one.measure, "before": one.before, "after": one.after, "change": one.change} for one in found.effect]
    return {"tried": tried, "chosen": found.chosen, "state": found.state, "effect": effect, "reason": found.reason}


# ---------------------------------------------------------------- all of them


def verdict_words(
    watched: Sequence[Watch], controls: Sequence[Control], update: str, said: words.Measures = ()
) -> dict[str, Any]:  # fmt: skip
    """Code, word, one sentence and its reason: every required monitor must be shown fine, and no control may have failed.

    said: the required measures of behaviour, each of which must be shown to be preserved.
    """
    asked = [watch for watch in watched if watch.required]
    states = [watch.state for watch in asked]
    every = [*states, *words.states_of(said)]
    word = next((word for word in URGENCY if word in every), "inconclusive")
    failed = [control.name for control in controls if not control.passed]
    if failed and word in {"fine", "no update"}:
        why = f"control {failed[0]!r} failed, so this run proves nothing; see its detail"
        return _verdict("inconclusive", f"Do not deploy {update} on this report.", why)
    if word not in states and word in {"unfit", "inconclusive"}:
        return _of_behaviour(word, update, said)
    sentences = {
        "stale": f"Do not deploy {update} with these monitors: {_count(states, 'stale')} stale{_also_unfit(every)}.",
        "unfit": f"Do not deploy {update} with these monitors: {_count(states, 'unfit')} unfit for their job.",
        "inconclusive": f"Not shown: {_count(states, 'inconclusive')} undecided under {update}, none shown stale.",
        "fine": f"Deploy: all {len(asked)} required monitor(s) are shown to work under {update}.",
        "no update": f"Nothing was updated: {update} leaves all that the {len(asked)} required monitor(s) read as it was.",
    }
    return _verdict(word, sentences[word], _why(word, asked) + _also(words.worse(said)))


def _of_behaviour(word: str, update: str, said: words.Measures) -> dict[str, Any]:
    """The verdict where monitors alone would let the update pass, and required behaviour does not."""
    if word == "unfit":
        lost = words.worse(said)
        return _verdict(word, f"Do not deploy {update}: {len(lost)} of {len(said)} required measure(s) of behaviour are worse.",
                        f"{'; '.join(lost)}: shown to be beyond the margin.")  # fmt: skip
    left = [one for one in said if one["answer"] == "inconclusive"]
    sentence = f"Not shown: {len(left)} of {len(said)} required measure(s) of behaviour undecided under {update}."
    return _verdict(word, sentence, f"{'; '.join(map(words.changed, left))}: neither shown worse nor within the margin.")


def _also(lost: Sequence[str]) -> str:
    return f" Behaviour is worse too: {'; '.join(lost)}." if lost else ""


def _verdict(word: str, sentence: str, why: str) -> dict[str, Any]:
    return {"code": CODES[word], "word": word, "sentence": sentence, "reason": why}


def _count(states: Sequence[str], word: str) -> str:
    return f"{states.count(word)} of {len(states)} required monitor(s)"


def _also_unfit(states: Sequence[str]) -> str:
    return f", {states.count('unfit')} unfit" if "unfit" in states else ""


def _why(word: str, asked: Sequence[Watch]) -> str:
    first = next((watch for watch in asked if watch.state == word), None)
    if word == "fine":
        return (
            "TPR, FPR and AUROC of each stay within their margins and keep their floors, "
            f"shown at {100 * asked[0].level:g} % for all of them together."
        )
    if word == "no update" or first is None:
        return "Every score is the same bit by bit."
    if word == "stale":
        worst = max((watch for watch in asked if watch.state == word), key=lambda watch: hypotheses.harm(watch.measures))
        return f"{worst.name}: {reason(worst)}."
    if word == "unfit":
        return f"{first.name}: {reason(first)}."
    sizes = [texts_needed_of(watch) for watch in asked if watch.state == word]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return f"{first.name}: {reason(first)}. About {max(known):,} labelled texts would decide all of them."
    return f"{first.name}: {reason(first)}."


def steps(watched: Sequence[Watch], word: str, said: words.Measures = ()) -> list[dict[str, Any]]:
    """What to do next, the urgent first."""
    found: list[tuple[str, str | None, str]] = words.steps_of(said)
    for watch in sorted(watched, key=lambda watch: URGENCY.index(watch.state)):
        if watch.state == "stale" and watch.mended and watch.mended.chosen:
            held = f"{watch.mended.chosen}; {watch.mended.reason}: {', '.join(map(_change, watch.mended.effect))}"
            found.append(("use the repaired monitor", watch.name, held))
        elif watch.state == "stale":
            why = watch.mended.reason if watch.mended else "nothing could be tried: repairs take unlabelled texts"
            found.append(("fit it anew", watch.name, f"on {2 * ENOUGH} or more labels under the update; {why}"))
        elif watch.state == "unfit":
            found.append(_mend_unfit(watch))
        elif watch.state == "inconclusive":
            found.append(("collect labels", watch.name, _labels(watch, texts_needed_of(watch))))
    if word in {"fine", "no update"}:
        found.insert(0, ("deploy", None, "every required monitor is fit" if word == "fine" else "nothing that they read changed"))
    return [{"action": action, "monitor": name, "detail": detail} for action, name, detail in found]


def _mend_unfit(watch: Watch) -> tuple[str, str | None, str]:
    """What makes a monitor fit that misses a floor: another threshold where its ranking holds, else another probe."""
    ranked = next((one for one in watch.floors if one.measure == "auroc"), None)
    if ranked and ranked.p_holds <= watch.level and any(one.measure.startswith("fpr") for one in watch.floors):
        return (
            "set its threshold anew",
            watch.name,
            "on harmless texts of its traffic, then revalidate: its ranking is above chance",
        )
    return "fit it anew", watch.name, f"on {2 * ENOUGH} or more labels: it ranks no better than chance, so no threshold mends it"


def _labels(watch: Watch, size: int | None) -> str:
    if size is None:
        return "no number of labels would decide it as it stands: it lies at its margin, or has no threshold"
    return f"about {size:,} labelled texts of its task would decide it; there are {watch.n:,}"


def triage_order(watched: Sequence[Watch], total: int) -> dict[str, Any] | None:
    """In which order to label, and what a budget buys: only what is not decided asks for labels, and monitors of a task share."""
    screened = {watch.name: watch.screened for watch in watched if watch.screened}
    if not screened:
        return None
    order, by_name = screening.order(screened), {watch.name: watch for watch in watched}
    more = {name: max((texts_needed_of(by_name[name]) or 0) - by_name[name].n, 0) for name in order}
    shares = screening.budget({name: by_name[name].task or "" for name in order}, order, more, total)
    return {"order": order, "budget": total, "plan": [asdict(share) for share in shares]}


def sure(found: Sureness | None) -> dict[str, Any]:
    """The simulated error rates; null without labels, or with so few that they were not simulated."""
    names = ("false_alarm", "opened", "miss", "let_through")
    if found is None:
        return dict.fromkeys((*names, "n"))
    rates = {name: getattr(found, name) for name in names}
    said = {name: e and {"value": e.value, "low": e.low, "high": e.high, "draws": found.draws} for name, e in rates.items()}
    return {**said, "n": found.n}


SCHEMA_VERSION = 2
VERSIONS = ("after-the-update", "torch", "transformers", "peft", "bitsandbytes", "numpy", "scikit-learn")


def build_report(
    watched: Sequence[Watch], judged: LabelEvidence, compared: Mapping[str, Any], notes: Sequence[str], budget: int,
    behaviour: object = None, moved: object = None, policy: GatePolicy = DEFAULT, source: str = "", evidence: object = None,
) -> dict[str, Any]:  # fmt: skip
    """The whole report as plain JSON."""
    triage = triage_order(watched, budget)
    places = {name: place for place, name in enumerate(triage["order"], 1)} if triage else {}
    said = words.required(behaviour)
    verdict = verdict_words(watched, judged.controls, str(compared["update"]["name"]), said)
    return plain({
        "schema_version": SCHEMA_VERSION, "verdict": verdict, "compared": compared, "policy": _asked(policy, source),
        "monitors": [monitor(watch, places.get(watch.name)) for watch in watched],
        "next": steps(watched, str(verdict["word"]), said), "triage": triage, "behaviour": behaviour,
        "controls": list(judged.controls), "sureness": sure(judged.sure), "moved": moved,
        "notes": [*notes], "seconds": None, "code": verdict["code"], "evidence": evidence,
    })  # fmt: skip


def _asked(policy: GatePolicy, source: str) -> dict[str, Any]:
    """The policy by which a report was judged: its values, their hash, and the file that they were read from."""
    return {**asdict(policy), "hash": policy.hash, "file": source or None}


def versions() -> dict[str, str]:
    """The versions of the packages that a report's numbers depend on."""
    return installed(VERSIONS)


def labels_entry(labels: Iterable[int], groups: Iterable[str], sha256: str | None) -> dict[str, Any]:
    """What a report says of labelled texts."""
    every = [int(label) for label in labels]
    return {"n": len(every), "positives": sum(every), "groups": len(set(groups)), "sha256": sha256}


def told(found: dict[str, Any], begun: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The report with the seconds since `begun`; its verdict is said aloud."""
    found["seconds"] = round(time.monotonic() - begun, 1)
    say(f"{found['verdict']['word']}: {found['verdict']['sentence']}")
    return found
