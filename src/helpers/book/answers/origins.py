"""Origins: the lines on the page of provenance to which the numbers of the answers lead."""

from pathlib import Path

from helpers.book.answers.numbers import LOOKS, Gathered, anchor, gathered, look
from helpers.book.answers.parts import runs_in_words
from helpers.book.answers.wording import STATEMENTS
from helpers.book.markup import entities
from helpers.study.claims import CLAIMS, UNITS
from helpers.study.evidence.behaviour import UPDATES


def shown_keys() -> list[str]:
    """The keys of all numbers that a page can show."""
    looks = [look(update, question) for update in UPDATES for question in LOOKS]
    heads = [f"{claim.lower()}-1" for claim in CLAIMS]
    return list(dict.fromkeys([key for each in STATEMENTS.values() for key in each.keys] + heads + looks))


def answer_origins(root: Path, run: Path) -> str:
    """The lines of all numbers of the answers: the number, what it is made of, and what each seed says by itself."""
    found = gathered(run.parents[1])
    rules = _line("verdicts", "verdicts", "all parts of every claim, by the rules of chapter 11", "")
    lines = "".join(_origin(found, key) for key in shown_keys())
    head = "<thead><tr><th>number</th><th>made of</th><th>seed by seed</th></tr></thead>"
    return (
        "## Answers\n\nWhat the boxes *In short*, the first page and the page of questions say is made of the tables of all "
        f"finished runs ({runs_in_words(found)}), by the functions that chapter 11 calls:\n\n```text\n"
        f"python -m helpers chapter 11 --profile {found.profile}\n```\n\n"
        f'<div class="results-table">\n<table class="results provenance">{head}<tbody>{rules}{lines}</tbody></table>\n</div>\n'
    )


def _origin(found: Gathered, key: str) -> str:
    told = [each for each in found.told.get(key, ()) if each.measured]
    shown = "<br>".join(entities(f"{each.model}: {each.written}") for each in told)
    shown = shown or entities("; ".join(each.reason for each in found.told.get(key, ())) or "not measured")
    name, claim = found.told[key][0].name if key in found.told else key, key.partition("-")[0].upper()
    made = f"{name}, a part of claim {claim}" if claim in CLAIMS else name
    own = [f"{each.model}: {', '.join(f'seed {seed} {_short(each.unit, ends[0])}' for seed, *ends in each.own)}" for each in told]
    return _line(key, shown, entities(made), "<br>".join(f"<small>{entities(line)}</small>" for line in own))


def _short(unit: str, value: float) -> str:
    return f"{UNITS[unit].written(value)[0]}{UNITS[unit].words}"


def _line(key: str, shown: str, made: str, own: str) -> str:
    cells = f"<td>{shown}<br><small><code>{key}</code></small></td><td>{made}</td><td>{own}</td>"
    return f'<tr id="{anchor(key)}">{cells}</tr>'
