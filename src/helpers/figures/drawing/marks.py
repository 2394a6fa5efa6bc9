"""What a figure shows, read back from its artists: one row a mark, and all of them as CSV.

A mark is a point with or without interval, a bar, a line's point, a cell of a heat map. What carries no data (grids, shaded
rows, frames, lines at zero without a name) lies below zorder 1 or has no name, and is left out.
"""

import csv as files
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from textwrap import shorten

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, Container, ErrorbarContainer
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, StepPatch
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

Place = float | str | None


@dataclass(frozen=True)
class Mark:
    """One mark: where it stands, its value where that is a colour, and its interval (or a bar's edges) along x or y."""

    panel: str
    series: str
    mark: str
    x: Place = None
    y: Place = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    along: str = ""
    written: str = ""


# ---------------------------------------------------------------- a figure, panel by panel


def marks(figure: Figure) -> list[Mark]:
    """Every mark of the figure, panel by panel, in the order drawn; places of a categorical axis by their names."""
    keys, found = _keys(figure), []
    for ax in panels_of(figure):
        panel, names = panel_name(ax), {along: place_names(ax, along) for along in "xy"}
        for mark in _unique(_read(ax, keys)):
            x, y = (_called(getattr(mark, along), names[along]) for along in "xy")
            found.append(replace(mark, panel=panel, x=x, y=y))
    return found


def panels_of(figure: Figure | SubFigure) -> list[Axes]:
    """The axes that show something: neither the scale of a heat map nor a place left over for a legend."""
    return [ax for ax in figure.axes if not hasattr(ax, "_colorbar") and (ax.axison or ax.texts)]


def _read(ax: Axes, keys: dict[tuple, str]) -> Iterator[Mark]:
    if not ax.axison:
        yield from (Mark("", "", "text", written=one_line(text.get_text())) for text in ax.texts)
        return
    parts = {id(part) for one in ax.containers for part in _parts(one)}
    for one in ax.containers:
        yield from _errorbar(one, keys) if isinstance(one, ErrorbarContainer) else _bars(one, keys)
    above = [artist for artist in (*ax.lines, *ax.collections, *ax.patches) if artist.get_zorder() >= 1]
    for artist in [*above, *ax.images]:
        if id(artist) not in parts and artist.get_visible():
            yield from _artist(ax, artist, keys)


def _parts(container) -> list[Artist]:
    if isinstance(container, ErrorbarContainer):
        line, caps, bars = container.lines
        return [line, *caps, *bars]
    return list(container) if isinstance(container, BarContainer) else []


def _artist(ax: Axes, artist: Artist, keys: dict[tuple, str]) -> Iterable[Mark]:
    name = _series(artist, {} if isinstance(artist, LineCollection | PolyCollection) else keys)
    if isinstance(artist, Line2D):
        return _curve(ax, artist, name)
    if isinstance(artist, PathCollection):
        return [Mark("", name, "dot", *_pair(place)) for place in np.ma.filled(artist.get_offsets(), np.nan)]
    if isinstance(artist, LineCollection | PolyCollection):
        return _extents([np.asarray(path.vertices) for path in artist.get_paths()], name) if name else []
    if isinstance(artist, StepPatch):
        heights, edges, _ = artist.get_data()
        return [_bar(name, *one) for one in zip(edges[:-1], edges[1:], heights, strict=True)]
    if isinstance(artist, Patch):
        return _area(ax, artist, name)
    return _cells(ax, artist) if isinstance(artist, QuadMesh | AxesImage) else []


# ---------------------------------------------------------------- kinds of marks


def _pair(place: Sequence[float]) -> tuple[float, float]:
    return float(place[0]), float(place[1])


def _errorbar(container: ErrorbarContainer, keys: dict[tuple, str]) -> Iterator[Mark]:
    """Points with the ends of their intervals, which stand in the segments."""
    line, _, bars = container.lines
    name = container.get_label() if not str(container.get_label()).startswith("_") else _series(line, keys)
    sides = [side for side, has in (("x", container.has_xerr), ("y", container.has_yerr)) if has]
    for side, collection in zip(sides, bars, strict=True):
        for place, ends in zip(np.column_stack(line.get_data(orig=False)), collection.get_segments(), strict=False):
            low, high = sorted(ends[:, "xy".index(side)]) if len(ends) else (np.nan, np.nan)
            yield Mark("", one_line(name), "point", *_pair(place), low=float(low), high=float(high), along=side)


def _bars(container: Container, keys: dict[tuple, str]) -> list[Mark]:
    if not isinstance(container, BarContainer) or not len(container):
        return []
    name = container.get_label() if not str(container.get_label()).startswith("_") else _series(container[0], keys)
    return [_bar(one_line(name), bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height()) for bar in container]


