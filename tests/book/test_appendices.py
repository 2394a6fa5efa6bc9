"""Appendices: every parameter once, every other value, every hash as its manifest has it, and no value that becomes markup."""

import hashlib
import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from helpers.book import appendices, markup, parameter_table
from helpers.book.appendices import APPENDICES, run_box
from helpers.errors import REFUSED, StudyError
from helpers.runner import manifests
from helpers.study import chapters, parameters

ROOT = Path(__file__).parents[2]
NASTY = [
    "a|b", r"a\|b", "`code`", "``", "<script>alert(1)</script>", '<img src=x onerror="alert(1)">', "[x](javascript:alert(1))",
    "$x$", "{{ name }}", "{doc}`index`", "*a* _b_ ~~c~~", "a\nb | c", "\\", "&lt;b&gt;", "# head",
    "- item", "<!-- generated: runs -->",
]  # fmt: skip
EXTENSIONS = set(yaml.safe_load((ROOT / "_config.yml").read_text())["parse"]["myst_enable_extensions"])


def rendered(markdown: str) -> str:
    """The HTML of some Markdown as the book's own parser reads it; what is no HTML token is not rendered."""
    return create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), RendererHTML).render(markdown)


def cells(markdown: str) -> list[list[str]]:
    """The cells of every row of the tables in some Markdown, as HTML."""
    rows = re.findall(r"<tr>(.*?)</tr>", rendered(markdown), re.DOTALL)
    return [[cell.strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def one_line(value: str) -> str:
    return " ".join(value.split())


# ---------------------------------------------------------------- markup


@pytest.mark.parametrize("value", NASTY)
def test_a_value_reads_as_itself_and_adds_no_column(value):
    """Through the book's own parser; the control is the same table with the bare value, which comes out as something else."""
    rows = cells(markup.table(("a", "b"), [(markup.text(value), markup.code(value))]))
    assert rows[0] == ["a", "b"]
    found = html.unescape(rows[1][0]), html.unescape(re.fullmatch("<code>(.*)</code>", rows[1][1])[1])
    assert found == (one_line(value), one_line(value))
    assert not re.search("<(?!/?code)", "".join(rows[1]))


def test_bare_values_would_have_become_something_else():
    shown = [cells(markup.table(("a", "b"), [(one_line(value), "")]))[1][0] for value in NASTY]
    assert sum(cell != html.escape(one_line(value)) for cell, value in zip(shown, NASTY, strict=True)) > len(NASTY) / 2


@pytest.mark.parametrize("value", [*NASTY, "```\ncode\n```", "~~~"])
def test_a_block_holds_its_lines_as_they_are(value):
    found = re.fullmatch(r'<pre><code class="language-text">(.*)\n</code></pre>\n', rendered(markup.block([value])), re.DOTALL)
    assert html.unescape(found[1]) == value


# ---------------------------------------------------------------- parameters


def test_every_parameter_of_every_chapter_stands_there_once_with_its_default_and_its_chapters():
    found = [row for row in cells(APPENDICES["parameters"](ROOT, ROOT)) if row[0] != "parameter"]
    names = [re.match("<code>(.*?)</code>", row[0])[1] for row in found]
    declared = {name: {} for name in (*parameters.RUNNER, "lean")}
    for chapter, path in chapters.discover(ROOT).items():
        for name, value in parameters.declared(path).items():
            declared.setdefault(name, {})[chapter] = value
    assert len(names) == len(set(names))
    assert set(names) == set(declared) - {"profile"}
    for each in parameter_table.collect(ROOT):
        assert list(each.chapters) == list(declared[each.name])
        assert all(value == each.default for value in declared[each.name].values())
        assert each.comment, each.name
        assert not parameter_table.allowed(each.name, each.default).startswith("text") or isinstance(each.default, str)


@pytest.mark.parametrize("profile", [path.stem for path in sorted((ROOT / "profiles").glob("*.yaml"))])
def test_every_value_that_a_profile_sets_differently_stands_in_the_table_or_below_it(profile):
    shown, below = parameter_table.parameter_table(ROOT).split("\n\n", 1)
    rows = {re.match(r"\| `(\w+)`", line)[1]: line for line in shown.splitlines()[2:]}
    folds = {name.replace("\\", ""): text for name, text in re.findall(r"::::\{dropdown\} ([^\n]*)\n(.*?)::::", below, re.DOTALL)}
    defaults = parameters.consistent(chapters.discover(ROOT)) | parameters.RUNNER | {"lean": []}
    set_there = {n: v for n, v in parameters.profile(profile, ROOT / "profiles").items() if v != defaults[n]}
    assert set_there or profile == "quick"
    for name, value in set_there.items():
        cell = rows[name].split(" | ")[2]
        assert re.search(rf"\b{profile}\b", cell), name
        if markup.code(parameter_table.written(value)) not in cell:
            own = next(part for part in folds[name].split("\n\n") if re.search(rf"\b{profile}\b", part))
            part = folds[name].split(own, 1)[1].lstrip("\n").split("\n\n")[0]
            assert part.strip() == "\n".join(f"- {markup.code(parameter_table.written(item))}" for item in value), name


@pytest.mark.parametrize("value", [1e-5, 0.0015, 4.0, 3, True, "a b", [0.5, 1.0], ["x@y>z:w"], [], "no", "007"])
def test_a_value_is_written_as_a_profile_reads_it(tmp_path, value):
    (tmp_path / "x.yaml").write_text(f"name: {parameter_table.written(value)}\n")
    assert parameters.profile("x", tmp_path) == {"name": value}


@pytest.mark.parametrize(("names", "said"), [("abc", "all"), ("ab", "a, b"), ("a", "a"), ("ac", "a, c"), ("", "")])
def test_chapters_are_told_by_their_numbers(names, said):
    assert parameter_table.chapter_numbers(names, "abc") == said
    assert (
        parameter_table.chapter_numbers(["01_a", "02_b", "03_c", "05_e"], ["01_a", "02_b", "03_c", "04_d", "05_e"])
        == "01 to 03, 05"
    )


# ---------------------------------------------------------------- a planted project


def entry(seconds: float, peak: float, clean: bool, files: tuple[str, ...] = ()) -> dict:
    """The status of a chapter, as a manifest holds it."""
    return {
        "seconds": seconds, "finished": "2026-11-22T13:23:19.653+00:00", "code": {"commit": "0123456789abcdef", "clean": clean},
        "machine": {"device": "cpu", "threads": 2, "cpus": 4, "processor": "made|up", "system": "linux", "peak_gb": peak},
        "versions": {"python": "3.11.7", "numpy": f"2.{seconds:.0f}"}, "files": dict.fromkeys(files, "0" * 64),
    }  # fmt: skip


def manifest(seed: int) -> dict:
    files = ("parts/01_first/behaviour.parquet", "parts/01_first/notes.json", "tables/other.parquet", "../../findings.parquet")
    return {
        "schema": 1,
        "chapters": {"02_second": entry(200 + seed, 2.0 + seed, False), "01_first": entry(10.0 + seed, 1.0, True, files)},
        "tables": {
            name: {"rows": 7 + seed, "sha256": hashlib.sha256(f"{name}{seed}".encode()).hexdigest()} for name in ("a|b", "c")
        },
        "sources": {"a`b": {"version": "1<2", "sha256": "f" * 64}},
    }


@pytest.fixture
def planted(tmp_path) -> tuple[Path, Path]:
    """A project of two chapters with two finished runs and one without a manifest, full of values that mean something."""
    (tmp_path / "notebooks").mkdir()
    for name, lines in {
        "01_first": f"texts = {NASTY!r}  # a | `b` <i> $c$\nflag = True  # yes",
        "02_second": "n = 3  # how many",
    }.items():
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines, metadata={"tags": ["parameters"]})])
        nbformat.write(made, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "cpu.yaml").write_text(f"# cpu: for | <b>. More.\ntexts: {json.dumps(NASTY[::-1])}\nflag: false\n")
    (tmp_path / "profiles" / "quick.yaml").write_text("# quick: nothing\n")
    for seed in (10, 2):
        folder = tmp_path / "results" / "cpu" / "embedded" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest(seed)))
    (tmp_path / "results" / "cpu" / "embedded" / "seed-3").mkdir()
    (tmp_path / "CITATION.cff").write_text(
        'title: "A & B: <i> | `c`"\nmessage: Please | cite.\nversion: 0.1.0\nlicense: MIT\ndate-released: 2026-11-22\n'
        "authors: [{name: The {A} Team}, {given-names: Ada, family-names: Byron}]\n".replace("{A}", "A_B")
    )
    return tmp_path, tmp_path / "results" / "cpu" / "embedded" / "seed-2"


