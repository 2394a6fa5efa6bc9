"""Every number in prose leads to the rows it was made of, to their file and hash, and to the command; planted and committed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers import folders, results
from helpers.book import pages, provenance
from helpers.book.claim_pages import older_rules
from helpers.book.provenance import GLUED, Number
from helpers.figures import findings_tables, tables
from helpers.study import chapters

ROOT = Path(__file__).resolve().parents[2]
# git keeps the executed chapters of the seed that the book shows
RUNS = sorted(path.parent for path in (ROOT / "results" / "cpu" / "embedded").glob("seed-*/executed"))
PLAIN = re.compile(r"^m?[a-z]\d-literature$")  # what others reported: its source is the reference beside it


@pytest.fixture
def run(tmp_path):
    return results.Run("cpu", "toy", 1, tmp_path / "cpu" / "toy" / "seed-1")


def rates(metric="non_refusal", n=6):
    key = dict.fromkeys(results.KEY, "") | {"model": "toy", "seed": 1, "strength": None}
    own = [{"judge": "phrases", "prompt_set": f"set-{i}", "metric": metric} for i in range(n)]
    return pd.DataFrame([key | row | {"value": i / 10, "low": i / 20, "high": i / 5 + 0.1, "n": 30} for i, row in enumerate(own)])


def glued(run, monkeypatch, texts, chapter="01_models"):
    """Glues the texts as a chapter does, and stores its executed form."""
    outputs = []
    keep = lambda data, raw, metadata: outputs.append({"data": data, "metadata": json.loads(json.dumps(metadata))})  # noqa: E731
    monkeypatch.setattr("IPython.display.display", keep)
    tables.glue_texts(texts)
    path = run.folder / "executed" / f"{chapter}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [{"outputs": outputs}, {"source": ""}]}), encoding="utf-8")
    return {number.key: number for number in provenance.glued_numbers(run.folder, chapter)}


# ---------------------------------------------------------------- back from a number to what its rows say


def rows(folder: Path, number: Number) -> pd.DataFrame:
    """The rows of the stored table that the number was made of; an error where they are not there."""
    path = provenance.file_of(folder, number)
    table = pd.read_parquet(path) if path.is_file() else pd.DataFrame()
    if "places" in number.source:
        wanted = [place for part in str(number.source["places"]).split(",") for place in places_of(part)]
        found = table.iloc[[place for place in wanted if place < len(table)]]
    else:
        named = [chosen(table, row) for row in number.source["rows"]]
        found = pd.concat(named) if named else table.iloc[:0]
    if len(found) != number.source["count"]:
        raise LookupError(f"{number.key!r} was made of {number.source['count']} rows of {path.name}, which has {len(found)}")
    return found


def places_of(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def chosen(table: pd.DataFrame, row: dict[str, Any]) -> pd.DataFrame:
    for column, value in row.items():
        table = table[table[column] == value] if column in table else table.iloc[:0]
    return table


def told(number: Number, found: pd.DataFrame) -> str:
    """What the rows say by the number's way: the beginning of its text, or a part of it; "" where rules made the text."""
    way, _, column = str(number.source["how"]).partition(" ")
    if way == "row":  # some rates and costs have a form of their own, and what is exact has no interval
        row = found.iloc[0]
        texts = [tables.interval(kind, row["value"], row["low"], row["high"]) for kind in (row["metric"], "recall")]
        texts += [text.partition(" [")[0] for text in texts]
        return next((text for text in texts if number.text.startswith(text)), texts[0])
    if way == "significant":
        return f"{int((found['value'] < 0.05).sum())} of {len(found)}"
    if way == "column":
        value = found[column].iloc[0]
        return f"{100 * value:g}" if isinstance(value, float) else str(value)
    if way == "choice":
        return f"{100 * found['strength'].iloc[0]:.3g}"
    if way in {"mean", "share", "median"}:
        value = found["value"].median() if way == "median" else found["value"].mean()
        forms, shown = (f"{100 * value:.0f}", f"{100 * value:.3g}", f"{value:.2g}"), re.match(r"-?[\d.]+", number.text)
        return next((text for text in forms if shown and text == shown[0]), f"{value}")
    return ""