def _bar(name: str, left: float, right: float, height: float) -> Mark:
    return Mark("", name, "bar", float(left + right) / 2, float(height), low=float(left), high=float(right), along="x")


def _curve(ax: Axes, line: Line2D, name: str) -> Iterator[Mark]:
    """The points of a line; a line across the whole panel is one mark, if it has a name."""
    x, y = (np.atleast_1d(np.asarray(part, float)) for part in line.get_data(orig=False))
    across, up = line.get_transform().contains_branch_seperately(ax.transData)
    kind = "dot" if line.get_linestyle() in ("None", "", " ") else "line"
    if across and up:
        yield from (Mark("", name, kind, float(a), float(b)) for a, b in zip(x, y, strict=True))
    elif name and across != up and len(x) == 2:
        yield Mark("", name, "reference", x=float(x[0]) if across else None, y=None if across else float(y[0]))


def _extents(shapes: Iterable[np.ndarray], name: str) -> Iterator[Mark]:
    """Lines and bands in the panel: their middle, and how far they reach upwards or across."""
    for shape in shapes:
        (left, low), (right, high) = shape.min(axis=0), shape.max(axis=0)
        first, last, along = (low, high, "y") if high > low else (left, right, "x")
        middle = float(left + right) / 2, float(low + high) / 2
        yield Mark("", name, "band", *middle, low=float(first), high=float(last), along=along)


def _area(ax: Axes, patch: Patch, name: str) -> Iterable[Mark]:
    """A histogram's outline, bin by bin; a band over the whole panel, if it has a name."""
    across, up = patch.get_transform().contains_branch_seperately(ax.transData)
    if across and up and isinstance(patch, Polygon):
        outline = patch.get_xy()
        count = (len(outline) + 3) // 4  # up and down at every edge of a bin, and back along the ground
        edges, heights = outline[: 2 * count : 2, 0], outline[1 : 2 * count - 1 : 2, 1]
        return [_bar(name, *one) for one in zip(edges[:-1], edges[1:], heights, strict=False)]
    if not name or across == up:
        return []
    box = patch.get_path().get_extents(patch.get_patch_transform())
    ends = (box.x0, box.x1) if across else (box.y0, box.y1)
    return [Mark("", name, "band", low=float(ends[0]), high=float(ends[1]), along="x" if across else "y")]


def _cells(ax: Axes, image: QuadMesh | AxesImage) -> Iterator[Mark]:
    """The cells of a heat map by row and column, with what is written in them."""
    values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)
    if isinstance(image, QuadMesh):
        corners = np.asarray(image.get_coordinates())
        middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        values = values.reshape(middles.shape[:2])
    else:
        middles = np.dstack(np.meshgrid(*(np.arange(size) for size in values.shape[::-1])))
    texts = [(*text.get_position(), one_line(text.get_text())) for text in ax.texts]
    for (row, column), value in np.ndenumerate(values):
        x, y = _pair(middles[row, column])
        words = "; ".join(text for a, b, text in texts if abs(a - x) < 0.5 and abs(b - y) < 0.5)
        yield Mark("", "", "cell", x, y, float(value), written=words)


def _unique(found: Iterable[Mark]) -> list[Mark]:
    """Marks that have a place, without the lines that only join points already there."""
    found = [m for m in found if m.mark in ("band", "reference", "text") or not _lost(m)]
    there = {(m.x, m.y) for m in found if m.mark in ("point", "dot")}
    return [m for m in found if m.mark != "line" or (m.x, m.y) not in there]


def _lost(mark: Mark) -> bool:
    return any(value is None or not np.isfinite(value) for value in (mark.x, mark.y))


# ---------------------------------------------------------------- names


def one_line(text: object) -> str:
    """A text without its line breaks."""
    return " ".join(str(text).split())


def _look(artist: Artist) -> tuple[str, str, str]:
    """Colour, marker and line of an artist, by which a legend tells it."""
    if isinstance(artist, ErrorbarContainer):
        artist = artist.lines[0]
    if isinstance(artist, Line2D):
        marker = str(artist.get_marker())
        return to_hex(artist.get_color()), "" if marker in ("None", " ") else marker, str(artist.get_linestyle())
    getter = getattr(artist, "get_facecolor", None)
    colours = np.atleast_2d(getter()) if getter else np.empty((0, 4))
    return (to_hex(colours[0]) if len(colours) else "", "", "")