def test_planted_values_of_parameters_are_shown_as_they_are(planted):
    found = rendered(parameter_table.parameter_table(planted[0]))
    assert not re.search(r"<(script|img|i|em|s|a|h1)\b|javascript:alert\(1\)\"", found)
    shown = [html.unescape(item) for item in re.findall(r"<li>\s*<code>(.*?)</code>\s*</li>", rendered(lists_of(planted[0])))]
    wanted = [parameter_table.written(value) for value in (*NASTY, *NASTY[::-1])]
    assert shown == [one_line(value) for value in wanted]
    assert "a | `b` &lt;i&gt; $c$" in cells(parameter_table.parameter_table(planted[0]))[1][0]


def lists_of(root: Path) -> str:
    """What is folded below the table of parameters, out of its folds."""
    return re.sub(r"(?m)^::::.*$", "", parameter_table.parameter_table(root).split("\n\n", 1)[1])


def test_runs_show_what_the_manifests_say_and_leave_unfinished_ones_out(planted):
    root, run = planted
    page = APPENDICES["runs"](root, run)
    rows = cells(page)
    assert ["chapter", "embedded, seed 2", "embedded, seed 10", "spread"] in rows
    assert [row[1:] for row in rows if "01_first" in row[0]] == [["12", "20", "12 to 20"]]
    assert ["<code>numpy</code>", "<code>2.12</code>, <code>2.20</code>, <code>2.202</code>, <code>2.210</code>"] in rows
    assert any("<code>0123456789ab</code> clean (1)<br><code>0123456789ab</code> changed tree (1)" in row for row in rows)
    assert "made|up" in rendered(page)
    for seed in (2, 10):
        for name, told in manifest(seed)["tables"].items():
            assert f"{told['sha256']}  tables/{name}.parquet" in page
            (row,) = [row for row in rows if row[0] == f"<code>{name}</code>"]
            assert f"{told['rows']}<br><code>{told['sha256'][:12]}</code>" in row
    assert "seed-3" not in page
    assert "<code>1&lt;2</code>" in rendered(page)


