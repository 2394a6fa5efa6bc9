"""Parameters: what a notebook declares, what a profile changes, and the one place where both are checked against each other.

A profile is code: an unknown key, a wrong type, a value out of range or a name outside its registry is refused before
anything runs, in one line that names the parameter, the value, where it came from, and the remedy.
"""

import ast
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import StudyError, checked_name, nearest, shown
from helpers.study.limits import LIMITS, Limit

LARGEST_PROFILE = 64 * 1024  # bytes
# What a profile may set for the runner itself, although no notebook declares it
RUNNER = {"chapter_seconds": 3600, "figure_forms": "all", "compute": "auto"}
FIGURE_FORMS = "AFTER_UPDATE_FIGURES"  # the environment variable by which kernels learn of the second


# ---------------------------------------------------------------- what a notebook declares


def read_notebook(path: Path) -> dict:
    """The notebook as JSON; an unreadable one is refused by its name."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"][0]["cell_type"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise StudyError(
            f"notebook {path.name} cannot be read ({type(error).__name__}); restore it from the repository"
        ) from error
    return notebook


def source(cell: dict) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def parameters_cell(notebook: Path) -> str:
    """The text of the one cell tagged `parameters`."""
    cells = [cell for cell in read_notebook(notebook)["cells"] if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise StudyError(f"notebook {notebook.name} has {len(cells)} cells tagged 'parameters'; it needs exactly one")
    return source(cells[0])


def declared(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their defaults: literals only."""
    text, found = parameters_cell(notebook), {}
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise StudyError(
            f"notebook {notebook.name}: its parameters cell is not Python (line {error.lineno}); mend that line"
        ) from error
    for statement in statements:
        name, value = _literal(notebook.name, statement)
        if name in found:
            raise StudyError(f"notebook {notebook.name} declares parameter {name!r} twice; remove one")
        found[name] = value
    return found


def _literal(notebook: str, statement: ast.stmt) -> tuple[str, object]:
    text = ast.unparse(statement)
    target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
    if not isinstance(statement, ast.Assign) or not isinstance(target, ast.Name):
        raise StudyError(
            f"notebook {notebook}: {shown(text)} in the parameters cell is not 'name = literal'; move it to the next cell"
        )
    try:
        return target.id, ast.literal_eval(statement.value)
    except ValueError as error:
        raise StudyError(f"notebook {notebook}: parameter {shown(text)} is not a literal; compute it in the next cell") from error


def consistent(notebooks: Mapping[str, Path]) -> dict[str, Any]:
    """All declared parameters with their defaults; a parameter with two defaults is an error that names both chapters."""
    defaults: dict[str, Any] = {}
    first: dict[str, str] = {}
    for chapter, path in notebooks.items():
        for name, value in declared(path).items():
            if name in defaults and (type(defaults[name]), defaults[name]) != (type(value), value):
                text = f"{shown(defaults[name])} in {first[name]} and {shown(value)} in {chapter}"
                raise StudyError(f"parameter {name!r} has two defaults, {text}; give it one")
            defaults.setdefault(name, value)
            first.setdefault(name, chapter)
    return defaults


# ---------------------------------------------------------------- what a profile says


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, no doubled keys, and only true/false, decimal numbers and null have a meaning of their own."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  PyYAML's own way to say it; `no`, `007` and `1:30` stay strings

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: anchors and aliases are not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: key {key.value!r} stands there twice; keep one")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _starts in (
    ("bool", r"(true|false)", "tf"),
    ("null", r"(~|null|)", ["~", "n", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*([eE][-+][0-9]+)?|\.(inf|Inf|INF)|\.(nan|NaN|NAN))", "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), list(_starts))


