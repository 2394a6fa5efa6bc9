"""Settings: everything but the weights that a model's answer depends on, of base and update, compared field by field.

Configuration and generation settings are compared as transformers reads them, so that a default that is written out equals one
that is not. Every field counts but those of `IDLE`, which are known to change nothing of a forward pass in evaluation mode.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import loading
from helpers.models.foreign import settings_file
from helpers.models.foreign.boundary import foreign
from helpers.models.foreign.culprit import field_at_fault
from helpers.monitors import readings
from helpers.monitors.exchange.plain_texts import as_read

IDLE = frozenset({
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "id2label", "label2id", "problem_type", "initializer_range", "attention_dropout",
    "hidden_dropout", "embd_dropout", "resid_dropout", "chunk_size_feed_forward", "pretraining_tp", "tokenizer_class",
    "_from_model_config", "unsloth_version", "unsloth_fixed",
})  # fmt: skip
TOKENS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "vocab.txt",
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "chat_template.json")
LONGEST = 120  # characters of a value that is shown


@dataclass(frozen=True)
class Setting:
    """One field of base and update, as text; None where a side has no such field."""

    what: str
    base: str | None
    update: str | None
    same: bool


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder as models are read with it; one that cannot be loaded is refused by name."""
    return loading.read_tokenizer(folder)


def reads(folder: Path, template: bool = True) -> str:
    """The fingerprint of a folder's tokenizer and chat template, or of its tokenizer without a template."""
    return readings.fingerprint(as_read(tokenizer_of(folder), template))


def adapters_tokenizer(folder: Path, base: Path) -> Any | None:
    """The tokenizer with which an adapter's folder asks to be read: its own files in place of the base's; None if it has none.

    A template of its own, wherever it stands, replaces every template of the base.
    """
    own = [folder / name for name in (*TOKENS, *TEMPLATES) if (folder / name).is_file()]
    if not own:
        return None
    with tempfile.TemporaryDirectory() as name:
        both = Path(name)
        for path in (base / name for name in (*TOKENS, "config.json") if (base / name).is_file()):
            shutil.copyfile(path, both / path.name)
        for path in own:
            shutil.copyfile(path, both / path.name)
        if not _has_template(folder):
            _take_template(base, both)
        else:
            _only_own_template(folder, both)
        try:
            return tokenizer_of(both)
        except StudyError as error:
            raise StudyError(str(error).replace(both.name, folder.name), error.code) from error


def _has_template(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TEMPLATES) or bool(_read(folder / TOKENS[1]).get("chat_template"))


def _take_template(base: Path, both: Path) -> None:
    """The base's template where the adapter has none."""
    for path in (base / name for name in TEMPLATES if (base / name).is_file()):
        shutil.copyfile(path, both / path.name)
    told = _read(base / TOKENS[1]).get("chat_template")
    if told:
        _write(both / TOKENS[1], {**_read(both / TOKENS[1]), "chat_template": told})


def _only_own_template(folder: Path, both: Path) -> None:
    """Without the base's template in the settings of its tokenizer, which would stand beside the adapter's."""
    settings, own = _read(both / TOKENS[1]), _read(folder / TOKENS[1]).get("chat_template")
    settings.pop("chat_template", None)
    _write(both / TOKENS[1], {**settings, **({"chat_template": own} if own else {})})


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


# ---------------------------------------------------------------- compared


def compare_folders(base: Path, update: Path) -> list[Setting]:
    """Configuration, generation settings and tokenizer of two models' folders, field by field."""
    found: list[Setting] = []
    for what, of in (("config", _config_of), ("generation", _generation_of)):
        found += _fields(what, of(base), of(update))
    return found + compare_tokenizers(tokenizer_of(base), tokenizer_of(update))


def compare_tokenizers(base: Any, update: Any) -> list[Setting]:
    """The parts of two tokenizers, by their hashes."""
    sides = (readings.tokenizer_parts(base), readings.tokenizer_parts(update))
    return [Setting(f"tokenizer: {name}", one, sides[1][name], one == sides[1][name]) for name, one in sides[0].items()]


def _fields(what: str, base: Mapping[str, Any], update: Mapping[str, Any]) -> Iterator[Setting]:
    first, second = dict(_flat(base)), dict(_flat(update))
    for name in sorted({*first, *second}):
        old, new = first.get(name), second.get(name)
        yield Setting(f"{what}: {name}"[:LONGEST], _shown(old), _shown(new), old == new)


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested fields; what is idle or undefined is left out."""
    for key, inner in value.items():
        name = f"{path}.{key}" if path else str(key)
        if key in IDLE or inner is None:
            continue
        if isinstance(inner, Mapping):
            yield from _flat(inner, name)
        else:
            yield name, inner


def _shown(value: object) -> str | None:
    text = None if value is None else json.dumps(value, default=str)
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _config_of(folder: Path) -> dict[str, Any]:
    """The configuration as transformers reads it."""
    return settings_file.read_config(folder).to_dict()


def _generation_of(folder: Path) -> dict[str, Any]:
    """The generation settings; without a file of them those that follow from the configuration."""
    from transformers import GenerationConfig

    own = folder / "generation_config.json"

    def of(place: Path) -> dict[str, Any]:
        return GenerationConfig.from_pretrained(place, local_files_only=True).to_dict()

    with foreign(f"{folder.name}/{own.name} cannot be read", settings_file.MEND, partial(field_at_fault, folder, [own.name], of)):
        config = settings_file.read_config(folder)
        found = of(folder) if own.is_file() else GenerationConfig.from_model_config(config).to_dict()
    return {key: value for key, value in found.items() if key != "bos_token_id"}  # a reply to a prompt never needs it


def check_reading(folder: Path, own: Any, expected: str, template: bool = True) -> None:
    """Raises StudyError where an update reads text otherwise than the base does: scores could not be compared."""
    theirs = readings.fingerprint(as_read(own, template))
    if theirs != expected:
        raise StudyError(
            f"{folder.name}: its tokenizer and template are {theirs}, the base's {expected}; compare updates that read alike",
            NOT_COMPARABLE,
        )