def test_a_profile_that_was_not_run_is_not_measured(planted):
    rows = {row[0]: row[1:] for row in cells(APPENDICES["profiles"](*planted))}
    assert rows["<code>quick</code>"] == ["nothing", "none here", *["not measured"] * 3]
    machine = "cpu, 2 threads on 4 made|up processors, linux"
    assert rows["<code>cpu</code>"] == ["for | &lt;b&gt;", "2", "4 min", "4.0 to 12.0 GB", machine]
    assert list(rows) == ["profile", "<code>quick</code>", "<code>cpu</code>"]
    nothing = APPENDICES["runs"](planted[0], planted[1].parents[2] / "smoke" / "tiny" / "seed-0")
    assert "none has a manifest" in nothing


def test_chapters_say_what_they_need_and_write_and_take(planted):
    (_, first, second) = cells(APPENDICES["chapters"](*planted))
    assert first[1:] == ["", "<code>behaviour</code>, <code>findings</code>", "12 to 20 s"]
    assert second[1:] == ["01", "", "202 to 210 s"]


def test_the_box_holds_the_one_command_its_needs_and_the_time_that_was_measured(planted):
    box = run_box(*planted, "02_second")
    assert box.count("```") == 2
    command = re.search(r"```bash\n(.*)\n```", box)[1]
    assert command == ".venv/bin/python -m helpers chapter 02 --profile quick"
    assert "needs chapter 01 of" in box
    assert "needs chapters 01, 03 and 04 of" in run_box(ROOT, ROOT / "results/cpu/embedded/seed-0", "08_subspaces")
    assert "3 to 4 min, 12.0 GB at most" in html.unescape(rendered(box.replace(":::", "\n")))
    assert "needs no other chapter" in run_box(*planted, "01_first")
    shutil.rmtree(planted[1].parent)
    assert "not measured here" in run_box(*planted, "01_first")


def test_the_command_of_every_box_is_one_that_the_command_line_takes():
    from helpers.__main__ import parser

    for chapter in chapters.discover(ROOT):
        command = re.search(r"-m helpers (.*)", run_box(ROOT, ROOT / "results/cpu/embedded/seed-0", chapter))[1]
        options = parser().parse_args(command.split())
        assert chapters.find(options.name, chapters.discover(ROOT)) == chapter
        assert (options.command, options.profile) == ("chapter", "quick")