def profile(name: str, folder: Path) -> dict[str, Any]:
    """What `<folder>/<name>.yaml` sets; an empty file sets nothing, which is the `quick` profile."""
    path = folder / f"{checked_name(name)}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        raise StudyError(
            f"unknown profile {name!r}; {nearest(name, names)}choose one of {', '.join(names) or 'none: profiles/ is empty'}"
        )
    where = f"profiles/{path.name}"
    if path.stat().st_size > LARGEST_PROFILE:
        raise StudyError(f"{where} has {path.stat().st_size} bytes; a profile is at most {LARGEST_PROFILE}")
    values = _parsed(path, where)
    for key, value in values.items():
        if not isinstance(key, str):
            raise StudyError(f"{where}: key {shown(key)} is not a name; write 'parameter: value'")
        _refuse_odd(key, value, where)
    return values


def _parsed(path: Path, where: str) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise StudyError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        raise StudyError(
            f"{where} is not a plain YAML file: {problem}{'; indent with spaces' if chr(92) + 't' in problem else ''}"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise StudyError(f"{where} holds a {type(values).__name__}; write one 'parameter: value' a line")
    return values


def _refuse_odd(key: str, value: object, where: str) -> None:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise StudyError(f"parameter {key!r} is {item} (from {where}); give a finite number")
        if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
            raise StudyError(
                f"parameter {key!r} holds half a character, {shown(item)} (from {where}); write the character itself"
            )


# ---------------------------------------------------------------- both together


def resolve(
    notebooks: Mapping[str, Path],
    overrides: Mapping[str, Any],
    limits: Mapping[str, Limit] = LIMITS,
    where: str = "the profile",
) -> dict[str, dict[str, Any]]:
    """The parameters of each chapter as it is to run: its own defaults, with the checked overrides in their place."""
    own = {chapter: declared(path) for chapter, path in notebooks.items()}
    known = {**RUNNER, **{name: value for values in own.values() for name, value in values.items()}}
    for key in overrides:
        if key not in known:
            raise StudyError(f"unknown parameter {key!r} (from {where}); {nearest(key, known)}no notebook declares it")
    changed = {key: checked(key, value, known[key], limits.get(key), where) for key, value in overrides.items()}
    for values in own.values():
        for name, value in values.items():
            checked(name, value, value, limits.get(name), "the notebook")
    return {chapter: {name: changed.get(name, value) for name, value in values.items()} for chapter, values in own.items()}


def checked(name: str, value: Any, default: Any, limit: Limit | None, where: str) -> Any:
    """The value in the type of the default, if type and limit hold; a whole number is accepted for a float."""
    _refuse_odd(name, value, where)
    if isinstance(default, list):
        return _checked_list(name, value, default, limit, where)
    value = _typed(name, value, default, where)
    if limit and not limit.holds(value):
        raise StudyError(f"parameter {name!r} is {shown(value)} (from {where}); {limit.remedy(value)}")
    return value


def _checked_list(name: str, value: Any, default: list, limit: Limit | None, where: str) -> list:
    if not isinstance(value, list):
        raise _wrong_type(name, value, default, where)
    if not value and default and not (limit and limit.may_be_empty):
        raise StudyError(f"parameter {name!r} is an empty list (from {where}); name at least one element, such as {default[0]!r}")
    items = [checked(f"{name}[{i}]", item, default[0] if default else item, limit, where) for i, item in enumerate(value)]
    twice = [item for i, item in enumerate(items) if item in items[:i]]
    if twice:
        raise StudyError(f"parameter {name!r} lists {shown(twice[0])} twice (from {where}); keep one")
    return items


def _typed(name: str, value: Any, default: Any, where: str) -> Any:
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    raise _wrong_type(name, value, default, where)


def _wrong_type(name: str, value: object, default: object, where: str) -> StudyError:
    expected = {
        "int": "int (a whole number without quotes)",
        "float": "float (such as 0.001, without quotes)",
        "bool": "bool (true or false)",
    }
    kind = type(default).__name__
    text = f"expected {expected.get(kind, kind)}, got {type(value).__name__} {shown(value)} (from {where})"
    return StudyError(f"parameter {name!r}: {text}; its default is {shown(default)}")


# ---------------------------------------------------------------- threads and seeds
