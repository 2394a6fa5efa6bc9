"""Steps: a folder of checkpoints of one training, and the first of them at which a monitor is stale.

Bisection looks at the last checkpoint and then at about log2 of the others; it takes for granted that what is stale stays so.
`all` looks at each of them and takes nothing for granted.
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from helpers.errors import REFUSED, StudyError, shown
from helpers.revalidation.report import wording

NAME = re.compile(r"(?:checkpoint|ckpt|step|global_step|epoch)[-_]?(\d{1,12})", re.IGNORECASE)
HOLDS = ("adapter_config.json", "config.json")
Steps = Mapping[str, Any]


class Checkpoint(NamedTuple):
    """A checkpoint of a training: its step, by its name, and its folder."""

    step: int
    path: Path


def steps_in(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder in the order of their steps; none where it holds an update itself, or fewer than two."""
    if not folder.is_dir() or any((folder / name).is_file() for name in HOLDS):
        return []
    named = [(NAME.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir()]
    found = sorted(
        Checkpoint(int(name[1]), path) for name, path in named if name and any((path / one).is_file() for one in HOLDS)
    )  # fmt: skip
    for one, other in pairwise(found):
        if one.step == other.step:
            names = f"{shown(one.path.name)} and {shown(other.path.name)}"
            raise StudyError(f"--update {folder.name} holds {names} of one step; move one of them away", REFUSED)
    return found if len(found) > 1 else []


def search(n: int, is_stale: Callable[[int], bool], how: str = "bisect") -> int | None:
    """The first of n steps that is stale, None where the last is not (or, looking at `all`, none is); the last is asked first."""
    last = is_stale(n - 1)
    if how == "all":
        found = [i for i in range(n - 1) if is_stale(i)]
        return min([*found, *([n - 1] if last else [])], default=None)
    if not last:
        return None
    low, high = -1, n - 1  # before the first step stands the base
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_stale(middle) else (middle, high)
    return high


def has_stale(report: Mapping[str, Any]) -> bool:
    """Whether a required monitor is stale."""
    return any(one["required"] and one["state"] == "stale" for one in report["monitors"])


def looked_at(found: Mapping[Checkpoint, Mapping[str, Any]], there: int, first: Checkpoint | None, how: str) -> dict[str, Any]:
    """What was seen at each step that was looked at: the verdict, and by monitor the change that is worst, in its margins."""
    rows = [
        {
            "step": at.step, "name": report["compared"]["update"]["name"], "word": report["verdict"]["word"],
            "code": report["code"], "monitors": [_worst(one) for one in report["monitors"]],
        }
        for at, report in sorted(found.items())
    ]  # fmt: skip
    fit = [row["step"] for row in rows if row["code"] == 0 and (first is None or row["step"] < first.step)]
    ends = {"first_stale": first and first.step, "last_fit": max(fit, default=None)}
    return {"how": how, "there": there, "looked_at": rows, **ends}


def _worst(monitor: Mapping[str, Any]) -> dict[str, Any]:
    harms = [harm for harm in map(wording.harm_of_test, monitor["tests"]) if harm]
    value, low, high = max(harms, default=(None, None, None))
    harm = {"value": value, "low": low, "high": high}
    return {"name": monitor["name"], "required": monitor["required"], "state": monitor["state"], "harm": harm}


def with_steps(report: dict[str, Any], steps: Steps) -> dict[str, Any]:
    """The report of the last step with what was seen at the others, and with which checkpoint to take instead."""
    if steps["first_stale"] is None:
        return {**report, "steps": steps}
    seen = f"{len(steps['looked_at'])} of {steps['there']} checkpoints were looked at"
    since = f"a required monitor is stale from step {steps['first_stale']} on; {seen}"
    if steps["last_fit"] is None:
        step = {"action": "train otherwise, or save earlier", "monitor": None, "detail": f"{since}, and none before it was fit"}
    else:
        detail = f"that of step {steps['last_fit']} is the last that was shown fit; {since}"
        step = {"action": "take an earlier checkpoint", "monitor": None, "detail": detail}
    return {**report, "steps": steps, "next": [step, *report["next"]]}
