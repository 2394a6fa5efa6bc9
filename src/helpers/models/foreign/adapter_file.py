"""Adapters of other people: each field of adapter_config.json that is read here, held against the type that PEFT gives it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.errors import REFUSED, StudyError, shown
from helpers.models.foreign.boundary import read_json

NAME = "adapter_config.json"
SECONDS = 10.0  # that its patterns may take, which take good ones a thousandth
AGAIN = "save the adapter again with the PEFT that wrote it"
FLAGS = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "inference_mode", "ensure_weight_tying")


def check_adapter(folder: Path) -> None:
    """Raises StudyError for the first field of an adapter's settings that is missing or of a type that PEFT never writes."""
    if not (folder / NAME).is_file():
        raise StudyError(f"{folder.name} has no {NAME}; {AGAIN}", REFUSED)
    found = read_json(folder / NAME)
    if not isinstance(found, dict):
        raise StudyError(f"{folder.name}/{NAME} is a {type(found).__name__}, no JSON object; {AGAIN}", REFUSED)
    kind = found.get("peft_type", "LORA")
    if kind != "LORA":
        raise StudyError(f"{folder.name}/{NAME}: peft_type is {shown(kind)}, only LORA is supported; merge it first", REFUSED)
    for name, (what, fits) in FIELDS.items():
        if name not in found and name in NEEDED:
            raise StudyError(f"{folder.name}/{NAME} has no {name}, which is {what}; {AGAIN}", REFUSED)
        if name in found and not fits(found[name]):
            raise StudyError(f"{folder.name}/{NAME}: {name} is {shown(found[name])}, not {what}; {AGAIN}", REFUSED)


def _number(value: Any) -> bool:
    """Whether a value is a finite number in the range of float32, in which factors are scaled."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _rank(value: Any) -> bool:
    return isinstance(value, int) and _number(value) and value >= 1


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _pattern(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _by_pattern(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value maps patterns of modules to what fits."""
    return lambda value: (
        value is None or (isinstance(value, dict) and all(_pattern(key) and fits(one) for key, one in value.items()))
    )


def _modules(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return value is None or _pattern(value)


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


NEEDED = ("r", "lora_alpha")
# what each field is, as it is said, and whether a value is that
FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number from 1", _rank),
    "lora_alpha": ("a number that float32 holds", _number),
    "rank_pattern": ("a mapping of patterns to whole numbers from 1", _by_pattern(_rank)),
    "alpha_pattern": ("a mapping of patterns to numbers", _by_pattern(_number)),
    "target_modules": ("a pattern or a list of names", _modules),
    "exclude_modules": ("a pattern or a list of names", _modules),
    "base_model_name_or_path": ("a name", _text),
    "revision": ("a name", _text),
    "bias": ("none, all or lora_only", lambda value: value in (None, "none", "all", "lora_only")),
    **dict.fromkeys(FLAGS, ("true or false", _flag)),
}
