"""SaLoRA: low-rank training that cannot write into the output directions which safety prompts use (Li et al., ICLR 2025).

For each linear module W of the blocks, with Y = X W^T what it puts out (its bias left out):

    V_s = top right singular vectors of Y on safe replies       C = I - V_s V_s^T, a projector that stays fixed
    V_t = the same of Y on the replies of the task's rows       W ~ U S V^T, its top r
    A0 = S^1/2 V^T   and   B0 = V_t V_t^T U S^1/2               (W - C B0 A0) x + C B A x, with B, A trained from B0, A0

So the model starts as it was, and V_s^T times every update is 0: at given inputs, what a module puts out keeps its place along
V_s. (Inputs that earlier blocks moved still move it, and outside V_s nothing is promised.)

Both are read at the tokens of the reply alone: the authors' code masks its prompts out of what it decomposes. What a module
puts out on the prompts lies elsewhere, and protecting that leaves the refusals open.

No weight is written to: the update C (B A - B0 A0) stays beside W, which may be quantized, as one plain LoRA of rank 2r and
scale 1. Its factors could be [C B, -C B0] and [A; A0]; ours are the equal [C (B - B0), C B0] and [A; A - A0]. The first pair is
a difference of two products of the size of W's own top r directions: in bf16 it rounds by up to a tenth of what a short training
moves, and need not be 0 at step 0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.data.text_rows import Row
from helpers.errors import StudyError
from helpers.models import loading
from helpers.models.loading import LanguageModel
from helpers.updates import quantizers, training
from helpers.updates.training import Recipe, TokenizedRow, Tuned

KIND = "salora"
DIRECTIONS = 32  # r_s = r_t of the paper; at most half of a module's outputs, or C would leave a small module nothing to learn
ROWS, BATCH_TOKENS = 64, 3072  # texts whose outputs are looked at, of each sort: as many as one batch of so many tokens holds
TOKENS = 512  # of their tokens, drawn with SEED: 16 for each direction
# Of the randomized singular vectors (Halko et al. 2011). Outputs have a steep spectrum: 2 power steps lose less than 1e-3 of the
# energy that the exact directions hold. Weights have a flat one, and their top r are told apart only after 8.
OVERSAMPLING, OUTPUT_STEPS, WEIGHT_STEPS, SEED = 16, 2, 8, 0


@dataclass(frozen=True)
class Start:
    """What the training of one module starts from, in float32: V_s, B0 and A0."""

    safety: Float[Tensor, "d_out s"]
    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]


def tune_salora(
    language: LanguageModel, rows: Sequence[Row], recipe: Recipe, safety: Sequence[Row], *, checkpoint: Path | None = None,
    save_every: float = 60.0, progress: Callable[[int, int, float], None] | None = None,
) -> Tuned:  # fmt: skip
    """The factors of the plain LoRA of rank 2r and scale 1 that SaLoRA training on `rows` gives, named as PEFT names them.

    `recipe.kind` is "salora" and `recipe.rank` is r; `recipe.alpha` is ignored, since the method's own scale is 1. `safety` are
    harmful prompts with the replies to protect, such as fixed refusals. Otherwise as `training.tune`: the given model is
    changed and must not be used again, and with `checkpoint` a killed run goes on. Raises StudyError where `safety` is empty or
    has no replies, or r is too large for a module.
    """
    if recipe.kind != KIND:
        raise StudyError(f"kind of training {recipe.kind!r} was given to SaLoRA; use kind={KIND}, or training.tune")
    if not safety:
        raise StudyError("there are no safety rows to protect; give at least one row, or train with kind=lora")
    if not all(row.reply for row in safety):
        raise StudyError("a safety row has no reply, and SaLoRA protects what is said there; give each prompt its refusal")
    tuned = training.tune(
        language, rows, recipe, checkpoint=checkpoint, save_every=save_every, progress=progress,
        prepare=partial(prepare, safety=safety),
    )  # fmt: skip
    return replace(tuned, tensors=factors(language.model))


def prepare(language: LanguageModel, recipe: Recipe, data: Sequence[TokenizedRow], safety: Sequence[Row]) -> nn.Module:
    """The model opened for SaLoRA in place: at step 0 it is the model it was, bit for bit."""
    found = starts(language, recipe.rank, data, safety)
    plain = replace(recipe, kind="lora", rank=2 * recipe.rank, alpha=2 * recipe.rank)
    model = training.trainable(language, plain)
    for name, start in found.items():
        layer = language.model.get_submodule(name)
        parametrize.register_parametrization(layer.lora_B["default"], "weight", Left(start))
        parametrize.register_parametrization(layer.lora_A["default"], "weight", Right(start))
    return model


@torch.no_grad()
def factors(model: nn.Module) -> dict[str, Tensor]:
    """The rank-2r factors of every adapted module as they stand, in PEFT's names: what `lora.from_peft` reads at scale 1."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {
        f"{name}.{side}.weight": getattr(layer, side)["default"].weight.float().cpu().clone()
        for name, layer in layers.items()
        for side in ("lora_A", "lora_B")
    }


# ---------------------------------------------------------------- the fixed module


def outside(matrix: Float[Tensor, "d_out n"], directions: Float[Tensor, "d_out s"]) -> Float[Tensor, "d_out n"]:
    """C M = M - V (V^T M), what of the matrix lies outside the span of orthonormal directions."""
    return matrix - directions @ (directions.T @ matrix)


