"""Models: where a base model comes from, how it is loaded safely, and how text becomes tokens.

`MODELS` names the models that need nothing but this project; a local folder or a hub id (`owner/name@revision`) works
in the same places. Only safetensors are read, code that comes with a model is never run, and every model is a plain
transformers model afterwards.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from helpers import cache
from helpers.cache import atomic_folder
from helpers.errors import ENVIRONMENT, REFUSED, StudyError
from helpers.models import compute, meter
from helpers.models.built_in import embedded, tiny

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"})
GRIDS = {"bf16": torch.bfloat16, "fp32": torch.float32}  # the values that stored weights may have; not what is computed in


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its tokenizer; `folder` is where its weights were read."""

    model: nn.Module
    tokenizer: Any
    folder: Path

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def depth(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.model.config.hidden_size


def chat_text(tokenizer, prompt: str, system: str = "") -> str:
    """The prompt in the model's own chat template, up to where the reply begins."""
    from jinja2 import TemplateError

    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # some templates refuse a system message, and ours may come with one
        raise StudyError(
            f"the model's chat template fails ({error}); use another model or mend chat_template.jinja", REFUSED
        ) from error


def encode_text(tokenizer, text: str, limit: int | None = None) -> list[int]:
    """Token ids of a text that already carries its special tokens; cut to `limit` tokens from the right."""
    return tokenizer(text, add_special_tokens=False)["input_ids"][:limit]


def pad(rows: Sequence[Sequence[int]], fill: int, side: str = "right") -> Int[Tensor, "batch position"]:
    """The rows as one matrix, padded on `side`; a causal model needs no mask for what is padded on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor(
        [[*row, *[fill] * (width - len(row))] if side == "right" else [*[fill] * (width - len(row)), *row] for row in rows]
    )


def length_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`, sorted by length (ties by index): the same for every variant.

    bf16 results move with the batch a text sits in, so a paired comparison needs identical batches.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def causal(model: nn.Module) -> nn.Module:
    """The transformers model itself, also where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits(causal: nn.Module, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocabulary"]:
    """Logits of final hidden states in float32, soft-capped where the family does so (Gemma 2)."""
    scores, cap = causal.lm_head(hidden).float(), getattr(causal.config, "final_logit_softcapping", None)
    return cap * torch.tanh(scores / cap) if cap else scores


# ---------------------------------------------------------------- where a base model comes from


MODELS: dict[str, Callable[[], Path]] = {"embedded": embedded, "tiny": tiny}


def base_folder(model: str) -> Path:
    """The checked folder of a model: a name in `MODELS`, a local folder, or a hub id `owner/name@revision`."""
    if model in MODELS:
        return MODELS[model]()
    if os.path.isdir(model):
        return check_folder(Path(model))
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", model):
        return check_folder(_from_hub(model))
    raise StudyError(
        f"unknown model {model!r}; choose one of {', '.join(MODELS)}, a folder that exists, or a hub id owner/name@revision"
    )


def _from_hub(model: str) -> Path:
    name, _, revision = model.partition("@")
    if not revision:
        raise StudyError(f"hub model {model!r} has no revision; pin one: {name}@<commit>", REFUSED)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer.model"])
        )
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise StudyError(
            f"cannot fetch {model!r} from the hub ({type(error).__name__}); check the network, or give a local folder",
            ENVIRONMENT,
        ) from error


def check_folder(folder: Path) -> Path:
    """The folder, if it is a model that can be loaded without running anybody's code; else an error that says why not."""
    config = _config(folder)
    unsafe = [key for key in _keys(config) if _runs_code(key)]
    if unsafe:
        raise StudyError(
            f"{folder.name}/config.json asks to run foreign code ({unsafe[0]}); remove that field or use another model", REFUSED
        )
    if config.get("model_type") not in FAMILIES:
        raise StudyError(
            f"{folder.name}: model type {config.get('model_type')!r} is not among {', '.join(sorted(FAMILIES))}", REFUSED
        )
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
        found = f"only {pickles[0]}, which is a pickle" if pickles else "no weights"
        raise StudyError(
            f"{folder.name} has no .safetensors ({found}); convert it with save_pretrained on a machine you can spare", REFUSED
        )
    if not (folder / "chat_template.jinja").is_file() and "chat_template" not in _json(folder / "tokenizer_config.json"):
        raise StudyError(
            f"{folder.name} has no chat template; use an instruction-tuned model or add chat_template.jinja", REFUSED
        )
    return folder


def _runs_code(key: str) -> bool:
    """Whether this field of a config can name code to fetch and run; attention kernels can be named by a hub repository."""
    kernel = key.lstrip("_").startswith("attn_implementation") and not key.endswith("_autoset")
    return kernel or key in {"auto_map", "trust_remote_code", "custom_pipelines"}


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> dict:
    config = _json(folder / "config.json")
    if not config:
        raise StudyError(f"{folder} has no readable config.json; give the folder of a transformers model", REFUSED)
    return config


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def identity(folder: Path) -> str:
    """What stands for a model in a content key: the name of a folder of ours, else also where and when its files were written."""
    if folder.parent == cache.cache_folder() / "models":
        return folder.name  # named by what it was made of
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()]
    return f"{folder.name}-{hashlib.sha256(repr((str(folder.resolve()), files)).encode()).hexdigest()[:12]}"


