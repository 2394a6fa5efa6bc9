"""Adapters as low-rank factors: norms, angles and their way in and out of PEFT's file format. No d x d matrix is formed."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, shown
from helpers.models import loading
from helpers.models.checkpoints import plain_name
from helpers.models.foreign import fetched

# The fields of PEFT's description whose meaning is known here; any other is refused by its name.
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights")
# which modules have factors, which their tensors say already, and what matters while training alone
SAID = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "base_model_name_or_path", "revision",
    "task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "runtime_config", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
)  # fmt: skip
# options after which an update is more, or other, than scale * B @ A of the modules that it names: off, or refused
NOT_PLAIN = (
    "use_dora", "bias", "lora_bias", "modules_to_save", "fan_in_fan_out", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "megatron_config", "ensure_weight_tying",
)  # fmt: skip
# starts from which only A and B are trained, on the base as it is
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
# starts that subtract what they put into A and B from the base: B @ A on the plain base is another model
OTHER_BASE = ("pissa", "pissa_niter", "olora", "corda", "loftq", "lora_ga")
CONVERT = "convert it with PEFT (save_pretrained(..., path_initial_model_for_weight_conversion=...)), or merge it first"


PATTERNS = (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))  # of single modules, and the field they stand in for


@dataclass(frozen=True)
class LowRank:
    """The update left @ right of one module; the scale alpha / r stands in `left` already."""

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The update as one matrix in float32."""
        return self.left.float() @ self.right.float()

    def norm(self) -> float:
        """Frobenius norm of left @ right, from two r x r products: sqrt(tr(L^T L R R^T)), accumulated in float64."""
        return math.sqrt(max(inner(self, self), 0.0))  # in this order, which keeps NaN

    def scaled(self, factor: float) -> "LowRank":
        """The update times `factor`, which goes into the left factor; the right one is the same tensor."""
        return LowRank(self.left * factor, self.right)


Adapter = dict[str, LowRank]


def inner(a: LowRank, b: LowRank) -> float:
    """Frobenius inner product <L_a R_a, L_b R_b> = tr(L_a^T L_b R_b R_a^T): two thin products, in float64 as the terms cancel."""
    return float(((a.left.double().T @ b.left.double()) * (a.right.double() @ b.right.double().T)).sum())


def cosine(a: LowRank, b: LowRank) -> float:
    """Cosine of two updates of one shape, seen as vectors; NaN where one of them is zero, since it has no direction."""
    norms = a.norm() * b.norm()
    return inner(a, b) / norms if norms > 0 else math.nan


def from_peft(tensors: Mapping[str, Tensor], scale: float) -> Adapter:
    """The adapter in PEFT's tensors (`<module>.lora_A.weight`, `<module>.lora_B.weight`), `scale` folded into the left factor."""
    found = {name: re.fullmatch(r"(.+)\.lora_[AB]\.weight", name) for name in tensors}
    strange = [name for name, match in found.items() if not match]
    if strange or not found:
        what = f"{strange[0]!r}, which is not plain LoRA; merge it first" if strange else "no tensors; save it again"
        raise StudyError(f"adapter holds {what}", REFUSED)
    modules = sorted({match[1] for match in found.values() if match})
    try:
        return {
            m: _pair(m, tensors[f"{m}.lora_B.weight"].float() * scale, tensors[f"{m}.lora_A.weight"].float()) for m in modules
        }
    except KeyError as error:
        raise StudyError(f"adapter lacks {error}; it needs lora_A and lora_B of every module it names", REFUSED) from error


def _pair(module: str, left: Tensor, right: Tensor) -> LowRank:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise StudyError(
            f"adapter factors of {module!r} do not meet: {tuple(left.shape)} and {tuple(right.shape)}; save the adapter again",
            REFUSED,
        )
    return LowRank(left, right)


def _config(adapter: Adapter) -> dict[str, object]:
    """PEFT's description of the adapter at scale 1 (alpha = r): the commonest rank, and a pattern for each module of another.

    A pattern is a regular expression that PEFT also tries behind any prefix; `^` keeps it to the one name.
    """
    if not adapter:
        raise StudyError("adapter names no module; train it with at least one", REFUSED)
    ranks = {name: pair.right.shape[0] for name, pair in sorted(adapter.items())}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank}
    return {"task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "rank_pattern": pattern, "alpha_pattern": pattern,
            "lora_dropout": 0.0, "bias": "none", "target_modules": list(ranks)}  # fmt: skip


