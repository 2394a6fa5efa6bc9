"""The look of a report's page: its style sheet, and its small drawings as inline SVG. No script, no font, no picture file.

Every colour is a variable of `:root`, light and dark, so that a test can compute each contrast.
"""

import math
from collections.abc import Mapping, Sequence

from helpers.revalidation.report import wording

LIGHT = {
    "page": "#f5f7fa", "card": "#ffffff", "ink": "#1b2a41", "muted": "#55617a", "line": "#d5dbe6", "link": "#1f56a8",
    "mark": "#5c6880", "fine": "#0a6b45", "fine-bg": "#e4f5ec", "stale": "#a3201c", "stale-bg": "#fdeceb",
    "unsure": "#7d4e00", "unsure-bg": "#fdf2dc", "same": "#2f4f86", "same-bg": "#e8eefb",
    "unfit": "#7b2a6d", "unfit-bg": "#faeaf6",
}  # fmt: skip
DARK = {
    "page": "#0e121a", "card": "#161c28", "ink": "#e6eaf2", "muted": "#a5b0c5", "line": "#323c50", "link": "#8fb8ff",
    "mark": "#97a3ba", "fine": "#6fdca8", "fine-bg": "#12302a", "stale": "#ff9d94", "stale-bg": "#3b1a1c",
    "unsure": "#f3c565", "unsure-bg": "#352a12", "same": "#a9c4ff", "same-bg": "#1c2946",
    "unfit": "#f0a6dd", "unfit-bg": "#371a31",
}  # fmt: skip
CLASSES = {
    "fine": "fine",
    "stale": "stale",
    "unfit": "unfit",
    "inconclusive": "unsure",
    "no update": "same",
}  # of states; colour never stands alone

RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
 "Liberation Sans",sans-serif; font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:20px 24px 40px}
h1{font-size:1.5rem;line-height:1.3;margin:.1em 0 .25em}
h2{font-size:1.02rem;margin:0 0 .6em}
h3{font-size:.95rem;margin:1.1em 0 .4em}
p{margin:.25em 0}
a{color:var(--link)}
section,details{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px;margin:0 0 12px}
.top{color:var(--muted);font-size:.85rem;margin:0 0 10px;display:flex;flex-wrap:wrap;gap:2px 16px;justify-content:space-between}
.verdict{border-left:8px solid;padding:14px 20px}
.verdict h1,.verdict p{color:var(--ink)}
.fine{color:var(--fine)}.stale{color:var(--stale)}.unsure{color:var(--unsure)}.same{color:var(--same)}.unfit{color:var(--unfit)}
.tag{display:inline-block;border:1px solid;border-radius:6px;padding:1px 9px;font-weight:700;font-size:.82rem;white-space:nowrap}
.tag.fine,.verdict.fine{background:var(--fine-bg)}.tag.stale,.verdict.stale{background:var(--stale-bg)}
.tag.unsure,.verdict.unsure{background:var(--unsure-bg)}.tag.same,.verdict.same{background:var(--same-bg)}
.tag.unfit,.verdict.unfit{background:var(--unfit-bg)}
.verdict .tag{font-size:1rem;background:var(--card)}
.note{color:var(--muted);font-size:.86rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(245px,1fr));gap:8px 22px;margin:0}
.grid dt{color:var(--muted);font-size:.78rem}
.grid dd{margin:0;line-height:1.35}
code{font:.8rem ui-monospace,"Liberation Mono",monospace;color:var(--muted);white-space:nowrap}
.mon{list-style:none;margin:0;padding:0}
.mon>li{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,690px);gap:4px 20px;
 padding:9px 0;border-top:1px solid var(--line);align-items:center}
.mon b.name{font-weight:600;display:inline-block;max-width:100%}
.three{display:grid;grid-template-columns:minmax(0,1fr) 210px;gap:0 14px;align-items:center}
.three table{width:100%;table-layout:fixed}
.three td,.three th{border:0;padding:0 8px 0 0;line-height:22px;height:22px;font-weight:400;
 text-align:left;font-size:.86rem;white-space:nowrap}
