"""Plates: a figure as it goes to the page. Two drawings, for a light and a dark page, its data as CSV, and itself in words."""

import base64
import html
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.transforms import Bbox
from matplotlib_inline.config import InlineBackend
from PIL import Image

from helpers.figures.drawing.alt_text import alt
from helpers.figures.drawing.dark_mode import FigureCanvas
from helpers.figures.drawing.marks import csv, marks
from helpers.study.parameters import FIGURE_FORMS

LIGHT, DARK, DATA, WORDS, IMAGE = (
    "image/svg+xml", "application/x-after-the-update.dark+svg", "text/csv", "text/plain", "image/png"
)  # fmt: skip
FONTS = ["DejaVu Sans", "Verdana"]  # the second is as wide as the first, and stands on most readers' machines
DRAWING = {"svg.fonttype": "none", "svg.hashsalt": "after-the-update", "font.sans-serif": FONTS}
PLAIN = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no date and no address: the same figure, the same bytes
TAG, FRACTION = re.compile(r"<[^>]+>"), re.compile(r"-?\d+\.\d{3,}")
COLOURS = 128  # of a PNG
PIXELS = 96 / 72  # of a screen, in a point


# ---------------------------------------------------------------- one figure


def light(figure: Figure) -> str:
    """The figure as SVG for a light page."""
    with _still(figure):
        return _svg(figure, _box(figure, vector=True), facecolor="white")


def dark(figure: Figure) -> str:
    """The figure as SVG for a dark page: neutrals swapped, hues kept and lightened where they would not be seen."""
    with _still(figure):
        return _dark(figure, _box(figure, vector=True))


def bundle(figure: Figure) -> dict[str, str]:
    """The figure by kind of content: for Jupyter, for both pages, as data and in words. Nothing for a figure without axes.

    Where the runner asked for figures in light form, the image and the drawing for a dark page are spared.
    """
    if not figure.axes:
        return {}
    with _still(figure):
        found, box = marks(figure), _box(figure, vector=True)
        plain = {LIGHT: _svg(figure, box, facecolor="white"), DATA: csv(figure, found), WORDS: alt(figure, found)}
        return plain if os.environ.get(FIGURE_FORMS) == "light" else {IMAGE: _image_of(figure), DARK: _dark(figure, box), **plain}


@contextmanager
def _still(figure: Figure, most: int = 5) -> Iterator[None]:
    """Lays the figure out until nothing moves any more, and holds it there: a layout starts from what the last one left."""
    layout, before = figure.get_layout_engine(), np.empty(0)
    if isinstance(layout, PlaceHolderLayoutEngine | None):
        yield
        return
    for _ in range(most):
        layout.execute(figure)  # a whole draw would do the same and measure every text again
        now = np.array([ax.get_position().bounds for ax in figure.axes])
        if now.shape == before.shape and np.allclose(now, before, rtol=0, atol=1e-5):
            break
        before = now
    with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # with "none", savefig would draw once more for a layout that there is not
    try:
        yield
    finally:
        figure.set_layout_engine(layout)


def _box(figure: Figure, vector: bool) -> Bbox:
    """What is drawn in inches, with savefig's margin: found once for both drawings, and without the draw that savefig adds.

    vector: as measured for SVG, where a text is a little wider or narrower than in dots.
    """
    width, height = figure.get_size_inches()
    before, dpi = figure.dpi, 72 if vector else figure.dpi
    size = width * dpi, height * dpi
    try:
        figure.dpi = dpi
        renderer = RendererSVG(*size, StringIO()) if vector else RendererAgg(*size, dpi)
        return figure.get_tightbbox(renderer).padded(mpl.rcParams["savefig.pad_inches"])
    finally:
        figure.dpi = before


def _image_of(figure: Figure) -> str:
    target = BytesIO()
    figure.savefig(target, format="png", dpi=figure.dpi, bbox_inches=_box(figure, vector=False))
    return base64.b64encode(few_colours(target.getvalue())).decode("ascii")