def _keys(figure: Figure) -> dict[tuple, str]:
    """The names in the figure's legends, by look: as exact as can be, and by less where that still tells them apart."""
    legends = [*figure.legends, *filter(None, (ax.get_legend() for ax in figure.axes))]
    pairs = [(_look(key), one_line(text.get_text())) for one in legends
             for key, text in zip(one.legend_handles, one.get_texts(), strict=False) if key is not None]  # fmt: skip
    found: dict[tuple, str] = {}
    for size in (3, 2, 1):
        for look, name in pairs:
            if len({other for seen, other in pairs if seen[:size] == look[:size]}) == 1:
                found.setdefault(look[:size], name)
    return found


def _series(artist: Artist, keys: dict[tuple, str]) -> str:
    """An artist's own label, else the name that a legend gives to its look."""
    own = str(artist.get_label() or "")
    if own and not own.startswith("_"):
        return one_line(own)
    look = _look(artist)
    return next((keys[look[:size]] for size in (3, 2, 1) if look[:size] in keys), "")


def _neighbours(ax: Axes, along: str) -> list[Axes]:
    """The panel itself, then those that stand in its row (for y) or in its column (for x)."""
    side = "rowspan" if along == "y" else "colspan"
    spec = ax.get_subplotspec()
    others = [other for other in panels_of(ax.figure) if spec and other is not ax and other.get_subplotspec()]
    return [ax, *(other for other in others if getattr(other.get_subplotspec(), side) == getattr(spec, side))]


def panel_name(ax: Axes) -> str:
    """A panel's title; in a grid that of its column and the words of its row; else what it alone is drawn over."""

    def titles(one: Axes) -> str:
        return next((one_line(one.get_title(loc)) for loc in ("left", "center", "right") if one.get_title(loc)), "")

    every, column, row = panels_of(ax.figure), _neighbours(ax, "x"), _neighbours(ax, "y")
    if len({titles(one) for one in every} - {""}) == len(every) or len(every) == 1:
        return titles(ax)
    title = next((titles(one) for one in column if titles(one)), "")
    words = next((one_line(one.get_ylabel()) for one in row if one.get_ylabel()), "")
    if title:
        return f"{title} / {words}" if words else title
    labels = [one_line(one.get_xlabel()) for one in every]
    return shorten(one_line(ax.get_xlabel()), 44, placeholder=" …") if len(set(labels)) == len(labels) else words


def place_names(ax: Axes, along: str) -> dict[float, str]:
    """The names of the places of a categorical axis; nothing for a numeric one."""
    for other in _neighbours(ax, along):
        axis: Axis = getattr(other, f"{along}axis")
        formatter, places = axis.get_major_formatter(), axis.get_majorticklocs()
        fixed = isinstance(axis.get_major_locator(), FixedLocator) and isinstance(formatter, FuncFormatter | FixedFormatter)
        if fixed and np.array_equal(places, getattr(ax, f"{along}axis").get_majorticklocs()):
            texts = [one_line(text) for text in formatter.format_ticks(list(places))]
            if any(texts) and np.allclose(np.diff(places), 1):
                return dict(zip(map(float, places), texts, strict=True))
    return {}


def _called(place: float | None, names: dict[float, str]) -> Place:
    """The name of the place that a mark belongs to: marks that share one are drawn a little apart."""
    if place is None or not names:
        return place
    near = min(names, key=lambda known: abs(known - place))
    return names[near] if abs(near - place) <= 0.5 else place


# ---------------------------------------------------------------- as a file


def csv(figure: Figure, found: Sequence[Mark] | None = None) -> str:
    """The data of a figure as CSV, one row a mark; x and y are named by their axes where all panels share these."""
    found, columns = marks(figure) if found is None else found, [field.name for field in fields(Mark)]
    used = [name for name in columns if name in ("panel", "series", "mark", "x", "y") or any(
        getattr(mark, name) not in ("", None) for mark in found)]  # fmt: skip
    target = io.StringIO()
    writer = files.writer(target, lineterminator="\n")
    writer.writerow([_safe(_heading(figure, name)) for name in used])
    writer.writerows([_safe(getattr(mark, name)) for name in used] for mark in found)
    return target.getvalue()


def _heading(figure: Figure, name: str) -> str:
    words = {one_line(getattr(ax, f"get_{name}label")()) for ax in panels_of(figure)} if name in "xy" else set()
    return f"{name}: {words.pop()}" if len(words) == 1 and words != {""} else name


def _safe(value: Place) -> str:
    """A cell that no spreadsheet takes for a formula; numbers with eight digits."""
    if value is None or isinstance(value, float):
        return "" if value is None or not np.isfinite(value) else f"{value:.8g}"
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
