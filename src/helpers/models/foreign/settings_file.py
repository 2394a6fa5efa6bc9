"""Configurations of other people: read as transformers reads them, held against the stored weights before anything is built.

A wrong number in a configuration can ask for more memory than there is, so that shapes are compared on the meta device first.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.errors import REFUSED, StudyError, shown
from helpers.models.foreign.boundary import foreign, read_json
from helpers.models.foreign.culprit import field_at_fault

CONFIG = "config.json"
MEND = "mend that file, or save or fetch the model again"
ATTENTIONS = frozenset(
    {"eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flash_attention"}
)  # how attention is computed, by the names that transformers has itself; any other may be a repository with code
MANY = re.compile(r"(?:layers?|blocks|experts)$")  # fields that make as many modules
MOST_MODULES = 1_000


def attention_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """The fields, at any depth, that say how attention is computed, with their values."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if str(key).lstrip("_").startswith("attn_implementation") and not str(key).endswith("_autoset"):
                yield str(key), value
            else:
                yield from attention_fields(value)
    elif isinstance(config, list):
        for value in config:
            yield from attention_fields(value)


def is_plain_attention(value: Any) -> bool:
    """Whether a value of such a field names nothing but ways of transformers itself; of sub-models by a mapping."""
    if isinstance(value, Mapping):
        return all(map(is_plain_attention, value.values()))
    return value is None or (isinstance(value, str) and value.rpartition("|")[2] in ATTENTIONS)


def notes_on(folder: Path) -> list[str]:
    """What a user should know of a configuration that is read otherwise than it stands."""
    named = [f"{key} {shown(value)}" for key, value in attention_fields(read_json(folder / CONFIG)) if value]
    left = f"{folder.name}/{CONFIG} names how attention was computed ({', '.join(named[:2])}); it is computed as transformers"
    return [f"{left} does by default here"] if named else []


def read_config(folder: Path) -> Any:
    """The configuration of a folder as transformers reads it, with attention computed in the default way."""
    raw = read_json(folder / CONFIG)
    _check_counts(folder, raw)
    with foreign(f"{folder.name}/{CONFIG} cannot be read", MEND, partial(field_at_fault, folder, (CONFIG,), _built)):
        config = _parsed(folder)
    if any(value for _, value in attention_fields(raw)):
        config._attn_implementation = None
        for name in getattr(config, "sub_configs", {}):
            getattr(config, name)._attn_implementation = None
    return config


def _check_counts(folder: Path, raw: Any) -> None:
    if not isinstance(raw, dict):
        raise StudyError(f"{folder.name}/{CONFIG} is a {type(raw).__name__}, no JSON object; {MEND}", REFUSED)
    for key, value in raw.items():
        if isinstance(value, dict):
            _check_counts(folder, value)
        elif MANY.search(str(key)) and isinstance(value, int | float) and value > MOST_MODULES:
            raise StudyError(f"{folder.name}/{CONFIG}: {key} is {shown(value)}, more than {MOST_MODULES}; {MEND}", REFUSED)


def _parsed(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _built(folder: Path) -> nn.Module:
    _check_counts(folder, read_json(folder / CONFIG))
    return empty_model(_parsed(folder))


def empty_model(config: Any) -> nn.Module:
    """The modules of a configuration's causal language model with their shapes, without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_shapes(folder: Path, config: Any, stored: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """The empty model of a configuration, whose tensors have the shapes of those that are stored under the same names.

    stored: shapes by name. Tensors that transformers makes of several stored ones have other names and are left to it.
    """
    with foreign(f"{folder.name}/{CONFIG} makes no model", MEND, partial(field_at_fault, folder, (CONFIG,), _built)):
        model = empty_model(config)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in sorted(wanted.items()):
        if name in stored and stored[name] != shape and _numel(stored[name]) != _numel(shape):
            raise StudyError(
                f"{folder.name} does not hold the model of its config: {name} has shape {stored[name]}, not {shape}; save or "
                "fetch it again",
                REFUSED,
            )
    asked, held = (sum(map(_numel, shapes.values())) for shapes in (wanted, stored))
    if asked > 20 * held + 2**20:  # packed weights hold sixteen numbers in one at most
        raise StudyError(
            f"{folder.name} does not hold the model of its config, which has {asked} numbers; its files have {held}; save or "
            "fetch it again",
            REFUSED,
        )
    return model


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@torch.no_grad()
def check_runs(folder: Path, network: nn.Module, cache: Any) -> None:
    """Raises StudyError where a loaded network cannot read two tokens, naming the field of its configuration at fault."""
    ids = torch.tensor([[0, 0]], device=next(network.parameters()).device)
    with foreign(f"{folder.name} cannot read a text", MEND, partial(field_at_fault, folder, (CONFIG,), _runs)):
        network(input_ids=ids, past_key_values=cache(), use_cache=True)


def _runs(folder: Path) -> None:
    """Builds the model without weights and lets it read two tokens."""
    from transformers import DynamicCache

    model = _built(folder)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"), past_key_values=DynamicCache(config=model.config))