def few_colours(image: bytes) -> bytes:
    """The PNG in a palette of its own, a third of the bytes: a drawing has few colours, and shades of them along its edges."""
    found = BytesIO()
    Image.open(BytesIO(image)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    return found.getvalue()


def _dark(figure: Figure, box: Bbox) -> str:
    return _svg(figure, box, backend=f"module://{FigureCanvas.__module__}", transparent=True)


def _svg(figure: Figure, box: Bbox, **options) -> str:
    target = BytesIO()
    with mpl.rc_context(DRAWING):
        figure.savefig(target, format="svg", bbox_inches=box, metadata=PLAIN, **options)
    text = target.getvalue().decode("utf-8")
    return TAG.sub(_short, re.sub(r"\n\s+", "\n", text[text.index("<svg") :]))


def _short(tag: re.Match) -> str:
    """A tag with its lengths to a hundredth of a point: a third less to send, and nothing that could be seen."""
    return FRACTION.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag[0])


def register() -> None:
    """From now on a notebook shows a figure with all that `bundle` holds; without a notebook nothing happens."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found else None
    if shell:
        shell.display_formatter.mimebundle_formatter.for_type(Figure, bundle)
        InlineBackend.instance(parent=shell).figure_formats = set()  # else its own PNG, whole, takes the place of ours


# ---------------------------------------------------------------- on the page


def staged(outputs: Sequence[Mapping], chapter: str, folder: Path, first: int = 1) -> list[dict]:
    """The outputs with each bundled figure as HTML, its files in `folder` as `<chapter>-<k>...`, k from `first`; others stay."""
    found = []
    for output in outputs:
        data = {kind: "".join(part) if isinstance(part, list) else part for kind, part in output.get("data", {}).items()}
        if {LIGHT, DATA, WORDS} <= set(data):
            output = {**output, "data": {"text/html": _files(data, f"{chapter}-{first}", folder)}, "metadata": {}}
            first += 1
        found.append(dict(output))
    return found


def staged_chapter(notebook: Mapping, chapter: str, folder: Path) -> dict:
    """An executed chapter with `staged` outputs, its figures numbered through."""
    cells, first = [], 1
    for cell in notebook["cells"]:
        if "outputs" in cell:
            outputs = staged(cell["outputs"], chapter, folder, first)
            first += sum(old.get("data") != new.get("data") for old, new in zip(cell["outputs"], outputs, strict=True))
            cell = {**cell, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _files(data: Mapping[str, str], name: str, folder: Path) -> str:
    """Writes a figure's files; its HTML. A figure in light form shows its one drawing on every page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = [(".svg", LIGHT, "only-light "), ("-dark.svg", DARK, "only-dark ")] if DARK in data else [(".svg", LIGHT, "")]
    for end, kind in (*((end, kind) for end, kind, _ in drawings), (".csv", DATA)):
        (folder / f"{name}{end}").write_text(data[kind], encoding="utf-8", newline="")
    place, words = f"../_static/{folder.name}/{name}", html.escape(data[WORDS])
    images = "".join(_image(f"{place}{end}", data[kind], words, side) for end, kind, side in drawings)
    links = f'<a href="{place}.csv" download>Data (CSV)</a> <a href="{place}.svg" download>SVG</a>'
    # the images have a box of their own: the theme hides a caption that stands beside an image it hides
    box = f'<div class="plate-images" role="group" aria-label="Figure" tabindex="0">{images}</div>'
    return f'<figure class="plate">{box}<figcaption>{links}</figcaption></figure>'


def _image(source: str, drawing: str, words: str, side: str) -> str:
    """One of the images with its size on the screen, so that the page does not jump when it comes."""
    width, height = (round(PIXELS * float(size)) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', drawing[:400])[:2])
    size = f'width="{width}" height="{height}"'
    return f'<img class="{side}plain" src="{source}" alt="{words}" {size} loading="lazy" decoding="async">'