def test_a_number_leads_back_to_its_rows_by_each_way(run, monkeypatch):
    table = results.write_table(run, "01_models", "behaviour", rates())
    most = table[table["prompt_set"] != "set-0"]
    said = glued(run, monkeypatch, {
        "one": tables.of_row(table[table["prompt_set"] == "set-3"]), "mean": tables.Said("30 % of them", most, "mean"),
        "median": tables.Said("0.3", most, "median"), "name": tables.Said("set-4", table.iloc[[4]], "column prompt_set"),
        "words": "nothing to look up",
    })  # fmt: skip
    assert said["words"].source == {}
    for key, values in {"one": [0.3], "mean": [0.1, 0.2, 0.3, 0.4, 0.5], "median": [0.1, 0.2, 0.3, 0.4, 0.5]}.items():
        found = rows(run.folder, said[key])
        assert found["value"].tolist() == pytest.approx(values)
        assert said[key].text.startswith(told(said[key], found))
    assert told(said["name"], rows(run.folder, said["name"])) == "set-4"


def test_rows_that_changed_or_went_are_not_the_numbers(run, monkeypatch):
    table = results.write_table(run, "01_models", "behaviour", rates())
    number = glued(run, monkeypatch, {"one": tables.of_row(table.iloc[[3]]), "all": tables.Said("25 %", table, "mean")})
    changed = rates().assign(value=lambda t: t["value"] + 0.01)
    results.write_table(run, "01_models", "behaviour", changed)
    found = rows(run.folder, number["one"])
    assert not number["one"].text.startswith(told(number["one"], found))
    results.write_table(run, "01_models", "behaviour", rates(n=3))
    for key in ("one", "all"):
        with pytest.raises(LookupError, match=rf"'{key}' was made of \d rows of behaviour"):
            rows(run.folder, number[key])


def test_the_page_shows_rows_file_hash_and_command_and_the_links_meet_them(run, monkeypatch):
    table = results.write_table(run, "01_models", "behaviour", rates())
    glued(
        run, monkeypatch, {"a_key": tables.of_row(table.iloc[[2]]), "mean": tables.Said("25 %", table, "mean"), "words": "none"}
    )
    page = provenance.provenance_page(ROOT, run.folder, ["01_models"])
    assert "python -m helpers chapter 01 --profile cpu --model toy --seed 1" in page
    assert "row numbers 0-5" in page
    assert folders.file_hash(run.folder / "tables" / "behaviour.parquet")[:12] in page
    linked = provenance.linked(
        "See {glue:text}`a_key` and {glue:text}`../notebooks/01_models.ipynb::mean:s`.", "notebooks/01_models"
    )
    targets = re.findall(r'href="\.\./book/provenance\.html#([^"]+)"', linked)
    assert len(targets) == 2
    assert all(f'id="{target}"' in page for target in targets)
    assert "{glue:text}`a_key`" in linked  # the number itself is still glued


def test_of_many_rows_the_page_shows_the_first_and_a_count(run, monkeypatch):
    table = results.write_table(run, "01_models", "behaviour", rates(n=40))
    glued(run, monkeypatch, {"mean": tables.Said("25 %", table.iloc[::2], "mean")})
    page = provenance.provenance_page(ROOT, run.folder, ["01_models"])
    assert "row numbers 0, 2, 4, 6, 8 and 15 more" in page
    assert provenance.fewer("0-4,9") == ("0-4, 9", 0)
    assert provenance.fewer("0,2,4,6,8,10-12,14") == ("0, 2, 4, 6, 8", 4)


@pytest.mark.parametrize("payload", ["<script>x</script>", "$x$", "`a`", "[a](javascript:b)", "a|b", "*a*"])
def test_a_value_stays_text_on_the_page(run, monkeypatch, payload):
    table = rates()
    table.loc[0, "prompt_set"] = payload
    table = results.write_table(run, "01_models", "behaviour", table)
    glued(run, monkeypatch, {"k": tables.Said(payload, table.iloc[[0]], "column prompt_set")})
    assert payload not in provenance.provenance_page(ROOT, run.folder, ["01_models"])


# ---------------------------------------------------------------- the committed results


