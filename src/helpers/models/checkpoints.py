"""A checkpoint: fetched, its folder checked to be loaded without running anybody's code, and its tensors by name.

Tensors are read from safetensors one at a time.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from helpers import cache
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, StudyError, shown
from helpers.models.built_in import HubPair
from helpers.models.foreign import fetched, settings_file
from helpers.models.formats import fused_experts

# The families that tests run through every wing. Others are taken by their structure: see `formats.decoders`.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "gpt_neox"})
RUN_CODE = frozenset({"auto_map", "trust_remote_code", "custom_pipelines"})  # fields of a config that name code to be run
# What torch.compile and DistributedDataParallel put into the names of tensors
WRAPPED = {r"^(?:module\.|_orig_mod\.)+": "", r"\._orig_mod\.": "."}
Weights = Callable[[str], Tensor]  # module name -> its weight "d_out d_in" as stored, read on demand


# ---------------------------------------------------------------- the folder


def from_hub(model: str) -> Path:
    """The folder into which the hub id `owner/name@revision` was fetched: safetensors, settings and tokenizer, no code."""
    name, _, revision = model.partition("@")
    if not revision:
        raise StudyError(f"hub model {model!r} has no revision; pin one: {name}@<commit>", REFUSED)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer.model"])
        )
    except GatedRepoError as error:
        how = f"accept its licence at huggingface.co/{name} and log in (hf auth login), or give a local folder"
        raise StudyError(f"hub model {model!r} is gated; {how}", ENVIRONMENT) from error
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise StudyError(
            f"cannot fetch {model!r} from the hub ({type(error).__name__}); check the network, or give a local folder",
            ENVIRONMENT,
        ) from error


def base_of_pair(pair: HubPair) -> Path:
    """The checked folder of a pair's base model; one without a chat template is given the tokenizer of its chat model."""
    base = from_hub(pair.base)
    if has_template(base):
        return check_folder(base)
    chat = from_hub(pair.chat)
    weights = [path for path in base.iterdir() if _of_network(path)]
    spoken = [path for path in chat.iterdir() if path.is_file() and not _of_network(path)]

    def write(folder: Path) -> None:
        for path in (*weights, *spoken):
            (folder / path.name).symlink_to(path.resolve())

    name = "+".join(each.replace("/", "-").lower() for each in (pair.base, pair.chat))
    return check_folder(cache.atomic_folder(cache.cache_folder() / "models" / name, write))


def _of_network(path: Path) -> bool:
    """Whether a file of a model's folder is about the network, not about its tokens."""
    return path.name in {"config.json", "generation_config.json"} or path.name.endswith((".safetensors", ".index.json"))


def check_folder(folder: Path, packed: bool = False) -> Path:
    """The folder, if it is a model that can be loaded without running anybody's code; else an error that says why not.

    packed: whether its weights may be packed into few bits, for whoever unpacks them first.
    """
    config = config_of(folder)
    unsafe = [key for key in _keys(config) if key in RUN_CODE]
    unsafe += [key for key, value in settings_file.attention_fields(config) if not settings_file.is_plain_attention(value)]
    if unsafe:
        raise StudyError(
            f"{folder.name}/config.json asks to run foreign code ({unsafe[0]}); remove that field or use another model", REFUSED
        )
    if config.get("quantization_config") is not None and not packed:
        raise StudyError(f"{folder.name} holds packed weights (quantization_config); give the model in bf16 instead", REFUSED)
    if not isinstance(config.get("model_type"), str | None):
        kind = shown(config["model_type"])
        raise StudyError(f"{folder.name}/config.json: model_type is {kind}, no name; fetch the model again", REFUSED)
    if config.get("model_type") not in FAMILIES and config.get("model_type") not in _causal_types():
        raise StudyError(
            f"{folder.name}: model type {config.get('model_type')!r} is no causal language model of transformers, such as "
            f"{', '.join(sorted(FAMILIES))}; use another model",
            REFUSED,
        )
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
        found = f"only {pickles[0]}, which is a pickle" if pickles else "no weights"
        raise StudyError(
            f"{folder.name} has no .safetensors ({found}); convert it with save_pretrained on a machine you can spare", REFUSED
        )
    fetched.check_indexed(folder, weight_files(folder))
    if not has_template(folder):
        raise StudyError(
            f"{folder.name} has no chat template; use an instruction-tuned model or add chat_template.jinja", REFUSED
        )
    return folder


