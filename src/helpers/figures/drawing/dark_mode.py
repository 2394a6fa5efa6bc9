"""Colours on a light page and on a dark one: how they contrast, what each becomes, and a drawer of SVG that uses these.

A figure is drawn once and in light colours; for the dark page matplotlib draws it again through `FigureCanvas`, whose
renderer exchanges every colour on its way to the file. The figure itself is not touched.
"""

import codecs
import colorsys
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib import cbook
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
from matplotlib.colors import to_rgb
from matplotlib.path import Path
from matplotlib.transforms import Bbox, Transform

GROUND = "#121212"  # of the theme's dark page
LINE, TEXT = 3.0, 4.5  # the contrasts that WCAG AA asks of graphics and of text
NEUTRAL = 0.2  # colours whose channels differ by less are inks, greys and whites
FAINT = 1.6  # contrast with white below which a neutral is a tint, a grid line or the page, and need not be seen on its own

Colour = Sequence[float] | str


# ---------------------------------------------------------------- contrast


def luminance(colour: Colour) -> float:
    """Relative luminance of a colour, from 0 (black) to 1 (white); WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one: Colour, other: Colour) -> float:
    """Contrast of two colours, from 1 to 21; WCAG 2.1."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def neutral(colour: Colour) -> bool:
    """Whether a colour is an ink, a grey or a white."""
    channels = to_rgb(colour)
    return max(channels) - min(channels) < NEUTRAL


# ---------------------------------------------------------------- from light to dark


def darkened(colour: Colour, least: float = LINE) -> tuple[float, float, float]:
    """What a colour of the light page becomes on the dark one: neutrals change sides, hues stay and are lightened to `least`."""
    rgb = to_rgb(colour)
    if not neutral(rgb):
        return _lightened(rgb, least)
    swapped = _swapped(rgb)
    return _lightened(swapped, least) if contrast(rgb, "white") >= FAINT else swapped


def _swapped(rgb: Sequence[float]) -> tuple[float, float, float]:
    """A neutral with its lightness turned round: white becomes the ground, black nearly white; its tinge stays."""
    hue, light, sheen = colorsys.rgb_to_hls(*rgb)
    ground = to_rgb(GROUND)[0]
    return colorsys.hls_to_rgb(hue, ground + (0.95 - ground) * (1 - light), 0.35 * sheen)


def turned_round(rgb: np.ndarray) -> np.ndarray:
    """Colours (..., 3) with their lightness turned round, between the ground and nearly white; hue and saturation stay.

    rgb = L + C h with L the lightness (HLS), C the chroma and h of the hue alone: so L and C are exchanged and h is kept.
    """
    high, low, ground = rgb.max(-1, keepdims=True), rgb.min(-1, keepdims=True), to_rgb(GROUND)[0]
    light, chroma = (high + low) / 2, high - low
    turned = ground + (0.95 - ground) * (1 - light)
    room = np.maximum(1 - np.abs(2 * light - 1), 1e-9)
    return np.clip(turned + (rgb - light) * (1 - np.abs(2 * turned - 1)) / room * (chroma > 0), 0, 1)


def _lightened(rgb: Sequence[float], least: float) -> tuple[float, float, float]:
    """The colour with as much white as it takes to stand out from the ground."""
    for share in np.linspace(0, 1, 51):
        found = tuple((1 - share) * c + share for c in rgb)
        if contrast(found, GROUND) >= least:
            return found
    return (1.0, 1.0, 1.0)


def _all_darkened(colours: Collection) -> np.ndarray:
    """The same for rows of red, green, blue and opacity."""
    rows = np.array(colours, float, copy=True).reshape(-1, 4) if len(colours) else np.empty((0, 4))
    for row in rows:
        row[:3] = darkened(tuple(row[:3]))
    return rows


# ---------------------------------------------------------------- drawing


