"""Distances: how far scores stand from a monitor's threshold, and how far they move when nothing changed. Pure arrays.

Both in standard deviations of the monitor's scores before the update, so that monitors can be compared.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

NEAREST = 10  # percent of the texts: those that stand nearest to the threshold, or beyond it


def standing(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], cut: float, labels: np.ndarray | None = None
) -> dict[str, Any] | None:
    """By class the median distance of scores to the threshold, and that of the nearest tenth, before and after.

    Above 0 is the right side: flagged texts above the threshold, harmless ones below it; without labels above it. None without
    a threshold, or where all scores were one.
    """
    spread = float(before.std())
    if not np.isfinite(cut) or not spread > 0:
        return None
    parts = {"texts": (slice(None), 1)} if labels is None else {"flagged": (labels == 1, 1), "harmless": (labels == 0, -1)}
    return {
        name: {side: _two(sign * (scores[rows] - cut) / spread) for side, scores in (("before", before), ("after", after))}
        for name, (rows, sign) in parts.items()
    }


def _two(distances: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(distances)), "nearest": float(np.percentile(distances, NEAREST))}


def noise(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], again: Float[np.ndarray, " n"] | None
) -> dict[str, Any] | None:
    """How far the same texts' scores moved, as a root mean square: by the update, and by reading the base again in other batches.

    within: whether the update moved them no further than that; then nothing shows that it moved them. None without a second
    reading.
    """
    if again is None:
        return None
    spread = float(before.std()) or 1.0
    moved, floor = (float(np.sqrt(np.mean((side - before) ** 2))) / spread for side in (after, again))
    return {"update": moved, "reading": floor, "within": bool(0 < moved <= floor)}


def standing_words(found: Mapping[str, Any] | None) -> str:
    """The distances on one line; empty where there are none."""
    if not found:
        return ""
    said = [
        f"{name} {_sides(sides, 'median')} sd (nearest tenth {_sides(sides, 'nearest')})" for name, sides in found.items()
    ]  # fmt: skip
    return f"from its threshold: {', '.join(said)}"


def _sides(sides: Mapping[str, Mapping[str, float]], key: str) -> str:
    return " → ".join(f"{sides[side][key]:+.2f}".replace("-", "−") for side in ("before", "after"))


def noise_words(found: Mapping[str, Any] | None) -> str:
    """How far scores moved beside the noise of reading them twice; empty where that is not known."""
    if not found:
        return ""
    return f"moved by {found['update']:.2g} sd, read twice by {found['reading']:.2g} sd"