def _peft_tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors = {f"base_model.model.{name}.lora_A.weight": pair.right.contiguous() for name, pair in adapter.items()}
    return tensors | {f"base_model.model.{name}.lora_B.weight": pair.left.contiguous() for name, pair in adapter.items()}


def save_adapter(adapter: Adapter, folder: Path, note: Mapping[str, object]) -> None:
    """Writes the adapter in PEFT's format (scale 1, so alpha = r in every module) with its recipe beside it."""
    config = {"peft_type": "LORA", **_config(adapter), "base_model_name_or_path": ""}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_peft_tensors(adapter), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps(note, indent=1, default=str), encoding="utf-8")


def load_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder, each module with its own scale; forms that are not plain LoRA are refused by name."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise StudyError(
            f"{folder.name} has no adapter_model.safetensors; save the adapter with save_pretrained(safe_serialization=True)",
            REFUSED,
        )
    fetched.check_pointers(folder)
    config = _read_config(folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise StudyError(
            f"{folder.name}/adapter_model.safetensors is not safetensors ({error}); save the adapter again", REFUSED
        ) from error
    adapter = from_peft({plain: tensors[name] for plain, name in _plain_names(folder, tensors).items()}, 1.0)
    return {name: pair.scaled(_scale(folder, config, name, pair)) for name, pair in adapter.items()}


def _plain_names(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """An adapter's names of tensors, by what `from_peft` calls them: without prefixes, wrappers and the adapter's own name."""
    found: dict[str, str] = {}
    for name in names:
        bare = plain_name(plain_name(name).removeprefix("base_model.model."))
        plain = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", bare)
        if plain in found:
            raise StudyError(f"{folder.name} holds several adapters ({found[plain]}, {name}); save one of them alone", REFUSED)
        found[plain] = name
    return found


def renamed(folder: Path) -> str:
    """The first name of a tensor in an adapter's folder that PEFT would not have given it; "" where there is none."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        plain = _plain_names(folder, file.keys())
    return next((name for bare, name in plain.items() if name not in {bare, f"base_model.model.{bare}"}), "")


def _scale(folder: Path, config: Mapping, name: str, pair: LowRank) -> float:
    rank, alpha = (_of_module(config, pattern, field, name) for pattern, field in PATTERNS)
    if pair.right.shape[0] != rank:  # its scale alpha / r would be wrong
        raise StudyError(
            f"{folder.name}: {name!r} has rank {pair.right.shape[0]}, its config says {rank:g}; save it again", REFUSED
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping, pattern: str, field: str, name: str) -> float:
    """The rank or alpha that PEFT would give this module: its first matching pattern's, else the common one."""
    from peft.utils.other import get_pattern_key

    patterns = config.get(pattern) or {}
    return float(patterns.get(get_pattern_key(patterns, name), config[field]))


def _read_config(folder: Path) -> dict:
    """The adapter's config, whose fields and patterns have been read once, so that they can be relied on."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = config.get("peft_type", "LORA")
        if kind == "LORA":
            _check_numbers(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise StudyError(
            f"{folder.name} has no readable adapter_config.json with r and lora_alpha; save the adapter again", REFUSED
        ) from error
    if kind != "LORA":
        raise StudyError(f"{folder.name} is of type {kind!r}, only LORA is supported; merge it first", REFUSED)
    for option in NOT_PLAIN:
        if config.get(option) not in (None, False, "none", {}, []):
            raise StudyError(f"{folder.name} uses {option}={config[option]!r}, which is not supported; merge it first", REFUSED)
    _check_known(folder, config)
    return config


def _check_known(folder: Path, config: Mapping) -> None:
    """Raises StudyError for a field that nobody here knows, and for a start after which the base is no longer the base."""
    strange = [key for key, value in config.items() if key not in (*READ, *SAID, *NOT_PLAIN) and value is not None]
    if strange:
        raise StudyError(
            f"{folder.name}/adapter_config.json has the field {shown(strange[0])}, whose meaning is not known here; "
            "merge it first with the PEFT that wrote it (merge_and_unload)",
            REFUSED,
        )
    start = config.get("init_lora_weights", True)
    name = start.lower() if isinstance(start, str) else ""
    if isinstance(start, bool) or start is None or name in PLAIN_STARTS:
        return
    why = "which changes the base weights" if name.startswith(OTHER_BASE) else "which is not known here"
    raise StudyError(f"{folder.name} was started with init_lora_weights={shown(start)}, {why}; {CONVERT}", REFUSED)


def base_of(folder: Path) -> tuple[str, str]:
    """The name of the base that an adapter's folder says it was made for, without its owner and path, and the revision."""
    config = _read_config(folder)
    name = str(config.get("base_model_name_or_path") or "").rstrip("/").replace("\\", "/").rpartition("/")[2]
    return name, str(config.get("revision") or "")


def idle_patterns(folder: Path, adapter: Adapter) -> list[tuple[str, str]]:
    """Field and pattern of what an adapter's config asks for and none of its modules has: perhaps it was meant otherwise."""
    from peft.utils.other import get_pattern_key

    config, found = _read_config(folder), []
    for field, _ in PATTERNS:
        patterns = config.get(field) or {}
        used = {get_pattern_key([pattern], name) for pattern in patterns for name in adapter}
        found += [(field, pattern) for pattern in patterns if pattern not in used]
    targets = config.get("target_modules") or []
    if isinstance(targets, list):
        found += [("target_modules", t) for t in targets if not any(n == t or n.endswith(f".{t}") for n in adapter)]
    elif targets != "all-linear" and not any(re.fullmatch(targets, name) for name in adapter):
        found.append(("target_modules", targets))
    return found


def _check_numbers(config: Mapping) -> None:
    for pattern, field in PATTERNS:
        found = {"": config[field], **(config.get(pattern) or {})}
        for key, value in found.items():
            re.compile(key)
            if not math.isfinite(float(value)) or (field == "r" and float(value) < 1):
                raise ValueError(f"{field} {value}")


def on_grid(adapter: Adapter) -> Adapter:
    """The adapter with its factors rounded to bf16, as an adapter beside a model is stored, in the dtype that they had."""
    return {name: LowRank(loading.on_grid(pair.left), loading.on_grid(pair.right)) for name, pair in adapter.items()}


def check_fits(adapter: Adapter, model: nn.Module) -> None:
    """Raises StudyError, naming the first module and both shapes, where the adapter is not for this model."""
    modules = dict(model.named_modules())
    for name, pair in adapter.items():
        if not hasattr(modules.get(name), "weight"):
            raise StudyError(
                f"adapter names module {name!r}, which the model does not have; it was trained on another base", NOT_COMPARABLE
            )
        ours, theirs = tuple(modules[name].weight.shape), (pair.left.shape[0], pair.right.shape[1])
        if ours != theirs:
            raise StudyError(
                f"adapter does not fit {name!r}: its update is {theirs}, the model's weight is {ours}; use its own base",
                NOT_COMPARABLE,
            )


def attach(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with the adapter beside its weights (through PEFT), adapters in the model's own precision; changes `model`."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = _config(adapter)
    check_fits(adapter, model)
    # a regular expression, as PEFT would take a list's names for the ends of longer ones too
    config["target_modules"] = "|".join(re.escape(name) for name in adapter)
    wrapped = get_peft_model(model, LoraConfig(**config), autocast_adapter_dtype=False)
    set_peft_model_state_dict(wrapped, _peft_tensors(adapter))
    return wrapped.requires_grad_(False).eval()


@torch.no_grad()
def exchange_(wrapped: nn.Module, adapter: Adapter) -> None:
    """Writes other factors of the same modules and ranks into a model that `attach` returned, so that a curve over many
    adapters needs one model; where they differ nothing is written and StudyError names the first module.
    """
    slots = {
        name.removeprefix("base_model.model."): (module.lora_B["default"].weight, module.lora_A["default"].weight)
        for name, module in wrapped.named_modules()
        if "default" in getattr(module, "lora_A", {})
    }
    for name in sorted(slots.keys() | adapter.keys()):
        ours = [tuple(factor.shape) for factor in slots.get(name, ())]
        theirs = [tuple(adapter[name].left.shape), tuple(adapter[name].right.shape)] if name in adapter else []
        if ours != theirs:
            raise StudyError(
                f"adapter has factors {theirs or 'none'} for {name!r}, the attached one {ours or 'none'}; attach it to a fresh"
                " model",
                NOT_COMPARABLE,
            )
    for name, (left, right) in slots.items():
        left.copy_(adapter[name].left)
        right.copy_(adapter[name].right)


@torch.no_grad()
def merge(model: nn.Module, adapter: Adapter, grid: str = "fp32") -> None:
    """Adds the adapter to the model's weights in place: the sum is formed in float32, then rounded to the grid of a precision
    and to what the model holds."""
    check_fits(adapter, model)
    for name, pair in adapter.items():
        weight = model.get_submodule(name).weight
        held = loading.on_grid(weight.float(), grid)  # dequantized weights may be finer, where they are computed with in float32
        weight.copy_(loading.on_grid(held + pair.dense().to(weight.device), grid))