def content_hash(model: nn.Module) -> str:
    """sha256 of a model in memory: its configuration, and every parameter with its name, type and shape."""
    spoken = {"_name_or_path", "transformers_version"}  # where it was read, and by what: not what it computes
    config = {name: value for name, value in model.config.to_dict().items() if name not in spoken}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------- loading


def device(name: str = "cpu") -> torch.device:
    """The torch device of that name; a GPU that is asked for and absent is an error, never a silent CPU run."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise StudyError(f"device {name!r} was asked for, but torch sees no GPU; use device=cpu or the cpu profile", ENVIRONMENT)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise StudyError(f"unknown device {name!r}; use cpu or cuda") from error


def on_grid(tensor: Tensor, grid: str = "bf16") -> Tensor:
    """The tensor's nearest values on the grid of a precision, in its own dtype."""
    return tensor.to(GRIDS[grid]).to(tensor.dtype)


def rounded_(model: nn.Module) -> nn.Module:
    """The same model, its weights rounded to bf16 as they are stored, and held in what this machine computes in."""
    for weight in model.parameters():  # and no buffer: rotary frequencies are float32 at any precision
        weight.data = weight.data.to(torch.bfloat16).to(compute.current(weight.device).dtype)
    return model


def load(folder: Path, grid: str = "bf16", on: str = "cpu") -> LanguageModel:
    """The model and tokenizer of a folder, in evaluation mode and without gradients; a damaged one is refused by name.

    Its weights have values on the `grid` of a precision. They are held in bf16 where that is also what the machine computes
    in (`compute.current`), else in float32, which holds the same values.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, target = Path(folder), device(on)
    safe = {"trust_remote_code": False, "local_files_only": True}
    report = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # told in `info`, and refused below
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=GRIDS[grid], use_safetensors=True, **safe, **report)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise StudyError(f"{folder.name} cannot be loaded ({reason}); save or fetch the model again", REFUSED) from error
    _complete(folder, info)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.generation_config = type(model.generation_config)(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    if compute.current(target).name == "fp32":
        model = model.float()
    meter.attach(model, list(getattr(causal(model).model, "layers", ())))
    return LanguageModel(model.to(target).eval().requires_grad_(False), tokenizer, folder)


def _complete(folder: Path, info: dict) -> None:
    """Refuses weights that lack a tensor or hold one of another shape: transformers would fill them with random numbers."""
    wrong = [(name, f"has shape {tuple(found)}, not {tuple(wanted)}") for name, found, wanted in sorted(info["mismatched_keys"])]
    wrong += [(name, "is missing") for name in sorted(info["missing_keys"])]
    if wrong:
        name, reason = wrong[0]
        raise StudyError(f"{folder.name} does not hold the model of its config: {name} {reason}; save or fetch it again", REFUSED)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs the block with `count` threads in torch and in numpy's linear algebra, and restores the numbers after it.

    Thousands of small products are faster on one thread, where none waits for another, and do not depend on the machine.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def save(language: LanguageModel, folder: Path) -> Path:
    """The folder, holding the model (safetensors) and its tokenizer; written whole or not at all."""

    def write(temporary: Path) -> None:
        language.model.save_pretrained(temporary)
        language.tokenizer.save_pretrained(temporary)

    return atomic_folder(folder, write)