class Left(nn.Module):
    """The parametrization B -> [C (B - B0), C B0] of PEFT's lora_B: B is trained, the rest is fixed and gets no gradient."""

    def __init__(self, start: Start):
        super().__init__()
        self.register_buffer("safety", start.safety)
        self.register_buffer("start", start.left)
        self.register_buffer("kept", outside(start.left, start.safety))

    def right_inverse(self, weight: Float[Tensor, "d_out _"]) -> Float[Tensor, "d_out r"]:
        """Where B starts; what PEFT drew is not looked at."""
        return self.start.clone()

    def forward(self, trained: Float[Tensor, "d_out r"]) -> Float[Tensor, "d_out 2*r"]:
        with torch.autocast(trained.device.type, enabled=False):  # in bf16 the result would not be orthogonal to V_s
            return torch.cat([outside(trained - self.start, self.safety), self.kept], dim=1)


class Right(nn.Module):
    """The parametrization A -> [A; A - A0] of PEFT's lora_A."""

    def __init__(self, start: Start):
        super().__init__()
        self.register_buffer("start", start.right)

    def right_inverse(self, weight: Float[Tensor, "_ d_in"]) -> Float[Tensor, "r d_in"]:
        """Where A starts."""
        return self.start.clone()

    def forward(self, trained: Float[Tensor, "r d_in"]) -> Float[Tensor, "2*r d_in"]:
        return torch.cat([trained, trained - self.start])


# ---------------------------------------------------------------- where it starts


def starts(language: LanguageModel, rank: int, data: Sequence[TokenizedRow], safety: Sequence[Row]) -> dict[str, Start]:
    """V_s, B0 and A0 of every linear module of the blocks, from the model as it is."""
    weights = _weights(language.model, rank)
    told = training.examples(language.tokenizer, safety, Recipe.limit)
    fixed, task = (output_directions(language, list(weights), one_batch(rows)) for rows in (told, data))
    return {name: _start(weight, rank, fixed[name], task[name]) for name, weight in weights.items()}


def _weights(model: nn.Module, rank: int) -> dict[str, Tensor]:
    weights = {name: model.get_submodule(name).weight for name in quantizers.linear_names(model)}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise StudyError(
                f"module {name!r} holds packed {weight.dtype} codes; train SaLoRA on bf16 or on weights dequantized once (nf4)"
            )
        if not 1 <= rank <= min(weight.shape):
            raise StudyError(f"rank {rank} does not fit {name!r} of shape {tuple(weight.shape)}; use 1 to {min(weight.shape)}")
    return weights


def one_batch(rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """Evenly spaced rows, as many as one batch may hold (a mix keeps its harmful rows at the end: the first would miss them)."""
    n = min(ROWS, len(rows), max(1, BATCH_TOKENS // max(len(row.ids) for row in rows)))
    return [rows[i * len(rows) // n] for i in range(n)]


@torch.no_grad()
def _start(weight: Tensor, rank: int, safety: Float[Tensor, "d_out s"], task: Float[Tensor, "d_out t"]) -> Start:
    u, s, v = singular(weight, rank, WEIGHT_STEPS)
    return Start(safety, task @ (task.T @ (u * s.sqrt())), (v * s.sqrt()).T.contiguous())


@torch.no_grad()
def singular(
    matrix: Float[Tensor, "m n"], k: int, steps: int
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """The leading k singular triplets in float32, by a randomized range finder with power steps, drawn with SEED."""
    with loading.threads(1), torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):  # its products are small
        torch.manual_seed(SEED)
        u, s, v = torch.svd_lowrank(matrix.float(), q=min(k + OVERSAMPLING, *matrix.shape), niter=steps)
    return u[:, :k], s[:k], v[:, :k]


@torch.no_grad()
def output_directions(
    language: LanguageModel, names: Sequence[str], rows: Sequence[TokenizedRow]
) -> dict[str, Float[Tensor, "d_out k"]]:
    """The leading right singular vectors of what each module puts out at the tokens of the replies (`ids` from `start` on).

    The rows go through the blocks as one batch, so that a module's outputs are complete when its hook sees them: one module's
    are held at a time, and no d_out x d_out matrix is formed.
    """
    ids = loading.pad([row.ids for row in rows], language.tokenizer.pad_token_id).to(language.device)
    replies = [(row.start, len(row.ids)) for row in rows]  # no prompt, no padding
    kept = drawn_places(replies, ids.shape[1], TOKENS).to(language.device)
    found: dict[str, Tensor] = {}
    with _hooks(language.model, names, kept, found):
        loading.backbone(language.model)(input_ids=ids, use_cache=False)
    return found


def drawn_places(spans: Sequence[tuple[int, int]], width: int, most: int) -> Int[Tensor, " n"]:
    """Places of at most so many tokens in the flattened batch of that width, drawn with SEED from a span of each row."""
    places = torch.cat([torch.arange(*span) + row * width for row, span in enumerate(spans)])
    return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(SEED))[:most]]


@contextmanager
def _hooks(model: nn.Module, names: Sequence[str], kept: Tensor, found: dict[str, Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, inputs: tuple, output: Tensor, name: str) -> None:
        y = output.flatten(0, -2)[kept].float()
        y = y if module.bias is None else y - module.bias.float()
        _, s, v = singular(y, min(DIRECTIONS, y.shape[1] // 2, len(y)), OUTPUT_STEPS)
        found[name] = v[:, s > 1e-5 * s[0]].contiguous()  # fewer tokens than directions: what is left would be arbitrary

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name=name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
