"""What holds for every figure of the book: it says its message, is not crowded, can be read on a page, and has no empty panel."""

from collections import Counter

from matplotlib.figure import Figure
from matplotlib.text import Text

from helpers.figures.drawing import export, marks

PAGE = 768  # pixels that a figure has at most, on a page of 1400
LEAST = 9.0  # pixels of the smallest text
MOST = 60  # marks in a panel; the pale dots of single seeds stand behind and do not count, and a line counts once
SEEDS = ("one seed", "a seed without its premise")


def broken(figure: Figure) -> list[str]:
    """The rules that a figure breaks, in words."""
    return [*_sentence(figure), *_crowded(figure), *_small(figure), *_empty(figure)]


def counted(figure: Figure) -> dict[str, int]:
    """By panel, how many marks it has."""
    seen: dict[str, set] = {}
    for mark in marks.marks(figure):
        if mark.mark in ("point", "dot", "bar", "cell", "line") and not mark.series.endswith(SEEDS):
            place = mark.series if mark.mark == "line" else (mark.series, mark.x, mark.y, mark.value, mark.low)
            seen.setdefault(mark.panel, set()).add(place if mark.mark != "point" else (mark.series, mark.x, mark.y))
    return {panel: len(found) for panel, found in seen.items()}


def _sentence(figure: Figure) -> list[str]:
    said = figure._suptitle.get_text() if figure._suptitle else ""
    return [] if said.endswith(".") and len(said.split()) > 3 else [f"its title is no sentence: {said!r}"]


def _crowded(figure: Figure) -> list[str]:
    """Panels with too many marks, unless each has words of its own beside it, as in a forest."""
    worded = {marks.panel_name(ax): len(ax.texts) for ax in marks.panels_of(figure)}
    found = counted(figure).items()
    return [f"panel {name!r} has {count} marks" for name, count in found if count > MOST and worded.get(name, 0) < count]


def _small(figure: Figure) -> list[str]:
    scale = min(1.0, PAGE / (96 * export._box(figure, vector=True).width))
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    sizes = {text.get_text(): text.get_fontsize() * 96 / 72 * scale for text in shown}
    return [f"{text!r} has {size:.1f} pixels" for text, size in sizes.items() if size < LEAST - 1e-6]


def _empty(figure: Figure) -> list[str]:
    found, panels = counted(figure), [ax for ax in marks.panels_of(figure) if ax.axison]
    names = Counter(marks.panel_name(ax) for ax in panels)
    return [f"panel {name!r} is empty" for name in names if not found.get(name)]
