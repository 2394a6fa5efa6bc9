"""The book as it is published, built once a session by the project's own code, and the same book with hostile text in it."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

from helpers.book import pages

ROOT = Path(__file__).parents[2]
OWN = {"build", "logs"}  # of the project; a build for tests writes into folders of its own
HOST = "08_subspaces"  # the chapter that shows the hostile text; it has formulas, so that MathJax is there too
MARK = "pwned"
# What a model could say. Each would set window.pwned, open a dialog or ask for something if it were live.
HOSTILE = (
    "<script>window.pwned='script'</script>",
    "</pre></div></section></article><script>window.pwned='closed'</script>",
    "<img src=pwned.png onerror=\"window.pwned='onerror'\">",
    "<svg onload=\"window.pwned='svg'\"><script>window.pwned='in svg'</script></svg>",
    "<a href=\"javascript:void(window.pwned='link')\">pwned</a>",
    "<iframe srcdoc=\"<script>parent.pwned='frame'</script>\"></iframe>",
    "<style>@import url(//pwned.example/x.css)</style>",
    "<meta http-equiv=refresh content='0; url=//pwned.example'>",
    "[pwned](javascript:alert('pwned')) ![pwned](//pwned.example/x.png)",
    "```{raw} html\n<script>window.pwned='raw'</script>\n```",
    "\\(\\href{javascript:alert('pwned')}{x}\\) \\[\\style{background:url(//pwned.example)}{x}\\] $$\\class{pwned}{x}$$",
    "\x1b[31mpwned\x1b[0m",  # a link by terminal sequence is a warning of the build, and so no book
)
CELLS = (
    "import sys\nimport pandas as pd\nfrom matplotlib import pyplot as plt\n"
    "from helpers.book import exercises\nfrom helpers.figures import tables\nfrom helpers.figures.drawing import theme\n"
    f"theme.style()\nhostile = {list(HOSTILE)!r}",
    "tables.show(pd.DataFrame({'reply': hostile, hostile[0]: hostile}), hostile[2])",
    "print(*hostile, sep='\\n')\nprint(*hostile, sep='\\n', file=sys.stderr)",
    "hostile",
    "pd.DataFrame({hostile[0]: hostile}, index=hostile)",
    "tables.glue_texts({f'hostile-{i}': text for i, text in enumerate(hostile)})",
    "figure, ax = plt.subplots()\nax.plot([0, 1], label=hostile[0])\nax.legend(title=hostile[1])\n"
    "ax.set(title=hostile[2], xlabel=hostile[3], ylabel=hostile[4]);",
)


def _project(name: str) -> Path:
    """A folder with all that the project has, as links; it is gone after the session."""
    root = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for entry in ROOT.iterdir():
        if entry.name not in OWN and not entry.name.startswith("."):
            (root / entry.name).symlink_to(entry)
    return root


@functools.cache
def book() -> Path:
    """The folder of the built pages."""
    root = _project("published")
    profile, folder = pages.find_run(ROOT, ROOT / "results", "")
    return (root / pages.build(root, profile, folder)[0]).parent


@functools.cache
def hostile_book() -> Path:
    """The same with hostile text in every kind of output of one chapter, and glued into its prose."""
    root = _project("hostile")
    profile, folder = pages.find_run(ROOT, ROOT / "results", "")
    run = root / folder.relative_to(ROOT)
    (root / "results").unlink()
    shutil.copytree(ROOT / "results" / profile, root / "results" / profile)
    chapter = run / "executed" / f"{HOST}.ipynb"
    notebook = json.loads(chapter.read_text(encoding="utf-8"))
    notebook["cells"] += _hostile_cells()
    chapter.write_text(json.dumps(notebook), encoding="utf-8")
    return (root / pages.build(root, profile, run)[0]).parent


def _hostile_cells() -> list[dict]:
    """The cells as a kernel ran them, and a paragraph that quotes what they glued."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    quoted = "\n\n".join(
        f"Glued {{glue:text}}`hostile-{i}` and in a table:\n\n|a|\n|-|\n|{{glue:text}}`hostile-{i}`|" for i in range(len(HOSTILE))
    )
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"## Hostile\n\n{quoted}"))
    return json.loads(nbformat.writes(notebook))["cells"]
