"""Lesions act as a plain loop without caches says, an empty mask is no lesion, and no hook stays behind."""

from dataclasses import replace

import pytest
import torch
from support.bland import refused
from torch import nn

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE
from helpers.models import generation, loading
from helpers.models.loading import LanguageModel
from helpers.neurons.interventions import ablated, activation_change, patched, patched_replies
from helpers.updates.training import TokenizedRow

PROMPTS = [f"Paint the {noun}" for noun in ("door", "old ladder", "very long garden fence", "boat", "red chair in the yard")]
TOKENS = 6


def perturbed(folder, seed: int, part: str = "") -> LanguageModel:
    """The tiny model in float32 with noise on the weights whose name holds `part`, large enough to change its replies."""
    language = loading.load(folder, "fp32")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in language.model.named_parameters():
            if part in name and parameter.ndim == 2:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=draw))
    return language


@pytest.fixture(scope="module")
def base(tiny) -> LanguageModel:
    return perturbed(tiny, 0)


@pytest.fixture(scope="module")
def aligned(tiny) -> LanguageModel:
    return perturbed(tiny, 1)


def mask_of(share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 256, generator=torch.Generator().manual_seed(seed)) < share


NONE, ALL = mask_of(0.0), mask_of(2.0)


def said(language: LanguageModel, batch: int = 2) -> list[str]:
    return generation.replies(language, PROMPTS, new_tokens=TOKENS, batch=batch)


def hooks(model: nn.Module) -> int:
    """The hooks of a model, without the one by which every block counts its tokens."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) - len(model.model.layers)


@torch.no_grad()
def logits(language: LanguageModel, ids=tuple(range(3, 40))) -> torch.Tensor:
    return language.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


# ---------------------------------------------------------------- ablation


def test_ablating_is_as_if_the_neurons_wrote_nothing(base):
    mask, other = mask_of(0.3), replace(base, model=loading.load(base.folder, "fp32").model)
    other.model.load_state_dict(base.model.state_dict())
    with torch.no_grad():
        for block, chosen in zip(other.model.model.layers, mask, strict=True):
            block.mlp.down_proj.weight[:, chosen] = 0
    before = logits(base)
    with ablated(base.model, mask):
        lesioned = logits(base)
    torch.testing.assert_close(lesioned, logits(other), rtol=1e-5, atol=1e-5)
    assert (lesioned - before).abs().max() > 0.1  # control: the neurons do something
    assert torch.equal(logits(base), before)  # and do it again


def test_an_empty_lesion_is_none(base):
    before = logits(base)
    with ablated(base.model, NONE):
        assert torch.equal(logits(base), before)


# ---------------------------------------------------------------- patching


@torch.no_grad()
def patched_logits(base: LanguageModel, aligned: LanguageModel, mask: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Logits of the next token from two whole passes over all tokens so far: no cache, no padding, no batch."""
    row, given, handles = torch.tensor([ids]), [], []
    for block in aligned.model.model.layers:
        handles.append(block.mlp.down_proj.register_forward_pre_hook(lambda _, args: given.append(args[0])))
    aligned.model(input_ids=row, use_cache=False)
    for block, chosen, theirs in zip(base.model.model.layers, mask.float(), given, strict=True):
        mixed = lambda _, args, chosen=chosen, theirs=theirs: args[0] * (1 - chosen) + theirs * chosen  # noqa: E731
        handles.append(block.mlp.down_proj.register_forward_pre_hook(mixed))
    found = base.model(input_ids=row, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return found


def patched_one_by_one(base: LanguageModel, aligned: LanguageModel, mask: torch.Tensor, prompt: str) -> str:
    """A patched greedy reply, token by token."""
    ids = loading.encode_text(base.tokenizer, loading.chat_text(base.tokenizer, prompt))
    reply: list[int] = []
    while len(reply) < TOKENS and base.tokenizer.eos_token_id not in reply:
        reply.append(int(patched_logits(base, aligned, mask, ids + reply).argmax()))
    return base.tokenizer.decode(reply, skip_special_tokens=True)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_patching_in_batches_with_caches_is_the_plain_loop(base, aligned, share):
    mask = mask_of(share)
    found = patched_replies(base, aligned, mask, PROMPTS, TOKENS, batch=2)
    assert found == [patched_one_by_one(base, aligned, mask, prompt) for prompt in PROMPTS]
    if share >= 0.3:
        assert found != said(base)  # control: it changes what is said, and does not make it the aligned model's
        assert found != said(aligned)


def test_an_empty_patch_leaves_the_base_models_replies(base, aligned):
    assert patched_replies(base, aligned, NONE, PROMPTS, TOKENS, batch=2) == said(base)
    assert said(base) != said(aligned)  # control


def test_patching_a_model_with_its_own_copy_changes_nothing(base, tiny):
    with patched(base, perturbed(tiny, 0), ALL):
        assert torch.equal(*(logits(one) for one in (base, perturbed(tiny, 0))))
    assert patched_replies(base, perturbed(tiny, 0), ALL, PROMPTS, TOKENS, batch=2) == said(base)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "mlp.down_proj"])
