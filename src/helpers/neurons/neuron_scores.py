"""Neurons of the MLPs, ranked by how much of a model's refusals they carry: contrasts, saliencies and their controls.

A neuron is (block l, index i): row i of gate_proj and of up_proj, and column i of down_proj. Its activation is the input of
down_proj, act(gate x) * up x. A score has one number a neuron, "layer neuron" in float32; the highest count first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from helpers.console import over
from helpers.data.text_rows import Row
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import generation
from helpers.models.encoding import token_batches
from helpers.models.loading import LanguageModel, backbone, blocks, causal, chat_text, encode_text, logits, pad
from helpers.updates.training import TokenizedRow, examples

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
BUDGET = 512  # tokens of a batch, padding counted: the fastest on a CPU
LIMIT = 320  # tokens of a benign exchange before it is cut, as in training
# Share of all neurons that set-difference leaves out as useful ones: as large as the largest share that is ever kept in high
# precision, so that however many are kept, none of the equally many most useful neurons is among them.
UTILITY_SHARE = 0.1
Hook = Callable[[int, Tensor], Tensor | None]


def mlps(model: nn.Module) -> list[nn.Module]:
    """The MLP of each block; a model whose blocks are built otherwise is refused by its type."""
    found = [getattr(block, "mlp", None) for block in (blocks(model) if hasattr(causal(model), "config") else ())]
    if not found or not all(hasattr(mlp, name) for mlp in found for name in PROJECTIONS):
        kind = getattr(getattr(causal(model), "config", None), "model_type", type(model).__name__)
        supported = f"{', '.join(PROJECTIONS)} in every block, such as Llama, Qwen, Gemma or OLMo 2"
        raise StudyError(f"model type {kind!r} has no neurons of the supported form; use a model with {supported}", REFUSED)
    return found


def shape(model: nn.Module) -> tuple[int, int]:
    """The number of layers and of neurons in each."""
    return len(mlps(model)), causal(model).config.intermediate_size


@contextmanager
def hooked(model: nn.Module, hook: Hook, projection: str = "down_proj") -> Iterator[None]:
    """Runs the block with `hook(layer, inputs)` called on what enters a projection; what it returns, if anything, enters instead.

    At down_proj these are the neurons' activations. Afterwards, also after an error, no hook is left.
    """
    with ExitStack() as hooks:
        for layer, mlp in enumerate(mlps(model)):
            module = getattr(mlp, projection)
            hooks.callback(module.register_forward_pre_hook(lambda _, args, layer=layer: hook(layer, args[0])).remove)
        yield


# ---------------------------------------------------------------- what is scored on


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at: the pair of models, exchanges that show refusal and exchanges that show use, and a seed.

    safety: harmful prompts with the aligned model's own replies; utility: benign prompts with reference replies. The token ids
    are in memory only and are never shown. What several scores need is computed once, so the models must not change meanwhile.
    """

    aligned: LanguageModel
    base: LanguageModel
    safety: tuple[TokenizedRow, ...] = field(repr=False)
    utility: tuple[TokenizedRow, ...] = field(repr=False)
    seed: int

    def __post_init__(self):
        sizes = shape(self.aligned.model), shape(self.base.model)
        if sizes[0] != sizes[1]:
            raise StudyError(
                f"aligned and base have (layers, neurons) {sizes[0]} and {sizes[1]}; give a pair of one architecture",
                NOT_COMPARABLE,
            )
        for name in ("safety", "utility"):
            if not all(0 < text.start < len(text.ids) for text in getattr(self, name)) or not getattr(self, name):
                raise StudyError(f"evidence {name!r} lacks texts, or one without prompt or reply; give at least one of each")
        dtype = mlps(self.aligned.model)[0].down_proj.weight.dtype
        if not dtype.is_floating_point:
            raise StudyError(f"the aligned model's weights are {dtype}; score neurons on its bf16 weights", REFUSED)

    @cached_property
    def safety_snip(self) -> Float[Tensor, "layer neuron"]:
        """SNIP of the aligned model's loss on its own refusals."""
        return _snip(self.aligned, self.safety)

    @cached_property
    def utility_snip(self) -> Float[Tensor, "layer neuron"]:
        """SNIP of its loss on benign exchanges."""
        return _snip(self.aligned, self.utility)


def evidence(
    aligned: LanguageModel, base: LanguageModel, harmful_prompts: Sequence[str], benign_rows: Sequence[Row],
    new_tokens: int, seed: int,
) -> Evidence:  # fmt: skip
    """The evidence of these prompts: the aligned model answers the harmful ones greedily, in at most `new_tokens` tokens."""
    said = generation.replies(aligned, harmful_prompts, new_tokens=new_tokens)
    safety = [_exchange(aligned.tokenizer, *pair, new_tokens) for pair in zip(harmful_prompts, said, strict=True)]
    return Evidence(aligned, base, tuple(safety), tuple(examples(aligned.tokenizer, benign_rows, LIMIT)), seed)