def sizes(folder: Path) -> dict[str, int | str]:
    """Model type, width and depth of a checked folder's decoder, under transformers' names, whatever its family calls them."""
    config = settings_file.read_config(folder)
    text = config.get_text_config(decoder=True)
    return {"model_type": config.model_type, "num_hidden_layers": text.num_hidden_layers, "hidden_size": text.hidden_size}


def has_template(folder: Path) -> bool:
    """Whether a chat template comes with the tokenizer of a folder."""
    return (folder / "chat_template.jinja").is_file() or bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _causal_types() -> Collection[str]:
    """The model types that transformers has a causal language model for; asked only about those that no test here runs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def config_of(folder: Path) -> dict:
    """The config.json of a folder as it stands there."""
    fetched.check_pointers(folder)
    config = _json(folder / "config.json")
    if not config:
        how = fetched.models_below(folder) or "give the folder of a transformers model"
        raise StudyError(f"{folder.name} has no readable config.json; {how}", REFUSED)
    return config


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


# ---------------------------------------------------------------- the tensors


SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder, in its order; others that lie there are not among them.

    The file that config.json names, else the single file, else the shards of the index, where a later one overrides.
    """
    name = _json(folder / "config.json").get("transformers_weights") or (SINGLE if (folder / SINGLE).is_file() else INDEX)
    path = folder / (name if isinstance(name, str) else "")
    if path.parent != folder:
        raise StudyError(f"{folder.name}: transformers_weights {str(name)[:60]!r} lies outside the folder; remove it", REFUSED)
    if not path.is_file():
        return []
    return _indexed(folder, path) if path.name.endswith(".index.json") else [path]


def beside(folder: Path) -> list[str]:
    """The names of files with weights in a folder that its model is not loaded from, sorted."""
    loaded = {path.name for path in weight_files(folder)}
    index = set() if SINGLE in loaded else {INDEX}
    found = {path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(WEIGHTS)}
    return sorted(found - loaded - index - {"adapter_model.safetensors", "training_args.bin"})


def shards(folder: Path) -> dict[str, Path]:
    """Which of the files that are loaded holds each tensor; a shard that is missing or lies elsewhere is refused."""
    owners: dict[str, Path] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                owners |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise StudyError(
                f"{folder.name}/{path.name} cannot be read ({error}); fetch the whole model again", REFUSED
            ) from error
    return owners


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{folder.name}/{index.name} is not a shard index; fetch the whole model again", REFUSED) from error
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise StudyError(
                f"{folder.name}: shard {path.name!r} is missing or outside the folder; fetch the whole model again", REFUSED
            )
    return paths


def plain_name(key: str) -> str:
    """The name of a tensor without what torch.compile and DistributedDataParallel put into it."""
    for pattern, plain in WRAPPED.items():
        key = re.sub(pattern, plain, key)
    return key


def renaming(folder: Path) -> dict[str, str] | None:
    """The patterns by which transformers takes wrappers out of the names of a folder's tensors; None where there are none."""
    return WRAPPED if any(plain_name(key) != key for key in shapes(folder)) else None


def read_otherwise(folder: Path) -> list[str]:
    """What a user should know of a folder that is read otherwise than it stands: its configuration, names of its tensors."""
    wrapped = next((key for key in shapes(folder) if plain_name(key) != key), None)
    what = f"{folder.name}: {wrapped} and others were read without what torch.compile or DistributedDataParallel put before them"
    return [*settings_file.notes_on(folder), *([what] if wrapped else [])]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that are loaded, by name; files that cannot be read are left to those who load them."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def _spelled(owners: Mapping[str, Path], name: str, prefix: str = "model") -> str | None:
    """How a checkpoint calls a parameter of the model: as it is, saved without its head without the prefix, or wrapped."""
    names = (name, name.removeprefix(f"{prefix}."))
    found = next((key for key in names if key in owners), None)
    return found or next((key for key in owners if plain_name(key) in names), None)


