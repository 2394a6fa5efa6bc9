"""The form of a revalidation report: its JSON Schema, and the check that a report has it. Nothing is written here.

`change` is after - before in the units of the measure with its 90 % interval, so that each of the two answers errs in 5 %;
`margin` is above 0 in the same units: AUROC and TPR are worse where the change lies below -margin, FPR where above +margin.
Numbers that are undefined (a rank of tied scores, a rate of no rows) are null, never NaN.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, USAGE, StudyError

VERSION = 2
WORDS = ("fine", "stale", "unfit", "inconclusive", "no update")  # of a verdict and of a monitor's state
ANSWERS = ("worse", "preserved", "inconclusive")
TEXTUAL = frozenset({"prompt", "prompts", "reply", "replies", "completion", "response", "text", "message", "messages"})
ROUNDING = 1e-6  # by which a change may miss after - before, and a value its own interval


def _object(optional: Mapping[str, Any] | None = None, **properties: object) -> dict[str, Any]:
    """An object whose properties are all required, but for the optional ones; others may stand beside them."""
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


def _list(items: object, most: int = 10_000) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


TEXT = {"type": "string", "maxLength": 2000}
NAME = {"type": "string", "minLength": 1, "maxLength": 200}
NUMBER = {"type": ["number", "null"]}
COUNT = {"type": "integer", "minimum": 0}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
CODE = {"type": "integer", "minimum": 0, "maximum": 255}
HASH = _or_null(NAME)
STATE = {"type": "string", "enum": list(WORDS)}
INTERVAL = _object(value=NUMBER, low=NUMBER, high=NUMBER)
SIMULATED = _or_null(_object(value=SHARE, low=SHARE, high=SHARE, draws=COUNT))
ANY = {"type": "object"}
MARGIN_KEYS = (
    *("tpr_margin", "fpr_ratio_margin", "auroc_margin"),
    *("refusal_margin", "length_ratio_margin", "nll_margin", "kl_margin"),
)

TEST = _object(
    measure={"type": "string", "pattern": "^(auroc|(tpr|fpr)_[0-9]{1,3}([.][0-9]{1,3})?)$"},
    before=NUMBER,
    after=NUMBER,
    change=INTERVAL,
    margin={"type": "number", "exclusiveMinimum": 0},
    p_worse=SHARE,
    p_preserved=SHARE,
    p_worse_adjusted=SHARE,
    p_preserved_adjusted=SHARE,
    answer={"type": "string", "enum": list(ANSWERS)},
)
FLOOR = _object(
    measure=TEST["properties"]["measure"],
    limit=SHARE,
    before=NUMBER,
    after=NUMBER,
    p_missed=SHARE,
    p_kept=SHARE,
    p_missed_adjusted=SHARE,
    missed_before={"type": "boolean"},
    answer={"type": "string", "enum": ["missed", "kept", "open"]},
)
SCREENING = _object(
    agreement=SHARE, alarm_before=SHARE, alarm_after=SHARE, psi=NUMBER, ks=NUMBER, risk=NUMBER, place_in_order=_or_null(COUNT)
)
TRIED = _object(method=NAME, label_free={"type": "boolean"}, before=ANY, after=ANY, worked={"type": ["boolean", "null"]})
MONITOR = _object(
    name=NAME,
    task=_or_null(NAME),
    kind=_or_null(NAME),
    layer={"type": ["integer", "null"]},
    hash=HASH,
    required={"type": "boolean"},
    state=STATE,
    reason=TEXT,
    n=COUNT,
    tests=_list(TEST, 20),
    floors=_list(FLOOR, 20),
    needed_n=_or_null(COUNT),
    screening=_or_null(SCREENING),
    repair=_or_null(_object(tried=_list(TRIED, 100), chosen=_or_null(NAME))),
    optional={"standing": _or_null(ANY), "noise": _or_null(_object(update=NUMBER, reading=NUMBER, within={"type": "boolean"}))},
)
COMPARED = _object(
    base=_object(name=NAME, fingerprint=HASH),
    update=_object(
        name=NAME, kind=_or_null(NAME), fingerprint=HASH, size={"type": ["number", "string", "null"], "maxLength": 200}
    ),
    precision=HASH,
    serving=HASH,
    template=HASH,
    optional={"tokens_read": COUNT, "asked": _or_null(_object(n=COUNT, harmful=COUNT, sha256=HASH))},
    settings=_list(_object(what=NAME, base=_or_null(TEXT), update=_or_null(TEXT), same={"type": "boolean"}), 500),
    device=HASH,
    compute=HASH,
    threads=_or_null(COUNT),
    versions={"type": "object", "additionalProperties": {"type": "string", "maxLength": 100}},
    texts=_or_null(_object(n=COUNT, sha256=HASH)),
    labels=_or_null(_object(n=COUNT, positives=COUNT, groups=COUNT, sha256=HASH)),
)
POLICY = _object(
    {"level": SHARE, "seed": _or_null(COUNT), **dict.fromkeys(MARGIN_KEYS, NUMBER)},
    tpr_floor=SHARE,
    fpr_ratio_ceiling=NUMBER,
    auroc_floor=SHARE,
    required=_list(NAME),
    hash=NAME,
    file=_or_null(NAME),
)
COMPARED_BEHAVIOUR = _object(
    name={"type": "string", "pattern": "^(refusals|over-refusals|length|nll|kl)(/[a-z-]{1,40})?$"}, required={"type": "boolean"},
    unit={"type": "string", "enum": ["share", "ratio", "nats"]}, n=COUNT,
    before=INTERVAL, after=INTERVAL, change=INTERVAL, margin={"type": "number", "exclusiveMinimum": 0},
    p_worse=SHARE, p_preserved=SHARE, p_equivalent=SHARE, answer={"type": "string", "enum": list(ANSWERS)},
)  # fmt: skip
BEHAVIOUR = _or_null({"type": "object", "properties": {"measures": _list(COMPARED_BEHAVIOUR, 20)}})
STEPS = _object(
    looked_at=_list(_object(step=COUNT, name=NAME, word=STATE, code=CODE, monitors=_list(ANY)), 1000),
    first_stale=_or_null(COUNT), last_fit=_or_null(COUNT), there=COUNT, how=NAME,
)  # fmt: skip
SAME = {"type": "object", "additionalProperties": {"type": "boolean"}}
EVIDENCE = _object(panels=_list(ANY, 100), same=SAME, behaviour=_list(ANY, 20), seed=COUNT, sha256=NAME)
MOVED = _object(
    by_layer=_list(_object(layer={"type": "integer"}, relative_change=NUMBER, cosine=NUMBER)),
    directions=_list(_object(monitor=NAME, shift_along=NUMBER, angle=NUMBER)),
)
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Revalidation report",
    "description": __doc__.split("\n\n", 1)[1].strip().replace("\n", " "),
    **_object(
        schema_version={"const": VERSION},
        verdict=_object(code=CODE, word=STATE, sentence=TEXT, reason=TEXT),
        compared=COMPARED,
        policy=POLICY,
        monitors=_list(MONITOR),
        next=_list(_object(action=TEXT, monitor=_or_null(NAME), detail=TEXT)),
        triage=_or_null(_object(order=_list(NAME), budget=NUMBER)),
        behaviour=BEHAVIOUR,
        controls=_list(_object(name=NAME, passed={"type": "boolean"}, detail=TEXT)),
        sureness=_or_null(_object(false_alarm=SIMULATED, miss=SIMULATED, n=_or_null(COUNT))),
        moved=_or_null(MOVED),
        notes=_list(TEXT),
        seconds={"type": ["number", "null"], "minimum": 0},
        code=CODE,
        optional={"evidence": _or_null(EVIDENCE), "steps": _or_null(STEPS)},
    ),
}

FAILURE = {  # what `--json` prints where nothing was judged
    **_object(code={"enum": [USAGE, REFUSED, NOT_COMPARABLE, ENVIRONMENT]}, error={"type": "string", "pattern": r"^[^\n]+$"}),
    "additionalProperties": False,
}


@cache
def _validator():
    from jsonschema import Draft202012Validator  # a package of nbformat's; 0.2 s, so only where a report is made or read

    return Draft202012Validator(SCHEMA)


def check_report(report: Any) -> None:
    """Nothing, if the report has the form of `SCHEMA` and agrees with itself; else StudyError names the first faulty path.

    Besides the form: monitors have names of their own, both codes agree, a value lies in its interval, a change is
    after - before, and no key is one under which texts of people or models would stand.
    """
    error = next(_validator().iter_errors(report), None)
    if error is not None:
        raise _faulty(_path(error.absolute_path), _broken(error))
    for path, words in _contradictions(report):
        raise _faulty(path, words)


def _faulty(path: str, words: str) -> StudyError:
    return StudyError(f"report: {path} {words}; make the report again with python -m helpers revalidate", REFUSED)


def _path(parts) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return words.lstrip(".")[:200] or "(whole)"


def _broken(error) -> str:
    """What is wrong, by the schema's own words; values are not shown, they may be somebody's text."""
    if error.validator == "required":
        return "lacks " + next(key for key in error.validator_value if key not in error.instance)
    found = type(error.instance).__name__
    wanted = error.validator_value
    words = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
    return f"is a {found} that breaks {error.validator}: {words}"


def _contradictions(report: Mapping):
    """Path and words of everything that has the right form and cannot be true."""
    names = [monitor["name"] for monitor in report["monitors"]]
    yield from ((f"monitors[{i}].name", "stands twice") for i, name in enumerate(names) if name in names[:i])
    if report["code"] != report["verdict"]["code"]:
        yield "code", f"is {report['code']}, but verdict.code is {report['verdict']['code']}"
    for i, monitor in enumerate(report["monitors"]):
        for j, test in enumerate(monitor["tests"]):
            before, after, value = test["before"], test["after"], test["change"]["value"]
            if None not in (before, after, value) and abs(after - before - value) > ROUNDING:
                yield f"monitors[{i}].tests[{j}].change.value", f"is {value:.6g}, but after - before is {after - before:.6g}"
    yield from _deep(report, "")


def _deep(value: object, path: str):
    """Intervals that do not hold their value, and keys under which a text would stand, at any depth."""
    if isinstance(value, Mapping):
        ends = [end for key in ("low", "value", "high") if isinstance(end := value.get(key), int | float)]
        if len(ends) == 3 and not ends[0] - ROUNDING <= ends[1] <= ends[2] + ROUNDING:
            yield path.lstrip("."), f"has the value {ends[1]:.6g} outside its interval {ends[0]:.6g} to {ends[2]:.6g}"
        for key, item in value.items():
            if key == "evidence":  # arrays without names, which `evidence.kept` checks
                continue
            if key in TEXTUAL and isinstance(item, str | list):
                yield f"{path}.{key}".lstrip("."), "would hold a text; a report keeps hashes and scores only"
            yield from _deep(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _deep(item, f"{path}[{i}]")