def _exchange(tokenizer, prompt: str, reply: str, new_tokens: int) -> TokenizedRow:
    """Prompt and reply as token ids; the end of turn is there only where the model itself came to it."""
    asked, said = encode_text(tokenizer, chat_text(tokenizer, prompt)), encode_text(tokenizer, reply)
    end = [tokenizer.eos_token_id] if len(said) < new_tokens else []
    return TokenizedRow((*asked, *said, *end), len(asked))


# ---------------------------------------------------------------- passes


def batches(language: LanguageModel, texts: Sequence[TokenizedRow]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each batch: which texts (" batch"), their ids ("batch position") and the places that their replies come from.

    These are where the next token belongs to the reply: from the last token of the prompt, where a refusal is decided, to the
    last but one of the reply. Padding is on the right, where a causal model needs no mask.
    """
    for indices in over("batches", token_batches([len(text.ids) for text in texts], BUDGET)):
        chosen = [texts[i] for i in indices]
        ids = pad([text.ids for text in chosen], language.tokenizer.pad_token_id)
        marks = pad([[0] * (text.start - 1) + [1] * (len(text.ids) - text.start) + [0] for text in chosen], 0)
        yield torch.tensor(indices, device=language.device), ids.to(language.device), marks.bool().to(language.device)


def at_replies(
    language: LanguageModel, texts: Sequence[TokenizedRow], projection: str = "down_proj"
) -> Iterator[tuple[Int[Tensor, " place"], Float[Tensor, "layer place d"]]]:
    """Of each batch: the text that each place belongs to, and what enters a projection of every block there."""
    for indices, ids, places in batches(language, texts):
        yield indices[places.nonzero()[:, 0]], _inputs(language.model, ids, places, projection)


@torch.no_grad()
def _inputs(model: nn.Module, ids: Tensor, places: Tensor, projection: str) -> Float[Tensor, "layer place d"]:
    found = []
    with hooked(model, lambda _, inputs: found.append(inputs[places]), projection):
        backbone(model)(input_ids=ids, use_cache=False)
    return torch.stack(found)


def _snip(language: LanguageModel, texts: Sequence[TokenizedRow]) -> Float[Tensor, "layer neuron"]:
    """|w dL/dw|, its mean over the texts (Wei et al. 2024: the absolute value of each text's), summed over a neuron's weights.

    L is the mean negative log-likelihood of a text's reply. No gradient of a weight is kept: the graph begins at the
    embeddings, and of each projection the gradients G of its outputs and its inputs X give a text's dL/dW = G^T X on the way
    back. So no parameter is opened, and texts share a pass although their gradients stay apart.
    """
    total = torch.zeros(shape(language.model), device=language.device)  # float32: thousands of small positive terms
    for _, ids, places in batches(language, texts):
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attention's way back is slower on a CPU
            embedded = causal(language.model).get_input_embeddings()(ids).detach().requires_grad_()
            with _tapped(language.model, total):
                loss = _reply_losses(causal(language.model), embedded, ids, places).sum()
            torch.autograd.grad(loss, embedded)
    return total / len(texts)


def _reply_losses(model: nn.Module, embedded: Tensor, ids: Tensor, places: Tensor) -> Float[Tensor, " place"]:
    """Negative log-likelihoods, each divided by the length of its reply: their sum over a text is the text's mean."""
    hidden = backbone(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state
    losses = cross_entropy(logits(model, hidden[places]), ids.roll(-1, 1)[places], reduction="none")
    return losses / places.sum(1, keepdim=True).expand_as(places)[places]


@contextmanager
def _tapped(model: nn.Module, total: Float[Tensor, "layer neuron"]) -> Iterator[None]:
    """Runs a forward pass whose backward pass adds |w dL/dw| of every neuron to `total`."""
    with ExitStack() as hooks:
        for layer, mlp in enumerate(mlps(model)):
            for name in PROJECTIONS:
                over = 0 if name == "down_proj" else 1  # a neuron's weights are a column there, else a row
                hooks.callback(getattr(mlp, name).register_forward_hook(partial(_tap, total[layer], over)).remove)
        yield


def _tap(total: Tensor, over: int, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    inputs = args[0].detach()

    def add(gradients: Tensor) -> None:
        for x, g in zip(inputs, gradients, strict=True):  # a text at a time, for the absolute value is of each text's
            total.add_((g.T @ x).mul_(module.weight.detach()).abs_().sum(over, dtype=torch.float32))

    output.register_hook(add)


# ---------------------------------------------------------------- scores


def activation_contrast(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """Root mean square, over the tokens of the aligned model's own replies, of its activation minus the base model's.

    Chen et al. (2024), arXiv 2406.14144: both models read what the aligned one has said.
    """
    total, count = torch.tensor(0.0), 0
    pair = (at_replies(language, seen.safety) for language in (seen.aligned, seen.base))
    for (_, ours), (_, theirs) in zip(*pair, strict=True):
        total, count = total + (ours.float() - theirs.float()).square().sum(1), count + ours.shape[1]
    return (total / count).sqrt()


def snip(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """|w dL/dw| of the aligned model's loss on its own refusals (Lee et al. 2019; Wei et al. 2024, arXiv 2402.05162)."""
    return seen.safety_snip


def wanda(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """|w| ||x||_2, x the weight's input over the reply tokens, summed over a neuron's weights (Sun et al. 2024)."""
    entering, active = (_norms(seen, name) for name in ("gate_proj", "down_proj"))
    rows = [(mlp.gate_proj.weight.abs().float() + mlp.up_proj.weight.abs().float()) @ x
            for mlp, x in zip(mlps(seen.aligned.model), entering, strict=True)]  # fmt: skip
    columns = [mlp.down_proj.weight.abs().sum(0, dtype=torch.float32) for mlp in mlps(seen.aligned.model)]
    return torch.stack(rows) + torch.stack(columns) * active


def _norms(seen: Evidence, projection: str) -> Float[Tensor, "layer d"]:
    return sum(states.float().square().sum(1) for _, states in at_replies(seen.aligned, seen.safety, projection)).sqrt()


def set_difference(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """Safety SNIP, except that the UTILITY_SHARE of neurons with the highest utility SNIP stand at the end, the first last.

    Wei et al. (2024): high for safety *and not* high for utility. A released implementation keeps the other side.
    """
    return torch.where(top(seen.utility_snip, UTILITY_SHARE), -seen.utility_snip, seen.safety_snip)  # SNIP is never below 0


def random(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """Uniform numbers of the seed: the control of equal size."""
    return torch.rand(shape(seen.aligned.model), generator=torch.Generator().manual_seed(seen.seed))


def magnitude(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """Frobenius norm of a neuron's weights in the aligned model."""
    return torch.stack([
        sum(getattr(mlp, name).weight.float().square().sum(0 if name == "down_proj" else 1) for name in PROJECTIONS).sqrt()
        for mlp in mlps(seen.aligned.model)
    ])  # fmt: skip


def outlier(seen: Evidence) -> Float[Tensor, "layer neuron"]:
    """Largest absolute activation over the benign exchanges, prompts included; their last tokens are left out."""
    whole = [replace(text, start=1) for text in seen.utility]
    return torch.stack([states.abs().amax(1) for _, states in at_replies(seen.aligned, whole)]).amax(0).float()


Score = Callable[[Evidence], Float[Tensor, "layer neuron"]]
NEURON_SCORES: dict[str, Score] = {
    "activation-contrast": activation_contrast, "snip": snip, "wanda": wanda, "set-difference": set_difference,
    "random": random, "magnitude": magnitude, "outlier": outlier,
}  # fmt: skip


def score_neurons(seen: Evidence, names: Sequence[str] = tuple(NEURON_SCORES)) -> dict[str, Float[Tensor, "layer neuron"]]:
    """The named scores on the CPU; passes that several of them need are made once. NaN and infinity are refused."""
    unknown = [name for name in names if name not in NEURON_SCORES]
    if unknown:
        raise StudyError(f"unknown neuron score {unknown[0]!r}; choose one of {', '.join(NEURON_SCORES)}")
    found = {name: NEURON_SCORES[name](seen).detach().cpu() for name in names}
    broken = [name for name, values in found.items() if not values.isfinite().all()]
    if broken:
        raise StudyError(f"neuron score {broken[0]!r} is NaN or infinite; mend the aligned model's weights", REFUSED)
    return found


# ---------------------------------------------------------------- choosing


def top(ranked: Float[Tensor, "layer neuron"], fraction: float) -> Bool[Tensor, "layer neuron"]:
    """The fraction of all neurons with the highest scores (rounded, at least one); of equal ones the first by layer and index."""
    if not 0 < fraction <= 1:
        raise StudyError(f"fraction {fraction} of neurons is not above 0 and at most 1; give a share such as 0.05")
    count = max(1, round(fraction * ranked.numel()))
    chosen = torch.zeros(ranked.numel(), dtype=torch.bool, device=ranked.device)
    chosen[ranked.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return chosen.view(ranked.shape)
