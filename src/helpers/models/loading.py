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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from helpers import cache
from helpers.cache import atomic_folder
from helpers.errors import ENVIRONMENT, REFUSED, StudyError
from helpers.models import compute, meter
from helpers.models.built_in import PAIRS, embedded, tiny
from helpers.models.checkpoints import FAMILIES, base_of_pair, check_folder, from_hub, renaming, shapes
from helpers.models.foreign import fetched, settings_file, templates, tokens
from helpers.models.foreign.boundary import foreign
from helpers.models.formats import decoders

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SAFE = {"trust_remote_code": False, "local_files_only": True}
MARK = "\ue000"  # a private-use character, which no template holds
causal, backbone, blocks, logits = decoders.causal, decoders.backbone, decoders.blocks, decoders.logits  # by their structure
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
        return decoders.text_config(self.model).num_hidden_layers

    @property
    def width(self) -> int:
        return decoders.text_config(self.model).hidden_size


def chat_text(tokenizer, prompt: str, system: str = "") -> str:
    """The prompt in the model's own chat template, up to where the reply begins.

    A system message that the template refuses (Gemma) or leaves out opens the prompt instead.
    """
    asked = {"role": "user", "content": prompt}
    if system:
        with suppress(Exception):
            text = templates.rendered(tokenizer, [{"role": "system", "content": system}, asked])
            if system.strip() in text:
                return text
        asked["content"] = f"{system}\n\n{prompt}"
    try:
        return templates.rendered(tokenizer, [asked])
    except StudyError:
        raise
    except Exception as error:
        raise templates.failure(tokenizer, error, asked["content"]) from error


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; its end of text is the token with which the chat template closes a reply.

    The two need not be one: Gemma's template closes with `<end_of_turn>`, where its tokenizer has `<eos>`.
    """
    tokenizer = tokens.load_tokenizer(folder)
    closing = _closing(tokenizer)
    if closing not in {None, tokenizer.eos_token}:
        tokenizer.eos_token = closing
    if tokenizer.eos_token is None:
        raise StudyError(f"{folder.name}: no token ends a reply; name one as eos_token in tokenizer_config.json", REFUSED)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _closing(tokenizer) -> str | None:
    """The special token behind a reply in the chat template; None where there is none, or the template fails."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    try:
        behind = templates.rendered(tokenizer, turns, opened=False).rpartition(MARK)[2].lstrip()
    except Exception:  # why it fails is said where a text is put into it
        return None
    first = encode_text(tokenizer, behind)[:1]
    known = {**tokenizer.added_tokens_decoder}
    return str(known[first[0]]) if first and first[0] in known and known[first[0]].special else None


def encode_text(tokenizer, text: str, limit: int | None = None) -> list[int]:
    """Token ids of a text that already carries its special tokens; cut to `limit` tokens from the right."""
    with foreign(f"{templates.owner(tokenizer)}: its tokenizer cannot read a text", tokens.AGAIN):
        return tokenizer(text, add_special_tokens=False)["input_ids"][:limit]


def check_ids(language: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
    """Raises StudyError, naming the token, where one of the rows has an id that the model's embedding table does not."""
    table, largest = causal(language.model).get_input_embeddings(), max((max(row, default=0) for row in rows), default=0)
    tokens.check_largest(templates.owner(language.tokenizer), language.tokenizer, largest, table.weight.shape[0])


def document_ids(tokenizer, text: str, limit: int | None = None) -> list[int]:
    """Token ids of a plain text that opens a sequence, behind what the tokenizer itself puts first.

    Gemma and Llama 3 put a `<bos>` there, without which they read badly.
    """
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return [*(first if first == [tokenizer.bos_token_id] else []), *encode_text(tokenizer, text)][:limit]


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


# ---------------------------------------------------------------- where a base model comes from


MODELS: dict[str, Callable[[], Path]] = {"embedded": embedded, "tiny": tiny}


def base_folder(model: str) -> Path:
    """The checked folder of a model: a name in `MODELS` or `PAIRS`, a local folder, or a hub id `owner/name@revision`."""
    if model in MODELS:
        return MODELS[model]()
    if model in PAIRS:
        return base_of_pair(PAIRS[model])
    if os.path.isdir(model):
        return check_folder(Path(model))
    if not os.path.isfile(model) and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", model):
        return check_folder(from_hub(model))
    if instead := fetched.instead_of(Path(model)):
        raise StudyError(instead, REFUSED)
    known = ", ".join([*MODELS, *PAIRS])
    raise StudyError(f"unknown model {model!r}; choose one of {known}, a folder that exists, or a hub id owner/name@revision")


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


def load(folder: Path, grid: str = "bf16", on: str = "cpu", linear: bool = True) -> LanguageModel:
    """The model and tokenizer of a folder, in evaluation mode and without gradients; a damaged one is refused by name.

    Its weights have values on the `grid` of a precision. They are held in bf16 where that is also what the machine computes
    in (`compute.current`), else in float32, which holds the same values. `linear`: refuse blocks with matrices that are no linear
    modules', as wings must that change a model module by module; only to be read, it may have any.
    """
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, target = Path(folder), device(on)
    report: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # told in `info`, and refused below
    config = settings_file.read_config(folder)
    settings_file.check_shapes(folder, config, shapes(folder))
    report |= {"config": config, "key_mapping": renaming(folder)}
    with foreign(f"{folder.name} cannot be loaded", "save or fetch the model again"):
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=GRIDS[grid], use_safetensors=True, **SAFE, **report)
    _complete(folder, info)
    tokenizer = read_tokenizer(folder)
    model.generation_config = type(model.generation_config)(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    if compute.current(target).name == "fp32":
        model = model.float()
    model = model.to(target).eval().requires_grad_(False)
    if model.config.model_type not in FAMILIES:
        decoders.check_built(folder.name, model, linear)
    settings_file.check_runs(folder, backbone(model), partial(DynamicCache, config=decoders.text_config(model)))
    meter.attach(model, blocks(model))
    language = LanguageModel(model, tokenizer, folder)
    check_ids(language, [[tokenizer.eos_token_id, tokenizer.pad_token_id]])
    return language


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