def test_how_to_cite_is_what_citation_cff_says(planted):
    box = APPENDICES["citation"](*planted)
    shown = html.unescape(rendered(box.replace(":::", "\n")))
    assert "The A_B Team, Ada Byron (2026). A & B: <i> | `c`. Version 0.1.0." in shown
    assert r"author = {{The A\_B Team} and {Ada Byron}}," in box
    assert r"title = {A \& B: <i> | `c`}," in box
    assert "embedded, seed 2; embedded, seed 10" in shown
    assert "0123456789ab" in shown
    assert "year = {2026}" in box
    own = APPENDICES["citation"](ROOT, ROOT / "results" / "none" / "x" / "seed-0")
    assert f"Version {yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version']}" in rendered(own.replace(":::", "\n"))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema": 1, "chapters": {}, "tables": {}, "sources": {}}', '{"schema": 1, "chapters": 3}']
)
def test_a_manifest_that_cannot_be_read_is_named(planted, content):
    (planted[1] / "manifest.json").write_text(content)
    with pytest.raises(StudyError, match=r"cpu/embedded/seed-2/manifest\.json cannot be read") as caught:
        manifests.finished(planted[1].parents[1])
    assert caught.value.code == REFUSED


@pytest.mark.parametrize(
    ("seconds", "said"),
    [([3.2], "3 s"), ([98, 112], "98 to 112 s"), ([60, 150], "1 to 2 min"), ([3000, 9000], "0.8 to 2.5 h"), ([0.2], "0 s")],
)
def test_a_duration_is_told_in_the_unit_of_the_longest(seconds, said):
    assert manifests.duration(seconds) == said


# ---------------------------------------------------------------- the project itself

RUNS = sorted(path.parent for path in (ROOT / "results").glob("cpu/*/seed-*/manifest.json"))


@pytest.mark.skipif(not RUNS, reason="no finished run of cpu")
def test_the_hashes_shown_are_those_of_the_files_themselves():
    page = APPENDICES["runs"](ROOT, RUNS[0])
    for run in RUNS:
        for name, told in json.loads((run / "manifest.json").read_text())["tables"].items():
            if (run / "tables").is_dir():  # seeds that the book does not show may keep their parts alone
                assert hashlib.sha256((run / "tables" / f"{name}.parquet").read_bytes()).hexdigest() == told["sha256"]
            assert f"{told['sha256']}  tables/{name}.parquet" in page


@pytest.mark.skipif(not RUNS, reason="no finished run of cpu")
def test_the_spread_is_that_of_the_findings(monkeypatch):
    from helpers.book.answers import numbers
    from helpers.study import findings
    from helpers.study.claims import CLAIMS, UNITS

    asked, told = [], []

    def once(runs, real=findings.by_seed):  # of two runs: each takes seconds
        asked.extend((model, seed) for model, seed, _ in runs)
        told.append(real(runs[:2]))
        return told[0]

    monkeypatch.setattr(findings, "by_seed", once)
    numbers._gathered.cache_clear()  # what a test before this one may have read
    rows = cells(APPENDICES["spread"](ROOT, RUNS[0]))
    (dots,) = told
    assert sorted(asked) == sorted((run.parent.name, int(run.name[5:])) for run in RUNS)
    heads = dots[dots["component"] == 1]
    assert [row[0].split()[0] for row in rows[1:]] == [claim for claim in CLAIMS if claim in set(heads["claim"])]
    first = rows[1][0].split()[0]
    own = heads[heads["claim"] == first].sort_values("seed")["value"]
    unit = UNITS[CLAIMS[first].components[0].unit]
    assert len(own)
    seen = [cell for cell in rows[1][2:] if cell]
    assert seen == [*unit.written(*own), unit.written(own.max() - own.min())[0].lstrip("+")]


def test_every_appendix_stands_in_a_page_and_the_changelog_names_this_version():
    wanted = [
        name for page in (ROOT / "book").glob("*.md") for name in re.findall(r"(?m)^<!-- generated: (\S+) -->$", page.read_text())
    ]
    assert set(APPENDICES) <= set(wanted)
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert re.search(rf"(?m)^## \[{re.escape(version)}\]", APPENDICES["changelog"](ROOT, ROOT))
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    with pytest.raises(StudyError, match=r"CHANGELOG\.md is not there"):
        appendices.changelog(ROOT / "book", ROOT)


def test_seconds_say_which_runs_had_an_empty_cache():
    """The fault: times of runs that found most of their work done stood beside first runs without a word."""
    cold, warm = (SimpleNamespace(label=name, cold=name == "seed 0") for name in ("seed 0", "seed 3"))
    assert appendices._first_or_again([cold]).startswith("From an empty cache. ")
    assert appendices._first_or_again([warm]) == ""
    assert "From an empty cache: seed 0. Of the others" in appendices._first_or_again([cold, warm])
