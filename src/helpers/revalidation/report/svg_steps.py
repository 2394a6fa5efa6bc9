"""The drawing of a training's checkpoints: how far each monitor's worst measure lies from its margin, step by step."""

from collections.abc import Mapping, Sequence

from helpers.revalidation.report import wording
from helpers.revalidation.report.svg import CLASSES

WIDTH, HEIGHT, LEFT = 640, 170, 46
LOWEST, HIGHEST = -1.0, 4.0  # margins; what lies beyond ends at the edge
MOST = 24  # monitors that are drawn


def draw_steps(rows: Sequence[Mapping]) -> str:
    """Required monitors as lines over the steps, a dot a step in the colour of its state, with 90 % intervals; empty without any.

    The vertical axis is the worst change of a monitor in units of its margin: worse is above 0, and the margin is 1.
    """
    steps = [row["step"] for row in rows]
    names = list(dict.fromkeys(one["name"] for row in rows for one in row["monitors"] if one["required"]))[:MOST]
    by_step = {row["step"]: {one["name"]: one for one in row["monitors"]} for row in rows}
    x = {step: LEFT + (WIDTH - LEFT - 12) * (i + 0.5) / len(steps) for i, step in enumerate(steps)}
    lines = "".join(_line([(x[step], by_step[step][name]) for step in steps if name in by_step[step]]) for name in names)
    if not lines:
        return ""
    ticks = "".join(
        f'<text x="{x[step]:.1f}" y="{HEIGHT + 15}" text-anchor="middle">{wording.number(step)}</text>'
        for i, step in enumerate(steps) if i % max(len(steps) // 10, 1) == 0
    )  # fmt: skip
    levels = "".join(f'<text x="{LEFT - 6}" y="{_y(at) + 4:.1f}" text-anchor="end">{at}</text>' for at in (0, 1, 2, 3))
    return (
        f'<svg viewBox="0 -8 {WIDTH} {HEIGHT + 44}" width="{WIDTH}" role="img" '
        'aria-label="Worst change of each required monitor in units of its margin, by step; above 1 is beyond the margin">'
        f'<path class="z" d="M{LEFT} {_y(0):.1f}H{WIDTH}"/><path class="g" d="M{LEFT} {_y(1):.1f}H{WIDTH}"/>'
        f'<path class="ax" d="M{LEFT} 0V{HEIGHT}H{WIDTH}" fill="none"/>{lines}{ticks}{levels}'
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT + 31}" text-anchor="middle">step; dashed: the margin</text></svg>'
    )


def _y(harm: float) -> float:
    return HEIGHT * (HIGHEST - min(max(harm, LOWEST), HIGHEST)) / (HIGHEST - LOWEST)


def _line(places: Sequence[tuple[float, Mapping]]) -> str:
    """One monitor: a line through its values, its intervals and dots; empty where nothing was measured."""
    found = [(x, one["harm"], one["state"]) for x, one in places if one["harm"]["value"] is not None]
    if not found:
        return ""
    path = "L".join(f"{x:.1f} {_y(harm['value']):.1f}" for x, harm, _ in found)
    dots = "".join(
        f'<g class="{CLASSES[state]}"><path class="i" d="M{x:.1f} {_y(harm["low"]):.1f}V{_y(harm["high"]):.1f}"/>'
        f'<circle class="d" cx="{x:.1f}" cy="{_y(harm["value"]):.1f}" r="4"/></g>'
        for x, harm, state in found
    )
    return f'<path class="ax" d="M{path}" fill="none"/>{dots}'