@dataclass(frozen=True)
class Stored:
    """The tensors of a loaded model by the names of its parameters, read from its files on demand, in the values stored there."""

    folder: Path
    owners: Mapping[str, Path]
    keys: Mapping[str, str]  # parameter -> its name in the files; tied ones share one
    made: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)  # those that loading makes of several stored ones

    def __call__(self, name: str) -> Tensor:
        if name in self.made:
            return self.made[name]()
        if name not in self.keys:
            raise StudyError(f"{self.folder.name} has no {name!r}; compare updates of one model", NOT_COMPARABLE)
        return tensor_of(self.owners[self.keys[name]], self.keys[name])


def of_model(folder: Path, model: nn.Module, dtype: torch.dtype) -> Stored:
    """The stored tensors of a model that was loaded from a folder in `dtype`: proved to be the same, parameter by parameter."""
    owners = shards(folder)
    every = dict(model.named_parameters(remove_duplicate=False))  # a tied head under its own name too
    keys = {name: _spelled(owners, name, getattr(model, "base_model_prefix", "model")) for name in every}
    held = {id(every[name]): key for name, key in keys.items() if key}
    found = {name: key or held.get(id(every[name])) for name, key in keys.items()}
    made = {name: _made(name, owners, every[name]) for name, key in found.items() if key is None}
    stored = Stored(folder, owners, {name: key or name for name, key in found.items()}, made)
    for name, key in found.items():
        if not _same(stored(name), every[name], dtype):
            where = owners[key].name if key else "its files"
            raise StudyError(
                f"{folder.name}: {name!r} was loaded with other values than {where} holds; save the model again", REFUSED
            )
    return stored


def _made(name: str, owners: Mapping[str, Path], loaded: Tensor) -> Callable[[], Tensor]:
    """How a parameter that no file holds is made of what they do; the loaded one itself, kept, where that is not known here.

    None is missing: `loading` refuses a model with parameters that transformers found nothing for.
    """
    fused = fused_experts.fused(name, owners, lambda key: tensor_of(owners[key], key))
    return fused or partial(torch.Tensor.detach, loaded)


def _same(stored: Tensor, loaded: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor was loaded as it is stored, or rounded to `dtype`; some modules are kept as they are."""
    held = loaded.detach().cpu().float()
    return any(torch.equal(as_read.float(), held) for as_read in (stored.to(dtype), stored))


def checkpoint(folder: Path) -> Weights:
    """The weights of a (sharded) safetensors checkpoint."""
    owners = shards(folder)
    if not owners:
        raise StudyError(f"{folder.name} holds no safetensors; save the model with safe_serialization=True", REFUSED)
    return partial(_of_checkpoint, folder, owners)


def _of_checkpoint(folder: Path, owners: dict[str, Path], module: str) -> Tensor:
    name = _spelled(owners, f"{module}.weight")
    if name is None:
        _check_promise(folder, f"{module}.weight")
        raise StudyError(f"module {module!r} is not in {folder.name}; base and aligned must be one architecture", NOT_COMPARABLE)
    return tensor_of(owners[name], name)


def _check_promise(folder: Path, name: str) -> None:
    """Refuses a checkpoint whose index promises a tensor that no shard holds: it was not fetched whole."""
    promised = {} if (folder / SINGLE).is_file() else _json(folder / INDEX).get("weight_map", {})
    if key := _spelled(promised, name):
        raise StudyError(
            f"{folder.name}/{promised[key]} cannot give {name!r} as its index says; fetch the whole model again", REFUSED
        )


def stored(path: Path) -> Weights:
    """The weights of one safetensors file that is keyed by module name, as the cache keeps GPTQ's result."""
    return partial(tensor_of, path)


def tensor_of(path: Path, name: str) -> Tensor:
    """One tensor, as a view of the file: pages are read when touched and given back with it, since no handle is kept."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:  # torn, or without the tensor that the index promises
        raise StudyError(
            f"{path.parent.name}/{path.name} cannot give {name!r} ({error}); fetch the whole model again", REFUSED
        ) from error
