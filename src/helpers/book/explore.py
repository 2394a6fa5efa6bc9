"""The page Explore: six small figures that a reader moves, each with its numbers in the page and a table where no script runs.

The script is `book/_static/explore.js`; it reads what `data` gives. Nothing is fetched, so the page works from a file.
"""

import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.book.explore_data import Figure, data
from helpers.figures.findings_tables import asked, said

__all__ = ["EXPLORABLES", "Explorable", "data", "explore_page"]

PLACEHOLDER = "<!-- generated: explore -->"  # the line of book/explore.md that `explore_page` replaces
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # caption, heads, rows


@dataclass(frozen=True)
class Explorable:
    """One figure: its title, what to try first, what its marks mean, and its first view as a table."""

    title: str
    first: str
    marks: str
    view: Callable[[Figure], Table]


def explore_page(root: Path, run_folder: Path) -> str:
    """What stands in the place of `PLACEHOLDER`: all figures of that run, one heading each."""
    found = data(root, run_folder)
    return "\n".join(_section(name, figure, found[name]) for name, figure in EXPLORABLES.items())


def explore_part(root: Path, run_folder: Path, name: str) -> str:
    """One figure for the chapter that it belongs to, without a heading; nothing where the run cannot feed it."""
    numbers = data(root, run_folder, only=name)[name]
    figure = EXPLORABLES[name]
    return "" if "missing" in numbers else f"**{figure.title}.** {_block(name, figure, numbers)}"


def _section(name: str, figure: Explorable, numbers: Figure) -> str:
    head = f"## {figure.title}\n\n"
    if "missing" in numbers:
        return f"{head}:::{{note}}\n{numbers['missing']}\n:::\n"
    return head + _block(name, figure, numbers)