class DarkRenderer(RendererSVG):
    """Draws as matplotlib's SVG renderer does, in the colours of a dark page.

    The cells of a heat map turn their lightness round, white becoming the ground, and what is drawn over them turns with them;
    text keeps its colour on a coloured label.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._cells: list[Bbox] = []
        self._pixels: list[tuple[Bbox, np.ndarray]] = []
        self._labels: list[Bbox] = []
        self._keep = False

    def _over(self, x: float, y: float, areas: Sequence[Bbox]) -> bool:
        return any(box.contains(x, y) for box in areas)

    def _read_on_cell(self, gc: GraphicsContextBase, x: float, y: float) -> GraphicsContextBase:
        """The context in white or black, whichever stands out more from the pixel there."""
        new = self._dark(gc, turned=True)
        for box, pixels in self._pixels:
            if box.contains(x, y):
                down, across = (np.array([y - box.y0, x - box.x0]) / [box.height, box.width] * pixels.shape[:2]).astype(int)
                cell = pixels[min(down, len(pixels) - 1), min(across, pixels.shape[1] - 1)]
                new.set_foreground(max("white", "black", key=lambda ink: contrast(ink, cell)))  # fmt: skip
        return new

    def _dark(self, gc: GraphicsContextBase, least: float = LINE, turned: bool = False) -> GraphicsContextBase:
        new = self.new_gc()
        new.copy_properties(gc)
        colour = gc.get_rgb()[:3]
        new.set_foreground((*(_swapped(colour) if turned else darkened(colour, least)), gc.get_rgb()[3]), isRGBA=True)
        if gc.get_hatch_color() is not None:
            new.set_hatch_color((*darkened(gc.get_hatch_color()), 1.0))
        return new

    def draw_path(self, gc, path, transform, rgbFace=None):
        """Draws a line or an area."""
        if not self._keep:
            turned = self._over(*_middle(path, transform), self._cells)
            if rgbFace is not None and not neutral(rgbFace[:3]) and (len(rgbFace) == 3 or rgbFace[3] == 1):
                self._labels.append(path.get_extents(transform))
            gc, rgbFace = self._dark(gc, turned=turned), _face(rgbFace)
        super().draw_path(gc, path, transform, rgbFace)

    def draw_markers(self, gc, marker_path, marker_trans, path, trans, rgbFace=None):
        """Draws one marker at every point."""
        super().draw_markers(self._dark(gc), marker_path, marker_trans, path, trans, _face(rgbFace))

    def draw_path_collection(self, gc, master_transform, paths, all_transforms, offsets, offset_trans, facecolors, edgecolors,
                             *rest, **options):  # fmt: skip
        """Draws many lines or areas at once."""
        if not self._keep:
            gc, facecolors, edgecolors = self._dark(gc), _all_darkened(facecolors), _all_darkened(edgecolors)
        before, self._keep = self._keep, True  # it may draw path by path, and no colour is to be exchanged twice
        super().draw_path_collection(
            gc, master_transform, paths, all_transforms, offsets, offset_trans, facecolors, edgecolors, *rest, **options
        )
        self._keep = before

    def draw_quad_mesh(self, gc, master_transform, width, height, coordinates, offsets, offset_trans, facecolors, *rest):
        """Draws the cells of a heat map, their lightness turned round."""
        self._cells.append(Path(np.asarray(coordinates).reshape(-1, 2)).get_extents(master_transform))
        before, self._keep = self._keep, True
        faces = np.array(facecolors, float, copy=True).reshape(-1, 4)
        faces[:, :3] = turned_round(faces[:, :3])
        super().draw_quad_mesh(gc, master_transform, width, height, coordinates, offsets, offset_trans, faces, *rest)
        self._keep = before

    def draw_image(self, gc, x, y, im, transform=None):
        """Draws the cells of a heat map that is an image, their lightness turned round; a cloud of dots as it is."""
        if im[..., 3].all():  # a cloud of dots that was made an image is see-through, and the page under it dark
            scale = 72 / self.image_dpi
            self._cells.append(Bbox.from_bounds(x, y, im.shape[1] * scale, im.shape[0] * scale))
            im = np.dstack([np.round(255 * turned_round(im[..., :3] / 255)).astype(np.uint8), im[..., 3]])
            self._pixels.append((self._cells[-1], im[..., :3] / 255))
        super().draw_image(gc, x, y, im, transform)

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        """Draws a line of text."""
        place = x + 1, self.height - y + 2
        if self._over(*place, self._cells):
            gc = self._read_on_cell(gc, *place)
        elif not self._over(*place, self._labels):
            gc = self._dark(gc, TEXT)
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


def _middle(path: Path, transform: Transform) -> tuple[float, float]:
    """The middle of what is drawn; no place for an empty path."""
    if not np.size(path.vertices):
        return float("nan"), float("nan")
    box = path.get_extents(transform)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def _face(colour: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if colour is None else (*darkened(colour[:3]), *colour[3:])


class FigureCanvas(FigureCanvasSVG):
    """A canvas that writes SVG for a dark page; a figure is saved with it by `backend="module://` and this module's name."""

    def print_svg(self, filename, *, bbox_inches_restore=None, metadata=None, **_):
        """Writes the figure as matplotlib's own canvas does, through the dark renderer."""
        with cbook.open_file_cm(filename, "w", encoding="utf-8") as file:
            text = file if cbook.file_requires_unicode(file) else codecs.getwriter("utf-8")(file)
            dpi, self.figure.dpi = self.figure.dpi, 72
            width, height = self.figure.get_size_inches()
            inner = DarkRenderer(width * 72, height * 72, text, image_dpi=dpi, metadata=metadata)
            renderer = MixedModeRenderer(self.figure, width, height, dpi, inner, bbox_inches_restore=bbox_inches_restore)
            self.figure.draw(renderer)
            renderer.finalize()
