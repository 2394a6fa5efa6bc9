"""What a report keeps so that it can be judged anew without a model: scores, labels and groups by number; no text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helpers.data.splits import Example
from helpers.errors import REFUSED, StudyError
from helpers.revalidation.behaviour import comparison
from helpers.revalidation.behaviour.comparison import PairedItems
from helpers.revalidation.hypotheses import Panel
from helpers.revalidation.policy import GatePolicy
from helpers.revalidation.report import wording

NO_FORM = "report: evidence has not the form of evidence; make the report again"
FORMLESS = (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError)


def keep(
    panels: Sequence[Panel], again: Sequence[np.ndarray] | None, same: Mapping[str, bool], seed: int,
    items: Sequence[PairedItems] = (),
) -> dict[str, Any]:  # fmt: skip
    """Panels, second readings and measures of behaviour as plain values, with their sha256.

    same: by monitor whether nothing that it reads has changed; seed: of controls and simulated error rates.
    """
    found = wording.plain(
        {
            "panels": [_panel(panel, None if again is None else again[i]) for i, panel in enumerate(panels)],
            "same": {name: bool(value) for name, value in same.items()},
            "behaviour": comparison.record(items),
            "seed": seed,
        }
    )  # as it is written: names are cleaned
    return {**found, "sha256": digest(found)}


def _panel(panel: Panel, again: np.ndarray | None) -> dict[str, Any]:
    return {
        "names": list(panel.names), "labels": panel.labels.tolist(),
        "groups": np.unique(panel.groups, return_inverse=True)[1].tolist(),
        "before": panel.before.astype(float).tolist(), "after": panel.after.astype(float).tolist(),
        "again": None if again is None else again.astype(float).tolist(),
        "cuts": [None if np.isnan(cut) else float(cut) for cut in panel.cuts], "nominal": panel.nominal.tolist(),
    }  # fmt: skip


def digest(evidence: Mapping[str, Any]) -> str:
    """sha256 of all evidence but its own hash."""
    rest = {key: value for key, value in evidence.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def texts_digest(rows: Sequence[Example]) -> str:
    """sha256 over texts, replies and labels, in their order."""
    return hashlib.sha256("\0".join(f"{row.prompt}\0{row.reply}\0{row.label}" for row in rows).encode()).hexdigest()


def panels_of(evidence: Mapping[str, Any], policy: GatePolicy) -> tuple[list[Panel], list[np.ndarray] | None]:
    """The panels under a policy, and the second readings, None where the base was read once; refused where they have no form."""
    try:
        rows = evidence["panels"]
        panels = [
            Panel(
                tuple(row["names"]), np.array(row["labels"], dtype=int), np.array(row["groups"], dtype=int),
                np.array(row["before"], dtype=float), np.array(row["after"], dtype=float),
                np.array([np.nan if cut is None else cut for cut in row["cuts"]], dtype=float),
                np.array(row["nominal"], dtype=float), policy,
            )
            for row in rows
        ]  # fmt: skip
        again = [np.array(row["again"], dtype=float) for row in rows if row["again"] is not None]
        for panel in panels:
            _fit(panel)
        if any(side.shape != panel.before.shape for side, panel in zip(again, panels, strict=False)):
            raise ValueError
    except FORMLESS as error:
        raise StudyError(NO_FORM, REFUSED) from error
    return panels, again if rows and len(again) == len(rows) else None


def _fit(panel: Panel) -> None:
    """Raises ValueError where the parts of a panel are not of one size, not finite, or of one class alone."""
    k, n = len(panel.names), len(panel.labels)
    sizes = {(k, n)} == {panel.before.shape, panel.after.shape} and panel.cuts.shape == panel.nominal.shape == (k,)
    if not all(isinstance(name, str) for name in panel.names) or len(set(panel.names)) != k or not k:
        raise ValueError
    if not sizes or panel.groups.shape != panel.labels.shape or panel.labels.ndim != 1 or set(panel.labels.tolist()) != {0, 1}:
        raise ValueError
    finite = np.isfinite(panel.before).all() and np.isfinite(panel.after).all() and not np.isinf(panel.cuts).any()
    if not finite or not ((panel.nominal > 0) & (panel.nominal < 0.5)).all():
        raise ValueError


def items_of(evidence: Mapping[str, Any]) -> list[PairedItems]:
    """The measures of behaviour, item by item; refused where they have no form."""
    try:
        found = comparison.from_record(evidence["behaviour"])
        for one in found:
            sizes = {len(one.before), len(one.after), len(one.groups)}
            finite = np.isfinite(one.before).all() and np.isfinite(one.after).all()
            flat = one.before.ndim == one.after.ndim == one.groups.ndim == 1
            if one.name not in comparison.HARM or len(sizes) != 1 or 0 in sizes or not finite or not flat:
                raise ValueError
    except FORMLESS as error:
        raise StudyError(NO_FORM, REFUSED) from error
    return found
