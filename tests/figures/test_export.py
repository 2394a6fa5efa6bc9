"""Plates: what was drawn comes back as data and words; the dark drawing can be read, and the figure is left as it was."""

import base64
import csv as files
import io
import json
import re
from io import BytesIO
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from nbclient import NotebookClient

from helpers import console
from helpers.figures import models, projection
from helpers.figures.drawing import alt_text, dark_mode, export, marks, theme
from helpers.figures.drawing import layout as monitor_figures
from helpers.study import parameters

VALUES, LOW, HIGH = [0.25, 0.5, 0.625], [0.125, 0.375, 0.5], [0.5, 0.75, 0.6875]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _closed():
    theme.style()
    yield
    plt.close("all")


def rows(figure) -> list[dict[str, str]]:
    return list(files.DictReader(io.StringIO(marks.csv(figure))))


def dots(across: bool = False):
    figure, ax = plt.subplots(constrained_layout=True)
    table = pd.DataFrame({"value": VALUES, "low": LOW, "high": HIGH})
    theme.bars(ax, [0.1, 0.9, 2.1], table, "#0072b2", label="QLoRA", across=across)
    axis = ax.yaxis if across else ax.xaxis
    axis.set_ticks(range(3), ["none", "=1+1", "10 %"])
    ax.axhline(0.5, color="#8d99ae")  # a line without a name is no data
    ax.set(title="Refusals", ylabel="not refused")
    return figure


def heat():
    figure, ax = plt.subplots(constrained_layout=True)
    image = ax.imshow([[0.01, 0.9], [0.5, -0.2]], cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
    for (y, x), words in np.ndenumerate(np.array([["a", "b"], ["c", "d"]])):
        ax.text(x, y, words, color="white" if words == "b" else "#1b2a41")
    ax.set_xticks([0, 1], ["privacy", "toxicity"])
    ax.set_yticks([0, 1], ["nf4", "rtn-2"])
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax)
    return figure


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("across", [False, True])
def test_points_come_back_with_their_intervals_and_the_names_of_their_places(across):
    found = rows(dots(across))
    here, there = ("y", "x") if across else ("x", "y")
    names = {name[0]: name for name in found[0]}  # "y" is named by its axis
    assert [float(row[names[there]]) for row in found] == VALUES
    assert [float(row["low"]) for row in found] == LOW
    assert [float(row["high"]) for row in found] == HIGH
    assert [row[names[here]] for row in found] == ["none", "'=1+1", "10 %"]
    assert {row["along"] for row in found} == {there}
    assert {(row["panel"], row["series"], row["mark"]) for row in found} == {("Refusals", "QLoRA", "point")}


def test_a_heat_map_comes_back_by_row_and_column_with_what_is_written_in_it():
    found = [(row["y"], row["x"], float(row["value"]), row["written"]) for row in rows(heat())]
    assert found == [("nf4", "privacy", 0.01, "a"), ("nf4", "toxicity", 0.9, "b"), ("rtn-2", "privacy", 0.5, "c"),
                     ("rtn-2", "toxicity", -0.2, "d")]  # fmt: skip


@pytest.mark.parametrize("kind", ["bar", "stepfilled", "stairs"])
def test_a_histogram_comes_back_bin_by_bin(kind):
    figure, ax = plt.subplots()
    if kind == "stairs":
        ax.stairs([2, 1, 3], [0, 1, 2, 4], fill=True, label="scores")
    else:
        ax.hist([0.5, 0.5, 1.5, 2, 3, 3.5], bins=[0, 1, 2, 4], histtype=kind, label="scores")
    found = [(row["series"] if kind != "stepfilled" else "scores", *(float(row[name]) for name in ("x", "y", "low", "high")))
             for row in rows(figure)]  # fmt: skip
    assert found == [("scores", 0.5, 2, 0, 1), ("scores", 1.5, 1, 1, 2), ("scores", 3, 3, 2, 4)]


