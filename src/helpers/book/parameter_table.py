"""Every parameter that a notebook declares, as a reader needs it: its defaults, its other values, its range, its comment."""

import io
import json
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.book.markup import code, folded, table, text
from helpers.study import chapters as all_chapters
from helpers.study import limits, parameters
from helpers.study.limits import LIMITS
from helpers.study.parameters import RUNNER

ORDER = ("smoke", "cpu", "published", "gpu")  # of the profiles; others follow by name
PARSED = {  # what the functions of limits.PARSERS read, in words
    "updates.recipes.parse": "{term}`updates <update>` by name",
    "updates.recipes.parse_serving": "an update and its {term}`serving`",
    "data.tasks.known": "names in `TASKS`, or a `.csv` or `.jsonl` file",
    "monitors.readings.parse_attention": "task and {term}`depth`",
    "models.judge_types.checked_options": "options of judges by name, each a text",
    "monitors.fitting.parse_simulated": "rounding by name, or `random-lowrank`",
    "projection.restorations.parse": "names in `RESTORATIONS`",
    "projection.restorations.parse_source": "a {term}`source` of V",
}
LEAN = "stages: `from_seed`, with `skip` (chapters) or `changes` (parameters)"
LONGEST = 60  # characters of a value that stand in a cell of the table; what is longer is folded below it


@dataclass(frozen=True)
class Declared:
    """One parameter: the chapters that declare it, its default, its comment, and the profiles where its value is another."""

    name: str
    chapters: tuple[str, ...]
    default: object
    comment: str
    elsewhere: dict[str, Any]


def comments(notebook: Path) -> dict[str, str]:
    """The comment behind each parameter of a notebook, by name."""
    found, name = {}, ""
    for token in tokenize.generate_tokens(io.StringIO(parameters.parameters_cell(notebook)).readline):
        if token.type == tokenize.NAME and token.start[1] == 0:
            name = token.string
        if token.type == tokenize.COMMENT and name:
            found[name] = token.string.lstrip("# ")
    return found


def profile_settings(root: Path) -> dict[str, dict[str, Any]]:
    """What each profile sets, in the order of their size; `quick` sets nothing."""
    names = sorted((path.stem for path in (root / "profiles").glob("*.yaml")), key=lambda name: (_rank(name), name))
    return {name: parameters.profile(name, root / "profiles") for name in names}


def _rank(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def collect(root: Path) -> list[Declared]:
    """Every parameter once, in the order of the chapters; what the runner reads for itself comes last."""
    notebooks, known = all_chapters.discover(root), profile_settings(root)
    defaults, where = parameters.consistent(notebooks) | RUNNER | {"lean": []}, defaultdict(list)  # of a whole study alone
    words = {
        "chapter_seconds": "seconds after which a chapter is stopped",
        "lean": "what seeds leave out, each stage from a seed on; the other rows tell the values of seed 0",
        "compute": '"auto", "bf16" or "fp32": the number format to multiply in; "auto" asks the machine',
        "figure_forms": '"all", or "light": figures without a drawing for dark pages and without PNG',
    }
    for chapter, path in notebooks.items():
        words = comments(path) | words
        for name in parameters.declared(path):
            where[name].append(chapter)
    return [
        Declared(
            name,
            tuple(where.get(name, ())),
            default,
            words.get(name, ""),
            {profile: found[name] for profile, found in known.items() if found.get(name, default) != default},
        )
        for name, default in defaults.items()
        if name != "profile"  # set by the runner alone, from --profile
    ]


def written(value: object) -> str:
    """The value as it is written in a profile."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")  # a profile reads no 1e-05
    return json.dumps(value, ensure_ascii=False)


def cell(value: Any) -> str:
    """The value as code, or the number of its values where they would not fit."""
    return code(written(value)) if len(written(value)) <= LONGEST else text(f"{len(value)} values, below")


def grouped(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values, each once, with the names of the profiles that set it."""
    found: dict[str, list[str]] = {}
    for profile, value in values.items():
        found.setdefault(written(value), []).append(profile)
    return [(", ".join(names), values[names[0]]) for names in found.values()]


def allowed(name: str, default: object) -> str:
    """What a parameter, or each element of a list, may be."""
    if name in limits.REGISTRIES:
        return f"names in {code(limits.REGISTRIES[name][1])}"
    if name in limits.PARSERS:
        return PARSED[".".join(limits.PARSERS[name])]
    if name == "lean":
        return LEAN
    limit = LIMITS.get(name)
    if limit and limit.choices:
        return ", ".join(map(code, sorted(map(str, limit.choices()))))
    if limit and limit.low is not None:
        return text(f"{'above' if limit.above else 'from'} {limit.low:g} to {limit.high:.15g}")
    kind = type(default[0] if isinstance(default, list) and default else default).__name__
    return {"bool": f"{code('true')}, {code('false')}", "int": "a whole number", "float": "a number"}.get(kind, "text")


def chapter_numbers(names: Iterable[str], every: Iterable[str]) -> str:
    """The chapters by number, runs of them together: `01 to 03, 07`; all of them as `all`."""
    names, every = list(names), list(every)
    if names == every:
        return "all"
    groups: list[list[str]] = []
    for name in names:
        follows = groups and every.index(name) == every.index(groups[-1][-1]) + 1
        groups[-1].append(name) if follows else groups.append([name])
    return ", ".join(f"{g[0][:2]} to {g[-1][:2]}" if len(g) > 2 else ", ".join(n[:2] for n in g) for g in groups)


def parameter_table(root: Path) -> str:
    """The table of all parameters, and below it the values that are too long for a cell."""
    found, every = collect(root), list(all_chapters.discover(root))
    rows = [
        (
            f"{code(each.name)}<br>{text(each.comment)}",
            cell(each.default),
            "; ".join(f"{text(names)}: {cell(value)}" for names, value in grouped(each.elsewhere)),
            allowed(each.name, each.default),
            chapter_numbers(each.chapters, every) or "the runner",
        )
        for each in found
    ]
    heads = ("parameter", "`quick`", "other profiles", "allowed", "chapters")
    return f"{table(heads, rows)}\n{''.join(_long(each) for each in found)}"


def _long(each: Declared) -> str:
    values = grouped({"quick": each.default, **each.elsewhere})
    long = {names: value for names, value in values if len(written(value)) > LONGEST}
    lists = [f"{text(names)}\n\n" + "".join(f"- {code(written(item))}\n" for item in value) for names, value in long.items()]
    return folded(each.name, "\n".join(lists)) + "\n" if lists else ""