.three th{color:var(--muted);width:4.4em}
.three td:nth-child(2){width:8.8em}.three td:last-child{width:7.2em;padding:0}
svg{display:block;max-width:100%;overflow:visible}
.iv{width:210px;height:auto}
.z{stroke:var(--mark);stroke-width:1}.g{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 2.5}
.i{stroke:currentColor;stroke-width:2.4;fill:none}.d{fill:currentColor;stroke:var(--card);stroke-width:1}
.s{fill:currentColor;opacity:.2}
.bar{fill:var(--same)}.ax{stroke:var(--mark);stroke-width:1}
svg text{font:11px system-ui,"Liberation Sans",sans-serif;fill:var(--muted)}
.key{display:flex;flex-wrap:wrap;gap:2px 18px;align-items:center;margin:0 0 8px}
.key svg{display:inline-block;vertical-align:-5px;margin-right:5px}
ol.do{margin:0;padding-left:1.3em}ol.do li{margin:.2em 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:12px}
.pair section{margin:0}.pair{margin-bottom:12px}
ul.ok{list-style:none;margin:.3em 0 0;padding:0;font-size:.9rem}ul.ok li{margin:.2em 0}
summary{cursor:pointer;font-weight:600}
summary:focus-visible,.wide:focus-visible,a:focus-visible{outline:2px solid var(--link);outline-offset:2px}
details .wide{margin-top:10px}
.mon+details{margin:8px 0 0;padding:8px 12px}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem}
.wide table{min-width:min(100%,600px)}
.wide td,.wide th{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
.wide thead th{color:var(--muted);font-weight:600;white-space:nowrap}
.wide tbody th{font-weight:400;min-width:11em}
.wide td{white-space:nowrap}.wide td.say{white-space:normal;min-width:14em}
@media(max-width:900px){.mon>li{grid-template-columns:minmax(0,1fr)}}
@media(max-width:600px){
 main{padding:12px 10px 28px}section,details{padding:12px}.verdict{padding:12px 14px}h1{font-size:1.2rem}
 .grid{grid-template-columns:1fr}.grid div{display:grid;grid-template-columns:8.5em minmax(0,1fr);gap:8px}
 .three{grid-template-columns:minmax(0,1fr)}.three td,.three th{font-size:.8rem;padding-right:5px}
 .three th{width:4.1em}.three td:nth-child(2){width:8.6em}.three td:last-child{width:1.2em}
 .word{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
 .iv{margin:3px 0 2px}.pair{grid-template-columns:1fr}
}
@media print{
 body{background:none;font-size:11px}main{max-width:none;padding:0}section,details,.mon>li{break-inside:avoid-page}
 details{break-inside:auto}details::details-content{content-visibility:visible;height:auto}
 .wide{overflow:visible}.wide td{white-space:normal}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""


def style() -> str:
    """The whole style sheet; dark only on a screen, so that paper stays white."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in colours.items()) for colours in (LIGHT, DARK))
    roots = f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return roots + RULES


# ---------------------------------------------------------------- drawings

WIDTH, ROW = 210, 22  # of an interval's drawing, in units that are pixels at full size
LEAST, MOST = -2.0, 4.0  # of the scale, in margins
ANSWERS = {"worse": ("stale", "✗"), "preserved": ("fine", "✓"), "inconclusive": ("unsure", "?")}  # colour and symbol


def _x(margins: float) -> float:
    """The place of a change on the scale; what lies beyond it is drawn at its end, with an arrow."""
    return 8 + (min(max(margins, LEAST), MOST) - LEAST) / (MOST - LEAST) * (WIDTH - 16)


def intervals(tests: Sequence[Mapping]) -> str:
    """One row a test: its interval in units of its margin, worse to the right; the side that is claimed is shaded.

    The full line is no change, the dashed one the margin; the words and numbers stand beside it, so a reader aloud may skip it.
    """
    height = ROW * len(tests)
    lines = f'<path class="z" d="M{_x(0):.1f} 0V{height}"/><path class="g" d="M{_x(1):.1f} 0V{height}"/>'
    rows = "".join(_interval(test, ROW * i) for i, test in enumerate(tests))
    return f'<svg class="iv" viewBox="0 0 {WIDTH} {height}" aria-hidden="true">{rows}{lines}{_dots(tests)}</svg>'


def _interval(test: Mapping, top: int) -> str:
    harm, answer = wording.harm_of_test(test), test["answer"]
    if harm is None:
        return ""
    _, low, high = harm
    first, last = {"worse": (1, MOST), "preserved": (LEAST, 1), "inconclusive": (1, 1)}[answer]
    shade = f'<rect class="s" x="{_x(first):.1f}" y="{top + 2}" width="{_x(last) - _x(first):.1f}" height="{ROW - 4}"/>' * (
        last > first
    )
    return f'<g class="{ANSWERS[answer][0]}">{shade}<path class="i" d="{_bar(low, high, top + ROW // 2)}"/></g>'


def _bar(low: float, high: float, y: int) -> str:
    """The path of an interval: a bar, with an arrow at an end that lies beyond the scale."""
    left, right = _x(low), _x(high)
    arrows = f"M{left + 4:.1f} {y - 4}L{left:.1f} {y}L{left + 4:.1f} {y + 4}" * (low < LEAST)
    arrows += f"M{right - 4:.1f} {y - 4}L{right:.1f} {y}L{right - 4:.1f} {y + 4}" * (high > MOST)
    return f"M{left:.1f} {y}H{right:.1f}{arrows}"


def _dots(tests: Sequence[Mapping]) -> str:
    """The values, above the lines; one beyond the scale has none, its arrow says so."""
    found = [(test["answer"], wording.harm_of_test(test), ROW * i + ROW // 2) for i, test in enumerate(tests)]
    return "".join(
        f'<g class="{ANSWERS[answer][0]}"><circle class="d" cx="{_x(harm[0]):.1f}" cy="{y}" r="4"/></g>'
        for answer, harm, y in found
        if harm is not None and LEAST <= harm[0] <= MOST
    )


KEY = (
    '<p class="key note"><span><svg width="12" height="18" aria-hidden="true"><path class="z" d="M6 0V18"/></svg>no change</span>'
    '<span><svg width="12" height="18" aria-hidden="true"><path class="g" d="M6 0V18"/></svg>margin, worse to its right</span>'
    '<span class="stale"><svg width="26" height="18" aria-hidden="true"><rect class="s" width="26" height="18"/></svg>'
    "shown worse</span>"
    '<span class="fine"><svg width="26" height="18" aria-hidden="true"><rect class="s" width="26" height="18"/></svg>'
    "shown to stay within the margin</span><span>bars: 90&nbsp;% intervals, each in units of its own margin</span></p>"
)


def draw_layers(rows: Sequence[Mapping]) -> str:
    """How far each layer's states moved, as bars over the layers; empty where nothing was measured."""
    found = [(row["layer"], row["relative_change"]) for row in rows if row["relative_change"] is not None]
    top = max((value for _, value in found), default=0.0)
    if not found or top <= 0:
        return ""
    width, height, left = 640, 120, 46
    step = (width - left) / len(found)
    bars = "".join(
        f'<rect x="{left + i * step + step * 0.1:.1f}" y="{height * (1 - max(value, 0) / top):.1f}" '
        f'width="{step * 0.8:.2f}" height="{height * max(value, 0) / top:.1f}"/>'
        for i, (_, value) in enumerate(found)
    )
    every = math.ceil(len(found) / 16)
    ticks = "".join(
        f'<text x="{left + (i + 0.5) * step:.1f}" y="{height + 15}" text-anchor="middle">{layer}</text>'
        for i, (layer, _) in enumerate(found)
        if i % every == 0
    )
    largest = max(found, key=lambda pair: pair[1])
    said = f"Relative change of the states by layer; the largest is {wording.number(top)} in layer {largest[0]}"
    return (
        f'<svg viewBox="0 -8 {width} {height + 44}" width="{width}" role="img" aria-label="{said}"><g class="bar">{bars}</g>'
        f'<path class="ax" d="M{left} 0V{height}H{width}" fill="none"/>{ticks}'
        f'<text x="{left - 6}" y="4" text-anchor="end">{wording.number(top)}</text>'
        f'<text x="{left - 6}" y="{height}" text-anchor="end">0</text>'
        f'<text x="{(left + width) / 2}" y="{height + 31}" text-anchor="middle">layer</text></svg>'
    )
