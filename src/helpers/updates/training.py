"""One fine-tuning loop for full tuning, LoRA, QLoRA, quantization-aware training and, by its own loss, preference tuning.

Loss on the reply alone, logits computed at those positions alone, master weights in float32, under autocast where compute is
bf16. Batches are right-padded, so that a causal model needs no mask: real tokens never look at the padding behind them.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.cache import atomic_file
from helpers.data.text_rows import Row
from helpers.errors import StudyError
from helpers.models import compute
from helpers.models.loading import LanguageModel, backbone, causal, chat_text, encode_text, logits, pad
from helpers.updates import quantizers

IGNORE = -100
RISE = (
    3  # steps of warm-up where the rate then stays: not a share of the steps, so that a shorter training is a prefix of a longer
)


@dataclass(frozen=True)
class Recipe:
    """What an update is made by; every field is part of its content key.

    kind: `lora` (adapters on every linear module of the blocks), `full` (all of those modules' weights) or `qat` (the same,
    with `quantizer`'s bits simulated in the forward pass). lr: peak learning rate, reached after `warmup` of the steps and
    taken linearly to zero; without `decay`, reached after RISE steps and kept. alpha / rank scales the adapter. pool: batches
    are cut from `pool` batches' worth of shuffled rows sorted by length; 1 keeps every batch mixed, more saves padding. steps
    ends the training early, its rate falling to zero by then; 0 runs all epochs. beta: how fast preference tuning saturates.
    """

    kind: str = "lora"
    epochs: int = 2
    lr: float = 5e-4
    batch: int = 8
    rank: int = 8
    alpha: float = 16
    limit: int = 320
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    bits: int = 4
    pool: int = 8
    steps: int = 0
    decay: bool = True
    beta: float = 0.1


KINDS = ("lora", "full", "qat")


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids of prompt and reply, where the reply begins, and whether tokens were cut off to keep within the limit."""

    ids: tuple[int, ...]
    start: int
    cut: bool = False


def examples(tokenizer, rows: Sequence[Row], limit: int) -> list[TokenizedRow]:
    """The rows as token ids in the chat template, the reply closed by the end-of-turn token, at most `limit` tokens in all.

    A long prompt loses its middle, so that both ends of the template and the reply stay; a reply that is longer than half
    of `limit` may lose its end.
    """
    found = []
    for row in rows:
        prompt = encode_text(tokenizer, chat_text(tokenizer, row.prompt, row.system))
        reply = [*encode_text(tokenizer, row.reply), tokenizer.eos_token_id]
        room = max(limit - len(reply), limit // 2)
        kept = prompt if len(prompt) <= room else prompt[: room // 2] + prompt[len(prompt) - (room - room // 2) :]
        found.append(TokenizedRow(tuple((kept + reply)[:limit]), len(kept), len(prompt) + len(reply) > limit))
    return found


def plan(lengths: Sequence[int], batch: int, epochs: int, seed: int, pool: int = 8) -> list[list[int]]:
    """The batches of all epochs: texts of like length together, order drawn from `seed`; the same for LoRA and QLoRA."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(len(lengths), generator=generator).tolist()
        pools = [sorted(order[i : i + pool * batch], key=lambda j: lengths[j]) for i in range(0, len(order), pool * batch)]
        groups = [part[i : i + batch] for part in pools for i in range(0, len(part), batch)]
        batches += [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return batches


def reply_loss(model: nn.Module, batch: Sequence[TokenizedRow], fill: int, device: torch.device) -> Tensor:
    """Mean cross-entropy over the reply tokens; the head runs at those positions only."""
    ids = pad([example.ids for example in batch], fill).to(device)
    labels = pad([[IGNORE] * example.start + list(example.ids[example.start :]) for example in batch], IGNORE).to(device)
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    labelled = labels[:, 1:] != IGNORE
    return nn.functional.cross_entropy(logits(causal(model), hidden[labelled]), labels[:, 1:][labelled])


def schedule(step: int, steps: int, warmup: float, decay: bool = True) -> float:
    """The share of the peak learning rate at a step: linear up over `warmup` of the steps, then linear down, or constant."""
    if not decay:
        return min(1.0, (step + 1) / RISE)
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def of_steps(recipe: Recipe, steps: int, rows: int) -> Recipe:
    """The recipe for exactly so many steps: as many epochs as they need of so many rows."""
    return replace(recipe, steps=steps, epochs=math.ceil(steps / math.ceil(rows / recipe.batch)))


# ---------------------------------------------------------------- what is trained


Prepare = Callable[[LanguageModel, Recipe, Sequence[TokenizedRow]], nn.Module]


def trainable(language: LanguageModel, recipe: Recipe) -> nn.Module:
    """The model prepared for training in place: adapters added (LoRA), or the blocks' linear weights opened (full, QAT)."""
    names = quantizers.linear_names(language.model)
    if language.device.type == "cpu":  # PyTorch's fused attention has a backward pass there that takes 2 to 3 times as long
        language.model.set_attn_implementation("eager")
    if recipe.kind == "lora":
        return _with_adapters(language.model, names, recipe)
    language.model.requires_grad_(False)
    for name in names:
        module = language.model.get_submodule(name)
        module.weight.requires_grad_(True)
        if recipe.kind == "qat":
            parametrize.register_parametrization(module, "weight", FakeQuantized(recipe.bits))
    return language.model


def _with_adapters(model: nn.Module, names: Sequence[str], recipe: Recipe) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # A is drawn here: LoRA and QLoRA of one seed start from the same factors
        config = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(names), lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    for module in adapted.modules():
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False  # autocast casts the factors; the inputs would go to float32 and back
    return adapted


class FakeQuantized(nn.Module):
    """A parametrization whose forward is round-to-nearest and whose gradient passes straight through (Bengio et al. 2013)."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return quantizers.fake_quantize(weight, self.bits)


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Tuned:
    """A finished training: the trained tensors by name (float32), the loss of every step, whether it stopped early, and how
    many rows were cut to the limit.
    """

    tensors: dict[str, Tensor]
    losses: tuple[float, ...]
    stopped: bool
    seconds: float
    cut: int = 0


Saves = Callable[[Tuned], object]
Loss = Callable[[nn.Module, Sequence[Any], int, torch.device], Tensor]


def tune(
    language: LanguageModel, rows: Sequence[Row], recipe: Recipe, *, stop: Callable[[nn.Module, int], bool] | None = None,
    check_every: int = 0, marks: Mapping[int, Saves] | None = None, finished: Saves | None = None, checkpoint: Path | None = None,
    save_every: float = 60.0, progress: Callable[[int, int, float], None] | None = None, prepare: Prepare | None = None,
    data: Sequence[Any] | None = None, loss: Loss | None = None,
) -> Tuned:  # fmt: skip
    """The tensors that training on `rows` by `recipe` gives; the model it was given is changed and must not be used again.

    `stop(model, step)` is asked every `check_every` steps and at the last, and ends the training early. A mark's function is
    called with what had come of the training had it been that many steps long; where marks lie behind its end it goes on to the
    last of them, after `finished` was called with its own result. With `checkpoint`, a killed run goes on from its last saved
    step and ends with the same tensors. `prepare` opens the model for a kind that is not among KINDS, in place of `trainable`;
    `data` and `loss` are what that kind makes of the rows. Raises StudyError where the loss is not finite.
    """
    if prepare is None and recipe.kind not in KINDS:
        raise StudyError(f"unknown kind of training {recipe.kind!r}; choose one of {', '.join(KINDS)}")
    if not rows:
        raise StudyError("there are no rows to train on; give at least one")
    data = examples(language.tokenizer, rows, recipe.limit) if data is None else data
    model = prepare(language, recipe, data) if prepare else trainable(language, recipe)
    batches, marks = plan([len(one.ids) for one in data], recipe.batch, recipe.epochs, recipe.seed, recipe.pool), marks or {}
    end, last = recipe.steps or len(batches), max(marks, default=0)
    if max(end, last) > len(batches):
        raise StudyError(f"steps {max(end, last)} were asked for, but the rows give {len(batches)} in all epochs; ask for fewer")
    loop, cut, began = Loop(model, recipe, end, checkpoint, save_every), sum(one.cut for one in data), time.monotonic()
    found = None
    if loop.ask(stop, check_every):  # a run that was killed while it asked asks again
        found = _told(loop.result(True, began, cut), finished)
    while (found is None and loop.step < end) or loop.step < last:
        batch = [data[i] for i in batches[loop.step]]
        value = loop.advance(loss or reply_loss, batch, language.tokenizer.pad_token_id, language.device)
        if progress:
            progress(loop.step, max(end, last), value)
        if loop.step in marks:
            marks[loop.step](loop.result(False, began, cut))
        if found is None and ((stopped := loop.ask(stop, check_every)) or loop.step == end):
            found = _told(loop.result(stopped, began, cut), finished)
    model.eval()
    loop.forget()
    return found or loop.result(False, began, cut)


def _told(found: Tuned, finished: Saves | None) -> Tuned:
    if finished:
        finished(found)
    return found


class Loop:
    """Optimizer, schedule and checkpoint of one training; its state is what a killed run needs to go on."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int, checkpoint: Path | None, save_every: float):
        self.model, self.recipe, self.steps = model, recipe, steps
        self.named = {clean_name(name): p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.checkpoint, self.save_every, self.saved = checkpoint, save_every, time.monotonic()
        self.step = 0
        self.losses: list[float] = []
        self._resume()

    def ask(self, stop: Callable[[nn.Module, int], bool] | None, every: int) -> bool:
        if not (stop and every and self.step and (self.step % every == 0 or self.step == self.steps)):
            return False
        with self.autocast():
            return stop(self.model.eval(), self.step)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass; entered anew for each, since one held over a loop silently did nothing in a trial."""
        device = next(iter(self.named.values())).device
        return compute.current(device).autocast(device)

    def advance(self, loss_of: Loss, batch: Sequence[Any], fill: int, device: torch.device) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * schedule(self.step, self.steps, self.recipe.warmup, self.recipe.decay)
        with self.autocast():
            loss = loss_of(self.model, batch, fill, device)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.recipe.clip)
        value = loss.item() if torch.isfinite(norm) else math.nan
        if not math.isfinite(value):
            self.forget()  # or the next run would go on from just before it
            raise StudyError(
                f"the loss is {value} at step {self.step + 1} of {self.steps} (lr {self.recipe.lr}); lower lr; nothing was saved"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(value)
        if self.checkpoint and time.monotonic() - self.saved > self.save_every:
            self._save(self.checkpoint)
        return value

    def result(self, stopped: bool, began: float, cut: int) -> Tuned:
        """What the training has come to; the tensors are copies."""
        tensors = {name: p.detach().float().cpu().clone() for name, p in self.named.items()}
        return Tuned(tensors, tuple(self.losses), stopped, time.monotonic() - began, cut)

    def forget(self) -> None:
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)

    def _save(self, checkpoint: Path) -> None:
        from safetensors.torch import save_file

        state = {f"p/{name}": p.detach() for name, p in self.named.items()}
        for name, p in self.named.items():
            state |= {f"{key}/{name}": self.optimizer.state[p][key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        atomic_file(checkpoint, lambda temporary: save_file(state, temporary))
        self.saved = time.monotonic()

    def _resume(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(self.checkpoint) if self.checkpoint and self.checkpoint.is_file() else {}
        except SafetensorError:  # torn by a crash: the training begins anew
            state = {}
        if not state:
            return
        self.losses = state["losses"].tolist()
        self.step = len(self.losses)
        for name, p in self.named.items():
            p.data.copy_(state[f"p/{name}"])
            moments = {key: state[f"{key}/{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": torch.tensor(float(self.step), device=p.device), **moments}


def clean_name(name: str) -> str:
    """The name of a parameter without what PEFT and parametrizations put into it."""
    name = name.replace("base_model.model.", "").replace(".default.weight", ".weight")
    return name.replace(".parametrizations.weight.original", ".weight")


def as_json(note: dict) -> str:
    """A recipe note as JSON text."""
    return json.dumps(note, indent=1, default=str)


def from_json(path: Path) -> dict:
    """The recipe note beside an update; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
