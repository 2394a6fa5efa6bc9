"""Cells of a heat map: a value with its interval in small, framed where the interval lies above a margin."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from helpers.figures.drawing.layout import INK


def write_cell(ax: Axes, x: int, y: int, item: Any, margin: float, limit: float) -> None:
    """Writes the value with its interval, white on dark cells; framed and bold where the interval lies above the margin."""
    dark, sure = abs(item.value) > 0.72 * limit, item.low > margin
    style: dict[str, Any] = {"color": "white" if dark else INK, "ha": "center", "va": "center", "zorder": 3}
    ax.text(x, y - 0.2, _signed(item.value), fontsize=9, weight="bold" if sure else "normal", **style)
    ax.text(x, y + 0.23, f"{_signed(item.low)} to {_signed(item.high)}", fontsize=7.2, **style)
    if sure:
        ax.add_patch(Rectangle((x - 0.47, y - 0.43), 0.94, 0.86, fill=False, edgecolor=INK, linewidth=1.3, zorder=2))


def _signed(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")