def used(folder: Path) -> set[tuple[str, str]]:
    """Every (chapter, key) that the book glues: on its pages, and in its chapters as it shows them with the run's outputs."""
    found = set()
    for name in pages.book_chapters(ROOT):
        source, executed = (
            json.loads((place / f"{name}.ipynb").read_text(encoding="utf-8"))
            for place in (ROOT / "notebooks", folder / "executed")
        )
        notebook = pages.with_outputs(source, executed)
        texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        found |= {(name, match["key"]) for text in texts for match in GLUED.finditer(text)}
    for page in (ROOT / "book").rglob("*.md"):
        for match in GLUED.finditer(page.read_text(encoding="utf-8")):
            found.add((Path(match["path"]).stem, match["key"]))
    return found


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_every_number_in_the_book_leads_to_its_rows(folder):
    numbers = {(n.chapter, n.key): n for name in pages.book_chapters(ROOT) for n in provenance.glued_numbers(folder, name)}
    wanted = used(folder)
    assert len(wanted) > 50
    for where in sorted(wanted):
        number = numbers[where]
        if not number.source:
            assert PLAIN.match(number.key) or number.text.startswith("(not "), number
            continue
        assert holds(folder, number), number
        status = json.loads((folder / "status" / f"{number.chapter}.json").read_text(encoding="utf-8"))
        path = provenance.file_of(folder, number)
        name = "../../findings.parquet" if path.name == "findings.parquet" else str(path.relative_to(folder))
        assert folders.file_hash(path) in {status["files"].get(name), _manifest(folder).get(path.stem)}, path


def holds(folder: Path, number: Number) -> bool:
    """Whether the number's text says what its rows say."""
    found = rows(folder, number)
    if of_older_rules(folder, number):
        return bool(len(found))  # its rows are there; the words and units of rules of that time are no longer in the code
    said = by_rules(folder, number, found) if number.source["how"] == "verdict" else [told(number, found)]
    return bool(said) and all(text and text in number.text for text in said)


def of_older_rules(folder: Path, number: Number) -> bool:
    """Whether the number was written from a component by rules that are not the present ones."""
    head, _, kind = number.key.partition("-")
    written = number.source.get("how") == "verdict" and head != "count" and kind != "verdict"
    return written and bool(older_rules(folder.parents[1]))


def test_a_number_that_was_changed_by_hand_is_noticed():
    """The control: each number of one run with its digits made others, a word with its letters turned round."""
    wanted = used(RUNS[0])
    numbers = [
        n for name in pages.book_chapters(ROOT) for n in provenance.glued_numbers(RUNS[0], name) if (name, n.key) in wanted
    ]
    changed = [replace(n, text=altered(n.text)) for n in numbers if n.source and not of_older_rules(RUNS[0], n)]
    assert len(changed) > 50
    assert [number.key for number in changed if holds(RUNS[0], number)] == []


def altered(text: str) -> str:
    """The text with every digit one higher; without digits, backwards."""
    return re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), text) if re.search(r"\d", text) else text[::-1]


def by_rules(folder: Path, number: Number, found: pd.DataFrame) -> list[str]:
    """What a text of chapter 11 must hold: the verdict or the count that `findings` has, else each row with its interval."""
    judged = pd.read_parquet(folder.parents[1] / "findings.parquet").set_index("claim")["verdict"]
    head, _, kind = number.key.partition("-")
    if head == "count":
        return [str((judged == kind.replace("-", " ")).sum())]
    if kind == "verdict":
        return [judged[head.upper()]]
    return [findings_tables.said(row.metric, row.value, row.low, row.high) for row in found.itertuples()]


def _manifest(folder: Path) -> dict[str, str]:
    stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {name: entry["sha256"] for name, entry in stored["tables"].items()}


def test_the_commands_on_the_page_run_chapters_that_exist():
    names = list(chapters.discover(ROOT))
    for name in pages.book_chapters(ROOT):
        assert chapters.find(name[:2], names) == name


def test_anchors_differ():
    anchors = [Number(chapter, key, "", {}).anchor for chapter, key in used(RUNS[0])]
    assert len(set(anchors)) == len(anchors)
