"""A figure in words, for a reader who cannot see it: what its artists show, nothing else, so that it is true by construction."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helpers.figures.drawing.marks import Mark, marks, one_line, panel_name, panels_of, place_names

KINDS = {"point": "points with intervals", "cell": "a heat map", "bar": "bars", "dot": "dots", "line": "lines"}
LENGTH = 600  # characters: what a reader who cannot see the figure listens to before the data


def alt(figure: Figure, found: Sequence[Mark] | None = None) -> str:
    """The figure in at most four sentences and 600 characters: what kind, which panels and ranges, which axes, which series."""
    found = marks(figure) if found is None else found
    for most in (12, 8, 6, 4, 3, 2, 1):
        text = " ".join(filter(None, (_kinds(figure, found, most), _axes(figure, most), _named(found, most))))
        if len(text) <= LENGTH:
            return text
    return text[: LENGTH - 1] + "…"


def _listed(names: Iterable[str], most: int, mark: str = ", ") -> str:
    names = list(dict.fromkeys(filter(None, names)))
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return mark.join([*names[:most], *more])


def _kinds(figure: Figure, found: Sequence[Mark], most: int) -> str:
    """What is drawn, and each panel with the range of its values."""
    kinds = [words for kind, words in KINDS.items() if any(mark.mark == kind for mark in found)]
    if not kinds:
        return f"A figure of words: {_listed((mark.written for mark in found), 4 * most).rstrip('.')}."
    panels = {panel_name(ax): ax for ax in panels_of(figure)}
    ranges = [_range(name, ax, [mark for mark in found if mark.panel == name]) for name, ax in panels.items()]
    joined = " and ".join([", ".join(kinds[:-1]), kinds[-1]]) if len(kinds) > 1 else kinds[0]
    head = joined[0].upper() + joined[1:] + (f" in {len(panels)} panels" if len(panels) > 1 else "")
    return f"{head}: {_listed(ranges, most, '; ')}."


def _range(name: str, ax: Axes, found: Sequence[Mark]) -> str:
    """A panel with the least and the greatest value in it."""
    sides = [mark.along for mark in found if mark.mark == "point"]
    side = "x" if sides.count("x") > sides.count("y") else "y"
    drawn = [mark for mark in found if mark.mark in KINDS]
    seen = [mark.value if mark.mark == "cell" else getattr(mark, side) for mark in drawn]
    values = [value for value in seen if isinstance(value, float) and np.isfinite(value)]
    if not values:
        return name
    cells = any(mark.mark == "cell" for mark in drawn)
    ends = [f"{value:.3g}" if cells else _shown(getattr(ax, f"{side}axis"), value) for value in (min(values), max(values))]
    return f"{name}, {ends[0]} to {ends[1]}" if name else f"values from {ends[0]} to {ends[1]}"


def _shown(axis: Axis, value: float) -> str:
    """A value as the axis writes it where that is our own way (per cent), else with three digits."""
    formatter = axis.get_major_formatter()
    value = float(f"{value:.3g}")
    return (formatter(value, None) if isinstance(formatter, FuncFormatter) else "") or f"{value:.3g}"


def _axes(figure: Figure, most: int) -> str:
    """What the axes are; a categorical one by how many places it has, and their names."""
    said = []
    for along, words in (("x", "across"), ("y", "upwards")):
        labels = [one_line(getattr(one, name)()) for one, name in [*((ax, f"get_{along}label") for ax in panels_of(figure)),
                                                                (figure, f"get_sup{along}label")]]  # fmt: skip
        names = list(dict.fromkeys(name for ax in panels_of(figure) for name in place_names(ax, along).values() if name))
        parts = [_listed(labels, most), _places(names, most)]
        if any(parts):
            said.append(f"{words}: {', '.join(filter(None, parts))}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _places(names: Sequence[str], most: int) -> str:
    """The places of a categorical axis: all of a few, else how many, the first and the last."""
    if len(names) <= min(most, 6):
        return _listed(names, most)
    return f"{len(names)} rows or columns from {names[0]} to {names[-1]}"


def _named(found: Sequence[Mark], most: int) -> str:
    """The series by name."""
    every = list(dict.fromkeys(mark.series for mark in found if mark.series))
    names = _listed(every, most if len(every) <= 12 else min(most, 4), "; ")
    return f"Series: {names}." if names else ""
