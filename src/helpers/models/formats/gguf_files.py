"""GGUF files: an update that llama.cpp serves, put back on the names and settings of the base it was made from.

Codes are dequantized by the package `gguf`, and transformers knows which tensor of a file is which module. Tokens are the base's:
the file's own vocabulary must be the same, token by token, and its chat template, where it has one, replaces the base's.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helpers import cache
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import checkpoints
from helpers.models.formats.packed_folders import TOLD, UNPACKED, Unpacked, write_shards
from helpers.models.loading import identity, read_tokenizer

NO_SETTINGS = frozenset({"model_type", "architectures", "_model_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id"})
RENAMED = {"rope_theta": "rope_parameters"}  # under which field transformers keeps it today


def gguf_in(path: Path) -> list[Path]:
    """The .gguf file that a path is, or those of a folder without safetensors, in the order of their names."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".gguf" else []
    if not path.is_dir() or list(path.glob("*.safetensors")):
        return []
    return sorted(other for other in path.iterdir() if other.suffix.lower() == ".gguf" and other.is_file())


def gguf_file(path: Path) -> Path | None:
    """The one .gguf file that a path is, or that a folder without safetensors holds; several are refused by name."""
    found = gguf_in(path)
    if len(found) > 1:
        raise StudyError(f"{path.name} holds {len(found)} .gguf files, such as {found[0].name}; give one of them", REFUSED)
    return found[0] if found else None


def on_base(path: Path, base: Path) -> Unpacked:
    """A plain folder in the cache: the file's weights in bf16 under the names of the base's modules, and the base's tokenizer."""
    stamp = path.stat()
    name = f"{path.stem}{UNPACKED}{identity(base).rpartition('-')[2]}-{stamp.st_size}-{stamp.st_mtime_ns}"
    made = cache.atomic_folder(cache.cache_folder() / "models" / name, lambda target: _write(path, base, target))
    told = json.loads((made / TOLD).read_text(encoding="utf-8"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in told["types"].items())
    what = f"{path.name} was read as the bf16 weights that its tensors stand for ({kinds}), with the tokenizer of {base.name}"
    return Unpacked(made, f"{what}; llama.cpp also rounds activations, which no weight shows")


def _write(path: Path, base: Path, target: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    fields, types = _read(path)
    _check_vocabulary(path, base, fields.get("tokenizer.ggml.tokens"))
    try:
        found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16)
    except Exception as error:  # whatever a foreign file makes it raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:100]
        raise StudyError(f"{path.name} cannot be read ({reason}); convert it to safetensors and give that", REFUSED) from error
    missing = sorted({*dict(model.named_parameters())} - {*found["tensors"]} - {"lm_head.weight"})
    if missing:
        what = f"{path.name} has no tensor for {missing[0]}, one of {len(missing)} of the base's parameters"
        raise StudyError(f"{what}; give an update of this base", NOT_COMPARABLE)
    for other in sorted(base.iterdir()):
        if other.is_file() and not other.name.endswith((".safetensors", ".index.json", ".gguf", ".bin")):
            shutil.copyfile(other, target / other.name)
    embedding = next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    own = _settings(checkpoints.config_of(base), {**found["config"], "vocab_size": len(found["tensors"][embedding])})
    (target / "config.json").write_text(json.dumps(own, indent=2), encoding="utf-8")
    if template := fields.get("tokenizer.chat_template"):
        _only_template(target, template)
    write_shards(target, ((name, tensor.to(torch.bfloat16)) for name, tensor in found["tensors"].items()))
    (target / TOLD).write_text(json.dumps({"types": types}), encoding="utf-8")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Vocabulary and template of a file, and its types of tensors with how often each stands there."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        wanted = ("tokenizer.ggml.tokens", "tokenizer.chat_template")
        fields = {name: reader.fields[name].contents() for name in wanted if name in reader.fields}
    except Exception as error:  # whatever a foreign file makes it raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:100]
        raise StudyError(f"{path.name} is no GGUF file ({reason}); fetch it again", REFUSED) from error
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return fields, dict(sorted(types.items()))


def _check_vocabulary(path: Path, base: Path, tokens: list[str] | None) -> None:
    """Raises StudyError where a token of the base is another in the file; what a file adds behind them is padding."""
    tokenizer = read_tokenizer(base)
    ours = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    theirs = tokens or []
    odd = next((i for i, token in enumerate(ours) if i >= len(theirs) or theirs[i] != token), None)
    if odd is not None:
        has = f"is another in {path.name}" if odd < len(theirs) else f"is not in {path.name}, which has {len(theirs)}"
        raise StudyError(f"token {odd} of {base.name} {has}; give an update of this base with its own tokenizer", NOT_COMPARABLE)


def _settings(base: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The base's settings with what the file says otherwise; numbers that float32 has rounded are the base's."""
    found = dict(base)
    for name, value in theirs.items():
        if isinstance(found.get(RENAMED.get(name, "")), dict):
            inner = found[RENAMED[name]]
            found[RENAMED[name]] = {**inner, name: _nearest(inner.get(name), value)}
        elif name in found and name not in NO_SETTINGS:
            found[name] = _nearest(found[name], value)
    return found


def _nearest(ours: Any, theirs: Any) -> Any:
    numbers = isinstance(ours, float | int) and isinstance(theirs, float | int)
    return ours if numbers and math.isclose(ours, theirs, rel_tol=1e-6) else theirs


def _only_template(target: Path, template: str) -> None:
    """The file's own chat template in place of every one of the base."""
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        kept = {key: value for key, value in json.loads(settings.read_text(encoding="utf-8")).items() if key != "chat_template"}
        settings.write_text(json.dumps(kept), encoding="utf-8")
    (target / "chat_template.json").unlink(missing_ok=True)
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