def test_all_neurons_patched_bring_what_gate_and_up_hold_and_no_more(tiny, part):
    base, aligned = loading.load(tiny, "fp32"), perturbed(tiny, 2, part)
    assert said(base) != said(aligned)
    same = patched_replies(base, aligned, ALL, PROMPTS, TOKENS, batch=2) == said(aligned)
    assert same == (part != "mlp.down_proj")  # control: what an activation is read with is not patched


def test_patching_works_for_a_pass_without_a_cache(tiny):
    """Likelihoods read whole rows at once."""
    base, aligned = loading.load(tiny, "fp32"), perturbed(tiny, 2, "gate_proj")
    given = [list(range(5, 30)), list(range(40, 52))], [3, 4]
    plain = [generation.log_likelihoods(one, *given)[0] for one in (base, aligned)]
    assert (plain[0] != plain[1]).all()
    for mask, expected in ((NONE, plain[0]), (ALL, plain[1])):
        with patched(base, aligned, mask):
            assert (generation.log_likelihoods(base, *given)[0] == expected).all()


def test_a_cache_begun_outside_is_refused(base, aligned):
    from transformers import DynamicCache

    ids, past = torch.tensor([[5, 6, 7]]), DynamicCache(config=base.model.config)
    base.model(input_ids=ids, past_key_values=past, use_cache=True)
    with patched(base, aligned, ALL), refused(USAGE, "empty"):
        base.model(input_ids=ids, past_key_values=past, use_cache=True)
    assert hooks(base.model) == hooks(aligned.model) == 0


def test_one_object_cannot_patch_itself(base):
    with refused(USAGE, "load them apart"), patched(base, base, ALL):
        pass


# ---------------------------------------------------------------- hooks and masks


def fail(base: LanguageModel) -> None:
    assert hooks(base.model) >= 4
    logits(base)
    raise ZeroDivisionError


@pytest.mark.parametrize("lesion", [ablated, patched])
def test_hooks_are_gone_after_an_error(base, aligned, lesion):
    given = (base.model, ALL) if lesion is ablated else (base, aligned, ALL)
    with pytest.raises(ZeroDivisionError), lesion(*given):
        fail(base)
    assert hooks(base.model) == hooks(aligned.model) == 0


def test_a_mask_of_another_model_is_refused(base, aligned):
    wrong = ALL[:, :-1]
    with refused(NOT_COMPARABLE, "(4, 255)", "(4, 256)"), ablated(base.model, wrong):
        pass
    with refused(NOT_COMPARABLE, "(4, 255)"), patched(base, aligned, wrong):
        pass
    with refused(NOT_COMPARABLE, "(4, 255)"):
        activation_change(base, aligned, wrong, TEXTS)


# ---------------------------------------------------------------- how far activations move

TEXTS = tuple(TokenizedRow(tuple(range(10 + i, 30 + 6 * i)), 4 + i) for i in range(4))


@torch.no_grad()
def activations(language: LanguageModel, text: TokenizedRow) -> torch.Tensor:
    """Activations at the places of the reply, "layer place neuron", of one text read alone."""
    found = []
    handles = [block.mlp.down_proj.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
               for block in language.model.model.layers]  # fmt: skip
    language.model(input_ids=torch.tensor([text.ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(found)[:, text.start - 1 : -1]


def test_activation_change_is_a_plain_loop(base, aligned):
    mask = mask_of(0.2)
    found = activation_change(base, aligned, mask, TEXTS)
    for text, value in zip(TEXTS, found.tolist(), strict=True):
        ours, theirs = (activations(one, text).transpose(1, 2)[mask] for one in (base, aligned))
        assert value == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-4)
    assert not torch.allclose(found, activation_change(base, aligned, mask_of(0.2, 1), TEXTS))  # control: other neurons


def test_activation_change_is_zero_for_a_copy_and_known_for_a_scaled_layer(base, tiny):
    other = perturbed(tiny, 0)
    assert not activation_change(other, base, ALL, TEXTS).any()
    with torch.no_grad():
        other.model.model.layers[3].mlp.up_proj.weight.mul_(1.25)  # the last layer: nothing below it moves
    last = torch.zeros_like(ALL).index_fill_(0, torch.tensor([3]), True)
    torch.testing.assert_close(activation_change(other, base, last, TEXTS), torch.full((4,), 0.25), rtol=1e-4, atol=0)
    assert not activation_change(other, base, ~last, TEXTS).any()


def test_silent_neurons_have_no_relative_change(base, aligned):
    with refused(REFUSED, "silent", "text 0"):
        activation_change(base, aligned, NONE, TEXTS)