def _block(name: str, figure: Explorable, numbers: Figure) -> str:
    """What to try, the figure with its numbers and its first view, and what its marks mean."""
    content = json.dumps(numbers, separators=(",", ":"), allow_nan=False)
    for sign in "<>&`":  # none may end the script, open a comment, or close the fence
        content = content.replace(sign, f"\\u{ord(sign):04x}")
    body = f'<script type="application/json" id="explore-{name}-data">{content}</script>\n'
    body += f'<div class="explorable-stage">{_table(*figure.view(numbers))}</div>'
    block = f'<section class="explorable" id="explore-{name}" data-explorable="{name}">\n{body}\n</section>'
    return f"{figure.first}\n\n```{{raw}} html\n{block}\n```\n\n{figure.marks}\n"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain HTML table; every cell is escaped."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{_text(caption)}</caption><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(" ".join(value.split())).replace("`", "&#96;")


def percent(value: float, low: float, high: float) -> str:
    """A share with its interval, in percent."""
    return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


# ---------------------------------------------------------------- the first views


def flagged(bars: dict, side: str, edge: int) -> tuple[float, float, float]:
    """The share of a class above the left edge of that bin, with its interval: the bars from there on."""
    own = bars[side]
    return sum(own["count"][edge:]) / sum(own["count"]), own["low"][edge] / 100, own["high"][edge] / 100


def _threshold(numbers: Figure) -> Table:
    chosen = numbers["default"]
    monitor, variant = numbers["monitors"][chosen["monitor"]], numbers["variants"][chosen["variant"]]["name"]
    models = (("aligned", monitor["before"]), (variant, monitor["after"][chosen["variant"]]))
    rows = [(name, *(percent(*flagged(bars, side, chosen["edge"])) for side in ("flagged", "harmless"))) for name, bars in models]
    counts = {side: sum(monitor["before"][side]["count"]) for side in ("flagged", "harmless")}
    heads = ("model", f"caught (TPR, n = {counts['flagged']})", f"false alarms (FPR, n = {counts['harmless']})")
    return f"{monitor['name']}, at the threshold that was frozen, {monitor['cut']:.3g}", heads, rows


def _projection(numbers: Figure) -> Table:
    chosen = numbers["default"]
    update = numbers["updates"][chosen["update"]]
    curve = update["restorations"][chosen["restoration"]]
    rows = [(f"{point['changed']} of {numbers['modules']}", rate(*point["non_refusal"]), nats(*point["nll"]))
            for point in curve["points"]]  # fmt: skip
    heads = ("modules changed", "harmful prompts not refused", "nats a token of dialogues")
    return f"{update['name']}, {curve['name']}, {curve['on']}", heads, rows


def rate(value: float, low: float, high: float, n: int) -> str:
    """A share with its interval and what it is a share of."""
    return f"{percent(value, low, high)} (n = {n})"


def nats(value: float, low: float, high: float, n: int) -> str:
    """Nats a token with their interval and the number of dialogues."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}] (n = {n})"


def _subspace(numbers: Figure) -> Table:
    chosen = numbers["default"]
    module, place = numbers["modules"][chosen["module"]], chosen["source"]
    source, rows = module["sources"][place], []
    for i, k in enumerate(numbers["ks"]):
        median = numbers["medians"][place][i]
        whole = rate(*median) if median else "not measured"
        rows.append((str(k), f"{100 * source['overlap'][i]:.0f} %", percent(*module["chance"][i]), whole))
    caption = f"{module['name']}, V from {numbers['sources'][place]}: noise edge {source['edge']:.3g}, "
    caption += f"largest singular value of V {source['dose'] * module['bands'][0][2]:.3g}"
    return caption, ("k", "found again", "by chance", "median over modules"), rows


def _budget(numbers: Figure) -> Table:
    chosen = numbers["default"]
    split, place = numbers["splits"][chosen["split"]], chosen["budget"]
    rows = [(order["name"], percent(*order["recall"][place])) for order in split["orders"]]
    caption = f"{split['name']}, {100 * split['budgets'][place]:.0f} % of the cells checked"
    return caption, ("order of checking", f"stale cells found (n = {split['n']})"), rows


def _bound(numbers: Figure) -> Table:
    claim = numbers["claims"][numbers["default"]["claim"]]
    unit = claim["unit"]
    seen = f"{said(unit, claim['estimate'], claim['low'], claim['high'])} (n = {claim['n']:,}, {claim['seeds']} seeds)"
    wanted = asked(unit, claim["side"], claim["bound"], claim["margin"])
    rows = [("its headline", claim["name"]), ("measured", seen), ("claimed", wanted), ("verdict", claim["verdict"])]
    return "One claim, as it was judged", ("claim", claim["claim"]), rows


def _scores(numbers: Figure) -> Table:
    head, *rows = (line.split(",") for line in numbers["example"].split("\n"))
    return "The example, the first rows of its table", head, rows[:4]


EXPLORABLES: dict[str, Explorable] = {
    "threshold": Explorable(
        "Move a threshold",
        "**Try this first:** leave the threshold where it was {term}`frozen <monitor>` and go through the variants. How "
        "many harmless texts come to lie to the right of the line? Then move the line until the false alarms are at 5 % or "
        "fewer, and see what that costs in catches. What other seeds saw stands below.",
        "Bars are shares of their class: harmless texts upwards, texts to be flagged downwards. What lies to the right of "
        "the line raises an alarm. The outermost bars also hold all that lies beyond. Intervals are 95 %. These are the "
        "test texts: a threshold that is chosen on them looks better than it is.",
        _threshold,
    ),
    "projection": Explorable(
        "Project more modules, or fewer",
        "**Try this first:** move the share of modules from 0 to 100 %. Do the refusals come back before the usefulness "
        "goes? Then choose *same modules removed*: does the {term}`restoration` do more than leaving those modules out?",
        "Round marks: a quick look at few prompts and dialogues (a {term}`sketch`), with 95 % intervals that say how "
        "quick; a curve keeps to one set of prompts, which is named below. Diamonds: the same in full, where it was "
        "measured. Dashed, with a band: the aligned model, in full. "
        "The second panel is utility, in nats a token of held-out summaries: lower is better.",
        _projection,
    ),
    "subspace": Explorable(
        "Above the noise, or below it",
        "**Try this first:** go through the {term}`sources <source>`. Does a source that lets more of the steps stand above "
        "its dashed {term}`noise edge` find more of the {term}`leading directions` again? Where the list has a source with "
        "`x` and a number, the {term}`alignment matrix` was made so many times as large: compare how far the edge moved.",
        "Each step is the root mean square of the {term}`singular values <singular value>` of V between two indices; both "
        "axes are logarithmic. What is said of one module is computed exactly, and so has no interval; *by chance* has "
        "the range in which 95 % of random subspaces lie, and the median over modules its 95 % interval.",
        _subspace,
    ),
    "budget": Explorable(
        "Spend a budget of checks",
        "**Try this first:** move the {term}`budget <recall at a budget>` up. Which orders find far more of the "
        "{term}`stale` cells than the dashed line, which is what a random order finds? Then ask about something that was "
        "never seen, and watch the intervals.",
        "Dots: the share of all stale {term}`cells <cell>` that are found, with 95 % intervals; n counts the stale cells. "
        "An interval that crosses the dashed line cannot be told from luck.",
        _budget,
    ),
    "bound": Explorable(
        "Move a bound",
        "**Try this first:** choose a claim that is *inconclusive* and look for a {term}`bound` that would decide it. You "
        "will nearly always find one, and that is the point.",
        "**A bound that was chosen after looking proves nothing.** With this slider almost any interval gets almost any "
        "verdict. The bounds of this study stood in its code before the published runs. The bar is the 95 % interval of "
        "the claim's first component, its headline; a claim of sameness has a margin to move instead of a bound. Fewer "
        "than three seeds decide nothing, whatever the bound.",
        _bound,
    ),
    "scores": Explorable(
        "Your own scores",
        "**Try this first:** paste a table of your own in place of the example, in the form of `revalidate --scores`: a row a "
        "text, with `monitor`, `id`, `before`, `after` and, where you have them, `label` (1: to be flagged), `group` and "
        "`threshold`. Where no threshold is given, the first one promises 5 % false alarms by the scores before.",
        "A text raises an alarm where its score is above the threshold. Intervals are 95 % (Wilson, on fewer texts where these "
        "share groups). All of it is counted in the page: nothing is sent, and nothing is kept. The example is made up. "
        "What is not asked here, whether the *ranking* held and what would mend a monitor, "
        "{doc}`revalidate <revalidate>` answers.",
        _scores,
    ),
}