def test_dots_lines_bands_and_references_come_back_once_and_by_the_name_a_legend_gives():
    figure, ax = plt.subplots()
    ax.scatter([1, 2], [3, 4], label="cells")
    ax.errorbar([1, 2], [0.5, 0.75], yerr=0.25, color="#d55e00", fmt="D")
    ax.plot([1, 2], [0.5, 0.75], color="#d55e00")  # only joins the points
    ax.plot([5, 6], [7, 8], color="#009e73", label="loss")
    ax.axhspan(1, 2, alpha=0.2, label="chance")
    ax.axvline(9, linestyle="--", label="threshold")
    figure.legend([monitor_figures.legend_key("#d55e00", "D")], ["QLoRA"])
    found = [(row["series"], row["mark"], row["x"], row["y"], row["low"], row["high"]) for row in rows(figure)]
    assert sorted(found) == sorted([
        ("QLoRA", "point", "1", "0.5", "0.25", "0.75"), ("QLoRA", "point", "2", "0.75", "0.5", "1"),
        ("loss", "line", "5", "7", "", ""), ("loss", "line", "6", "8", "", ""), ("threshold", "reference", "9", "", "", ""),
        ("cells", "dot", "1", "3", "", ""), ("cells", "dot", "2", "4", "", ""), ("chance", "band", "", "", "1", "2"),
    ])  # fmt: skip


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula_and_numbers_stay_numbers(start):
    figure, ax = plt.subplots()
    ax.plot([-1.5], [-2.5], "o", label=f"{start}cmd|' /C calc'!A0")
    text = marks.csv(figure)
    (row,) = files.DictReader(io.StringIO(text))
    assert not row["series"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert (float(row["x"]), float(row["y"])) == (-1.5, -2.5)
    assert marks._safe(f"{start}x") == f"'{start}x"


def test_panels_of_a_grid_are_told_apart_and_names_are_borrowed_from_the_row():
    order = pd.Series(["one", "two"], index=["nf4", "rtn-2"])
    figure, axes = monitor_figures.row_panels(order, 2)
    for ax, title in zip(axes, ("left", "right"), strict=True):
        theme.bars(ax, [0, 1.2], pd.DataFrame({"value": [0.5, 0.25], "low": 0.0, "high": 1.0}), "#0072b2", across=True)
        ax.set_title(title)
    assert [(row["panel"], row["y"]) for row in rows(figure)] == [
        ("left", "nf4"), ("left", "rtn-2"), ("right", "nf4"), ("right", "rtn-2")]  # fmt: skip


# ---------------------------------------------------------------- words


def test_the_words_name_kind_title_axes_series_and_the_true_range():
    text = alt_text.alt(dots())
    assert text == ("Points with intervals: Refusals, 0.25 to 0.625. Across: none, =1+1, 10 %; upwards: not refused. "
                    "Series: QLoRA.")  # fmt: skip
    assert "A heat map: values from -0.2 to 0.9" in alt_text.alt(heat())


def test_the_words_stay_short_however_much_is_drawn():
    figure, axes = plt.subplots(1, 8)
    for i, ax in enumerate(axes):
        for j in range(9):
            ax.plot([0, 1], [i, j], label=f"a rather long name of a series, number {i} {j}")
        ax.set(title=f"a rather long title of panel {i}", xlabel=f"what is drawn across panel {i}")
    text = alt_text.alt(figure)
    assert len(text) <= alt_text.LENGTH
    assert "; and 68 more." in text


def test_a_figure_that_only_says_something_is_that_text():
    assert alt_text.alt(monitor_figures.unmeasured("a dose")) == "A figure of words: This run did not measure a dose."


# ---------------------------------------------------------------- the dark drawing


def colours(drawing: str, kinds: tuple[str, ...]) -> set[str]:
    """Colours of strokes or texts in a drawing, without those in definitions that are only clipped by."""
    found = set()
    for node in ElementTree.fromstring(drawing).iter():
        style = node.get("style") or ""
        wanted = "fill" if node.tag == f"{SVG}text" else "stroke"
        if node.tag.removeprefix(SVG) in kinds:
            found |= set(re.findall(rf"(?:^|[ ;]){wanted}: (#[0-9a-f]{{6}})", style))
            if node.tag == f"{SVG}text" and "fill" not in style:
                found.add("#000000")  # what a text without a colour is drawn in
    return found


def full():
    figure = dots()
    ax = figure.axes[0]
    for i, colour in enumerate([*theme.PALETTE.values(), "black", "#440154"]):
        ax.plot([0, 1], [i, i], color=colour, label=f"line {i}")
    ax.text(0.5, 3, "hued words", color="#0072b2")
    ax.legend()
    return figure


def test_on_the_dark_page_every_text_and_line_stands_out_and_on_the_light_one_ink_is_dark():
    drawing = export.dark(full())
    texts, lines = colours(drawing, ("text",)), colours(drawing, ("path", "use", "line"))
    assert len(texts) >= 2
    assert len(lines) >= 8
    assert min(dark_mode.contrast(colour, dark_mode.GROUND) for colour in texts) >= dark_mode.TEXT
    grid = to_hex(dark_mode.darkened("#e4e7ec"))
    assert min(dark_mode.contrast(colour, dark_mode.GROUND) for colour in lines - {grid}) >= dark_mode.LINE - 0.02
    assert dark_mode.contrast(grid, dark_mode.GROUND) < 2  # the grid stays faint
    assert (
        max(dark_mode.contrast(colour, dark_mode.GROUND) for colour in colours(export.light(full()), ("text",))) < dark_mode.TEXT
    )


def test_a_dark_drawing_has_no_ground_of_its_own_and_keeps_its_hues():
    drawing = export.dark(dots())
    assert "#ffffff" not in drawing
    assert "#ffffff" in export.light(dots())
    assert to_hex(dark_mode.darkened("#e69f00")) == "#e69f00"
    hue = np.array(to_rgb("#440154")) - np.array(dark_mode.darkened("#440154"))
    assert (hue < 0).all()  # lightened, not turned
    assert dark_mode.contrast(dark_mode.darkened("#440154"), dark_mode.GROUND) >= dark_mode.LINE


def ink_of(style: str) -> str:
    """The colour of a text; the drawer leaves black out."""
    return next(iter(re.findall(r"fill: (#[0-9a-f]{6})", style)), "#000000")


def test_a_heat_map_turns_its_lightness_round_and_the_text_over_it_can_be_read():
    light, dark = export.light(heat()), export.dark(heat())
    (first, *_), (second, *_) = (
        [plt.imread(BytesIO(base64.b64decode(found)), format="png") for found in re.findall(r"image/png;base64,([^\"]+)", text)]
        for text in (light, dark)
    )
    bright, dim = (np.array([dark_mode.luminance(pixel[:3]) for pixel in image.reshape(-1, image.shape[-1])[::97]])
                   for image in (first, second))  # fmt: skip
    assert bright.max() > 0.8 > 0.5 > dim[bright.argmax()]  # no white slab on a dark page
    assert np.argmin(bright) != np.argmin(dim)
    words = {text.text: text.get("style") for text in ElementTree.fromstring(dark).iter(f"{SVG}text")}
    assert "#1b2a41" not in "".join(words[name] for name in ("a", "c", "d", "privacy"))
    inks = {ink_of(words[name]) for name in "abcd"}
    assert len(inks) == 2  # light on dark cells, dark on light ones


@pytest.mark.parametrize("value", np.linspace(-1, 1, 21))
def test_a_number_in_a_cell_stands_out_on_the_dark_page(value):
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.imshow([[value]], cmap="PuOr_r", vmin=-1, vmax=1)
    ax.text(0, 0, "here", color="white" if abs(value) > 0.72 else theme.PALETTE["ink"])
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    drawing = export.dark(figure)
    (image,) = re.findall(r"image/png;base64,([^\"]+)", drawing)
    pixel = plt.imread(BytesIO(base64.b64decode(image)), format="png")[5, 5, :3]
    (text,) = [node for node in ElementTree.fromstring(drawing).iter(f"{SVG}text") if node.text == "here"]
    assert dark_mode.contrast(ink_of(text.get("style")), pixel) >= dark_mode.TEXT


def test_turning_round_twice_gives_grey_back_and_keeps_the_hue():
    rng = np.random.default_rng(0)
    colours = rng.random((200, 3))
    turned = dark_mode.turned_round(colours)
    assert turned.min() >= 0
    assert turned.max() <= 1
    assert (np.argmax(colours, axis=1) == np.argmax(turned, axis=1)).all()
    white, black = dark_mode.turned_round(np.array([[1.0, 1, 1], [0, 0, 0]]))
    assert white == pytest.approx(to_rgb(dark_mode.GROUND), abs=0.01)
    assert black == pytest.approx([0.95] * 3)


def test_white_words_on_a_coloured_label_stay_white():
    figure, ax = plt.subplots()
    ax.text(0.5, 0.5, "M1", color="white", bbox={"facecolor": "#007a59"})
    ax.text(0.1, 0.1, "plain", color="#1b2a41", bbox={"facecolor": "white"})
    words = {text.text: text.get("style") for text in ElementTree.fromstring(export.dark(figure)).iter(f"{SVG}text")}
    assert "#ffffff" in words["M1"]
    assert "#1b2a41" not in words["plain"]


# ---------------------------------------------------------------- drawings


def test_the_same_figure_gives_the_same_bytes_without_a_date_or_an_address():
    both = [(export.light(figure), export.dark(figure)) for figure in (dots(), dots())]
    assert both[0] == both[1]
    figure = dots()
    assert export.light(figure) == export.light(figure)
    for drawing in both[0]:
        assert set(re.findall(r"https?://[^\"' ]+", drawing)) <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
        assert "Verdana" in drawing
        assert "date" not in drawing


def test_the_figure_is_left_as_it_was():
    figure = full()
    before = [(type(part), getattr(part, name)()) for part in figure.findobj() for name in
              ("get_color", "get_facecolor", "get_edgecolor") if hasattr(part, name)]  # fmt: skip
    layout, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    export.bundle(figure)
    after = [(type(part), getattr(part, name)()) for part in figure.findobj() for name in
             ("get_color", "get_facecolor", "get_edgecolor") if hasattr(part, name)]  # fmt: skip
    assert str(before) == str(after)
    assert (figure.get_layout_engine(), figure.canvas, figure.dpi) == (layout, canvas, dpi)


def test_thousands_of_dots_stay_small_where_they_are_an_image_and_are_all_in_the_data():
    figure, ax = plt.subplots()
    x = np.linspace(0, 1, 4000)
    ax.scatter(x, x**2, rasterized=True, label="cells")
    ax.axhline(0.5, color="#1b2a41", label="half")
    assert len(export.light(figure)) < 300_000
    assert len(rows(figure)) == 4001
    assert "#1b2a41" not in export.dark(figure)  # an image that can be seen through is no ground of its own


# ---------------------------------------------------------------- the palette


def deuteranope(colour: str) -> np.ndarray:
    """A colour as without the green cones (Viénot, Brettel and Mollon 1999), in linear light."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    return np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]) @ linear


def test_the_palette_can_be_told_apart_by_a_deuteranope_and_arms_compared_with_each_other_in_grey():
    seen = {name: deuteranope(colour) for name, colour in theme.PALETTE.items()}
    names = list(seen)
    gaps = [np.abs(seen[a] - seen[b]).max() for i, a in enumerate(names) for b in names[i + 1 :]]
    assert min(gaps) > 0.04
    greys = sorted(dark_mode.luminance(theme.PALETTE[name]) for name in ("ink", "aligned", "lora", "quantized"))
    assert min(np.diff(greys)) > 0.05
    markers = [marker for _, marker, _ in models.ARMS.values()]
    assert len(set(markers)) == len(markers)  # what grey does not tell, the shape does


def test_red_and_green_of_one_lightness_would_be_caught():
    red, green = deuteranope("#b05a00"), deuteranope("#6f7a00")
    assert np.abs(red - green).max() < 0.02


# ---------------------------------------------------------------- notebooks and pages


CELLS = ["from helpers.figures.drawing import theme\ntheme.style()", "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\n"
         "ax.errorbar([1], [0.5], yerr=[[0.25], [0.125]], fmt='o', label='one');"]  # fmt: skip


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


def test_a_cell_of_a_notebook_ends_with_the_whole_bundle(executed):
    nbformat.validate(executed)
    (output,) = executed.cells[1].outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {export.IMAGE, export.LIGHT, export.DARK, export.DATA, export.WORDS}
    assert output.data[export.WORDS] == "Points with intervals: values from 0.5 to 0.5. Series: one."
    assert "0.25" in output.data[export.DATA]
    image = base64.b64decode(output.data[export.IMAGE])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert image[25] == 3, "a palette: the inline backend's own PNG weighs three times as much"


def test_a_staged_chapter_shows_both_images_and_offers_the_data(executed, tmp_path):
    path = tmp_path / "x.ipynb"
    nbformat.write(executed, path)  # which splits texts into lines
    kept = json.loads(console.notebook_text(path, tmp_path))
    old = {"output_type": "display_data", "data": {"image/png": "aaaa", "text/plain": "<Figure>"}, "metadata": {}}
    kept["cells"][0]["outputs"], kept["cells"] = [old], [*kept["cells"], kept["cells"][1]]
    folder = tmp_path / "book" / "_static" / "figures"
    staged = export.staged_chapter(kept, "05_staleness", folder)
    assert staged["cells"][0]["outputs"] == [old]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"05_staleness-{k}{end}" for k in (1, 2) for end in (".svg", "-dark.svg", ".csv"))  # fmt: skip
    (output,) = staged["cells"][2]["outputs"]
    html = output["data"]["text/html"].replace(" download>", ' download="">').replace('async">', 'async"/>')
    page = ElementTree.fromstring(html)
    light, dark = page.findall(".//img")
    assert (light.get("class"), dark.get("class")) == ("only-light plain", "only-dark plain")
    assert light.get("src") == "../_static/figures/05_staleness-2.svg"
    assert light.get("alt") == "Points with intervals: values from 0.5 to 0.5. Series: one."
    assert int(light.get("width")) > int(light.get("height")) > 100
    assert [link.get("href") for link in page.findall(".//a")] == [
        "../_static/figures/05_staleness-2.csv", "../_static/figures/05_staleness-2.svg"]  # fmt: skip
    for file in folder.glob("*.svg"):
        ElementTree.fromstring(file.read_text(encoding="utf-8"))
    assert page.find("figcaption") is not None
    assert [child.tag for child in page] == ["div", "figcaption"]  # the theme hides a caption beside an image it hides


def test_a_figure_in_light_form_is_one_drawing_for_every_page(tmp_path, monkeypatch):
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], "o", label="one")
    whole = export.bundle(figure)
    monkeypatch.setenv(parameters.FIGURE_FORMS, "light")
    data = export.bundle(figure)
    assert data == {kind: whole[kind] for kind in (export.LIGHT, export.DATA, export.WORDS)}
    (output,) = export.staged([{"data": data, "output_type": "display_data"}], "x", tmp_path)
    assert output["data"]["text/html"].count("<img ") == 1
    assert 'class="plain"' in output["data"]["text/html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.csv", "x-1.svg"]


def test_laying_out_alone_and_one_box_draw_what_whole_draws_and_savefigs_own_box_draw(monkeypatch):
    """A layout that is run without a draw, and a margin found once for both drawings, give the same drawings, dot for dot."""

    def figure():
        made, axes = plt.subplots(2, 2, constrained_layout=True, figsize=(7, 5))
        for k, ax in enumerate(axes.flat):
            ax.plot([0, 10**k], [0, 1], "o-", label=f"a long name {k}")
            ax.set(title="A title\nof two lines", xlabel="across", ylabel="upwards " * k)
        axes[0, 0].imshow([[0, 1], [2, 3]])
        made.legend(loc="outside lower center", ncols=2)
        return made

    def plain(made, **options) -> bytes:
        target = BytesIO()
        made.savefig(target, bbox_inches="tight", metadata=export.PLAIN if options["format"] == "svg" else None, **options)
        return target.getvalue()

    one, other = figure(), figure()
    for _ in range(5):
        other.draw_without_rendering()
    other.set_layout_engine("none")
    data = export.bundle(one)
    assert np.array_equal(*(plt.imread(BytesIO(image), format="png") for image in (
        base64.b64decode(data[export.IMAGE]), export.few_colours(plain(other, format="png", dpi=other.dpi)))))  # fmt: skip
    with mpl.rc_context(export.DRAWING):
        size = re.search(r'viewBox="([^"]+)"', plain(other, format="svg").decode())[1]
    drawn = re.search(r'viewBox="([^"]+)"', data[export.LIGHT])[1], re.search(r'viewBox="([^"]+)"', data[export.DARK])[1]
    assert np.allclose([[float(n) for n in text.split()] for text in drawn], [float(n) for n in size.split()], atol=0.006)


def test_a_picture_in_few_colours_looks_the_same_and_weighs_half():
    figure, ax = plt.subplots(dpi=200)
    ax.imshow(np.arange(40).reshape(5, 8), cmap="PuOr_r")
    for k in range(8):
        ax.plot([k, 7 - k], [0, 4], "o-", color=f"C{k}", label=f"a name {k}")
    ax.legend()
    target = BytesIO()
    figure.savefig(target, format="png")
    few = export.few_colours(target.getvalue())
    before, after = (plt.imread(BytesIO(image), format="png")[..., :3] for image in (target.getvalue(), few))
    assert before.shape == after.shape
    apart = np.abs(before - after)
    assert apart.mean() < 0.005
    assert np.quantile(apart, 0.999) < 0.15
    assert len(few) < 0.5 * len(target.getvalue())


def test_words_of_a_figure_cannot_leave_their_attribute(tmp_path):
    figure, ax = plt.subplots()
    ax.plot([0], [0], "o", label='"><script>alert(1)</script>')
    (output,) = export.staged([{"data": export.bundle(figure), "output_type": "display_data"}], "x", tmp_path)
    assert "<script" not in output["data"]["text/html"]


def test_without_a_notebook_nothing_is_registered_and_an_empty_figure_has_no_bundle():
    export.register()
    assert export.bundle(plt.figure()) == {}


def test_the_outcomes_of_a_band_and_its_line_have_the_models_name():
    figure, ax = plt.subplots()
    projection.reference(ax, pd.DataFrame({"value": [0.5], "low": [0.25], "high": [0.75]}))
    assert [(row["series"], row["mark"]) for row in rows(figure)] == [("aligned model", "reference"), ("aligned model", "band")]
    assert mpl.rcParams["font.sans-serif"] == export.FONTS
