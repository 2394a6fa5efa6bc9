"""Scores of neurons equal plain loops and finite differences; planted neurons come first, and ablation confirms the sign."""

import hashlib
from dataclasses import replace

import pytest
import torch
from support.bland import refused
from torch import nn

from helpers.data.text_rows import Row
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE
from helpers.models import built_in, generation, loading
from helpers.models.loading import LanguageModel
from helpers.neurons import interventions, neuron_scores
from helpers.neurons.neuron_scores import NEURON_SCORES, PROJECTIONS, Evidence, score_neurons, top
from helpers.updates import quantizers
from helpers.updates.training import TokenizedRow

ROWS = [Row(f"Polish the lamp number {i}" + " slowly" * i, "The lamp shines." + " Well done." * (i % 3)) for i in range(6)]
PROMPTS = [f"Paint the {noun}" for noun in ("door", "old ladder", "very long garden fence", "boat")]


SIZES = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
         "num_key_value_heads": 2, "vocab_size": 384, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def small(seed: int = 0, dtype: torch.dtype = torch.float32, family: str = "llama", **changes) -> LanguageModel:
    """A random model of two blocks with 12 neurons each, its weights large enough for no neuron to be nearly linear."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, "tie_word_embeddings": True, **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        for parameter in model.model.layers.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return LanguageModel(model, built_in.tiny_tokenizer(), None)


def copied(language: LanguageModel) -> LanguageModel:
    """A second model with the same weights."""
    other = type(language.model)(language.model.config).to(language.model.dtype).eval().requires_grad_(False)
    other.load_state_dict(language.model.state_dict())
    return replace(language, model=other)


def texts(count: int, seed: int) -> tuple[TokenizedRow, ...]:
    """Random exchanges of unlike lengths."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 250, (6 + 5 * i,), generator=draw).tolist() for i in range(count)]
    return tuple(TokenizedRow(tuple(row), 2 + i) for i, row in enumerate(ids))


@pytest.fixture
def seen() -> Evidence:
    return Evidence(small(0), small(1), texts(3, 0), texts(4, 1), 7)


def loss(model: nn.Module, text: TokenizedRow) -> torch.Tensor:
    """The mean negative log-likelihood of one text's reply, read alone and with the framework's own head."""
    ids = torch.tensor(text.ids)
    said = model(input_ids=ids[None], use_cache=False).logits[0, text.start - 1 : -1]
    return nn.functional.cross_entropy(said, ids[text.start :])


def mlp(language: LanguageModel, layer: int) -> nn.Module:
    return language.model.model.layers[layer].mlp


def weights(language: LanguageModel, layer: int, i: int) -> list[torch.Tensor]:
    """Views of all weights of one neuron."""
    block = mlp(language, layer)
    return [block.gate_proj.weight[i], block.up_proj.weight[i], block.down_proj.weight[:, i]]


@torch.no_grad()
def states(language: LanguageModel, text: TokenizedRow, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the MLP of a layer, and its activations by the formula, for one text read alone."""
    kept = []
    hook = mlp(language, layer).register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    language.model(input_ids=torch.tensor([text.ids]), use_cache=False)
    hook.remove()
    block = mlp(language, layer)
    return kept[0], nn.functional.silu(block.gate_proj(kept[0])) * block.up_proj(kept[0])


def places(text: TokenizedRow) -> slice:
    return slice(text.start - 1, len(text.ids) - 1)


def close(found: torch.Tensor, expected: torch.Tensor, rel: float = 1e-4):
    torch.testing.assert_close(found, expected.float(), rtol=rel, atol=rel * float(expected.abs().max()))


def cells(language: LanguageModel):
    layers, count = neuron_scores.shape(language.model)
    return [(layer, i) for layer in range(layers) for i in range(count)]


def table(language: LanguageModel, value) -> torch.Tensor:
    """One number a neuron, by a plain loop."""
    return torch.tensor([float(value(*cell)) for cell in cells(language)]).view(neuron_scores.shape(language.model))


# ---------------------------------------------------------------- against plain loops


def exact(language: LanguageModel) -> LanguageModel:
    """A copy in float64, also in its norms, which transformers computes in float32 whatever the model's precision."""
    other = copied(language)
    for name, module in list(other.model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon).requires_grad_(False)
            norm.weight.copy_(module.weight)
            other.model.set_submodule(name, norm)
    other.model.double()
    return other


def snip_by_differences(language: LanguageModel, given, layer: int, i: int, step: float = 1e-5) -> float:
    """Sum over a neuron's weights of the mean over texts of |w (L(w + h) - L(w - h)) / 2h|, in float64."""
    language, total = exact(language), 0.0
    for part in weights(language, layer, i):
        for j in range(len(part)):
            before, slopes = part[j].item(), []
            for sign in (1, -1):
                part[j] = before + sign * step
                slopes.append(torch.stack([loss(language.model, text) for text in given]))
            part[j] = before
            total += float((before * (slopes[0] - slopes[1]) / (2 * step)).abs().mean())
    return total


def test_snip_is_what_finite_differences_of_the_loss_say(seen):
    found = score_neurons(seen, ["snip"])["snip"]
    for layer, i in ((0, 0), (0, 11), (1, 5)):
        assert found[layer, i].item() == pytest.approx(snip_by_differences(seen.aligned, seen.safety, layer, i), rel=1e-3)


def saliencies(language: LanguageModel, given) -> list[dict[str, torch.Tensor]]:
    """w * dL/dw of every weight, one dict a text, by the framework's own gradients of the weights."""
    other, found = copied(language), []
    other.model.requires_grad_(True)
    for text in given:
        other.model.zero_grad()
        loss(other.model, text).backward()
        found.append({name: (p * p.grad).detach() for name, p in other.model.named_parameters()})
    return found


def aggregated(language: LanguageModel, salient: dict[str, torch.Tensor]) -> torch.Tensor:
    def value(layer, i):
        part = {name: salient[f"model.layers.{layer}.mlp.{name}.weight"] for name in PROJECTIONS}
        return part["gate_proj"][i].sum() + part["up_proj"][i].sum() + part["down_proj"][:, i].sum()

    return table(language, value)


KINDS = [("llama", 512), ("llama", 40), ("qwen3", 512), ("gemma2", 512), ("gemma3_text", 512)]


@pytest.mark.parametrize(("family", "budget"), KINDS)
def test_snip_is_the_mean_of_each_texts_absolute_saliency(seen, monkeypatch, family, budget):
    monkeypatch.setattr(neuron_scores, "BUDGET", budget)
    seen = replace(seen, aligned=small(0, family=family), base=small(1, family=family))
    found = saliencies(seen.aligned, seen.utility)
    mean = {name: sum(one[name].abs() for one in found) / len(found) for name in found[0]}
    close(seen.utility_snip, aggregated(seen.aligned, mean))
    signed = {name: (sum(one[name] for one in found) / len(found)).abs() for name in found[0]}
    assert (aggregated(seen.aligned, signed) < 0.95 * seen.utility_snip).all()  # control: |mean| is something else


def test_activation_contrast_is_a_plain_loop(seen):
    def value(layer, i):
        pairs = [(states(seen.aligned, t, layer)[1], states(seen.base, t, layer)[1], places(t)) for t in seen.safety]
        changes = torch.cat([ours[span, i] - theirs[span, i] for ours, theirs, span in pairs])
        return changes.square().mean().sqrt()

    close(score_neurons(seen, ["activation-contrast"])["activation-contrast"], table(seen.aligned, value))


def test_wanda_is_a_plain_loop(seen):
    def value(layer, i):
        read = [(*states(seen.aligned, text, layer), places(text)) for text in seen.safety]
        norms = torch.cat([entering[span] for entering, _, span in read]).norm(dim=0)
        active = torch.cat([activation[span, i] for _, activation, span in read]).norm()
        gate, up, down = weights(seen.aligned, layer, i)
        return (gate.abs() * norms).sum() + (up.abs() * norms).sum() + (down.abs() * active).sum()

    close(score_neurons(seen, ["wanda"])["wanda"], table(seen.aligned, value))


def test_magnitude_is_the_norm_of_all_weights_of_a_neuron(seen):
    expected = table(seen.aligned, lambda *cell: torch.cat(weights(seen.aligned, *cell)).norm())
    close(score_neurons(seen, ["magnitude"])["magnitude"], expected)


def test_outlier_is_the_largest_activation_of_the_benign_texts(seen):
    def value(layer, i):
        return max(states(seen.aligned, text, layer)[1][:-1, i].abs().max() for text in seen.utility)

    close(score_neurons(seen, ["outlier"])["outlier"], table(seen.aligned, value))


def test_set_difference_ranks_by_safety_and_puts_the_useful_ones_at_the_end(seen):
    safety, utility = (snip.flatten().tolist() for snip in (seen.safety_snip, seen.utility_snip))
    useful = sorted(range(24), key=lambda i: -utility[i])[:2]  # a tenth of 24
    expected = sorted(set(range(24)) - set(useful), key=lambda i: -safety[i]) + useful[::-1]
    assert score_neurons(seen, ["set-difference"])["set-difference"].flatten().argsort(descending=True).tolist() == expected


def test_random_is_the_seeds(seen):
    one, again, other = (NEURON_SCORES["random"](replace(seen, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# ---------------------------------------------------------------- planted


def test_two_equal_models_have_no_contrast(seen):
    same = replace(seen, base=copied(seen.aligned))
    assert not score_neurons(same, ["activation-contrast"])["activation-contrast"].any()


@pytest.mark.parametrize("planted", [(0, 4), (1, 9)])
def test_activation_contrast_finds_the_neuron_that_was_changed(seen, planted):
    base = copied(seen.aligned)
    weights(seen.aligned, *planted)[1].mul_(4)
    found = score_neurons(replace(seen, base=base), ["activation-contrast"])["activation-contrast"]
    assert top(found, 1e-9)[planted]
    assert not found[: planted[0]].any()  # below it the two models are the same
    assert found[planted[0]].count_nonzero() == 1


X, Y, R, U = 10, 11, 12, 13  # a prompt to refuse, a prompt to help with, a refusal, a useful reply
REFUSES, BOTH, HELPS = (0, 3), (0, 5), (0, 7)


def planted_circuits() -> Evidence:
    """A model in which one neuron answers R to X, one answers U to Y, and one, which both need most, raises R and U.

    Attention adds nothing; the head reads R from axis 2, U from axis 3, and both from axis 4. All else is small noise.
    """
    language = small(3, tie_word_embeddings=False)
    axes = torch.eye(16)
    with torch.no_grad():
        for parameter in language.model.parameters():
            parameter.mul_(0.01 if parameter.ndim == 2 else 0).add_(0.0 if parameter.ndim == 2 else 1.0)
        for block in language.model.model.layers:
            block.self_attn.o_proj.weight.zero_()
        embedded, head = language.model.get_input_embeddings().weight, language.model.lm_head.weight
        embedded[X], embedded[Y] = axes[0], axes[1]
        head[R], head[U] = axes[2] + 2 * axes[4], axes[3] + 2 * axes[4]
        for cell, reads, writes, gain in (
            (REFUSES, axes[0], axes[2], 1.0), (HELPS, axes[1], axes[3], 1.0), (BOTH, axes[0] + axes[1], axes[4], 1.0),
        ):  # fmt: skip
            for part, value in zip(weights(language, *cell), (reads, reads, gain * writes), strict=True):
                part.copy_(value)
    return Evidence(language, copied(language), (TokenizedRow((X, R), 1),), (TokenizedRow((Y, U), 1),), 0)


def harm(seen: Evidence, mask: torch.Tensor) -> tuple[float, float]:
    """By how much ablating the neurons raises the loss of refusing and that of helping."""

    def losses():
        return torch.stack([loss(seen.aligned.model, seen.safety[0]), loss(seen.aligned.model, seen.utility[0])])

    with torch.no_grad():
        before = losses()
        with interventions.ablated(seen.aligned.model, mask):
            return tuple((losses() - before).tolist())


def first(seen: Evidence, name: str) -> torch.Tensor:
    return top(score_neurons(seen, [name])[name], 1e-9)


def test_set_difference_takes_what_refusal_needs_and_use_does_not():
    seen = planted_circuits()
    useful = top(seen.utility_snip, neuron_scores.UTILITY_SHARE)
    assert useful[HELPS]
    assert useful[BOTH]
    assert useful.sum() == 2
    assert first(seen, "snip")[BOTH]  # without the difference the neuron that both need comes first
    assert first(seen, "set-difference")[REFUSES]
    ranked = score_neurons(seen, ["set-difference"])["set-difference"].flatten()
    assert set(ranked.argsort()[:2].tolist()) == {HELPS[1], BOTH[1]}  # at the very end


def test_ablation_confirms_the_sign_of_the_set_difference():
    seen = planted_circuits()
    refusing, helping = harm(seen, first(seen, "set-difference"))
    assert refusing > 0.1
    assert abs(helping) < 1e-3
    swapped = replace(seen, safety=seen.utility, utility=seen.safety)  # the inverted set: utility minus safety
    refusing, helping = harm(seen, first(swapped, "set-difference"))
    assert helping > 0.1
    assert abs(refusing) < 1e-3
    assert min(harm(seen, first(seen, "snip"))) > 0.1  # control: what is not taken out harms both


# ---------------------------------------------------------------- every score


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def state(model: nn.Module) -> tuple:
    grads = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return digest(model), grads, hooks(model), model.training, model.config._attn_implementation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NEURON_SCORES)
def test_every_score_is_finite_repeats_itself_and_changes_no_model(name, dtype):
    pair = small(0, dtype), small(1, dtype)
    pair[0].model.model.layers[1].requires_grad_(True)  # some parameters are open, and stay as they are
    before = [state(language.model) for language in pair]
    seen = Evidence(*pair, texts(3, 0), texts(4, 1), 7)
    found, again = score_neurons(seen, [name])[name], score_neurons(replace(seen), [name])[name]
    assert found.shape == (2, 12)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.unique().numel() == 24  # no two neurons are the same
    assert torch.equal(found, again)
    assert not found.requires_grad
    assert [state(language.model) for language in pair] == before
    with torch.no_grad():  # where nothing asks for gradients, those that are needed are formed all the same
        assert torch.equal(score_neurons(replace(seen), [name])[name], found)


def test_scores_come_in_the_order_asked_for_and_share_their_passes(seen, monkeypatch):
    calls, real = [], neuron_scores._snip
    monkeypatch.setattr(neuron_scores, "_snip", lambda *given: calls.append(1) or real(*given))
    assert list(score_neurons(seen)) == list(NEURON_SCORES)
    assert len(calls) == 2  # safety and utility, although snip and set-difference both need the first


def test_bf16_ranks_as_float32_does():
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        seen = Evidence(small(0, dtype), small(1, dtype), texts(3, 0), texts(4, 1), 7)
        found.append(score_neurons(seen))
    for name in NEURON_SCORES:
        ranks = torch.stack([one[name].flatten().argsort().argsort().float() for one in found])
        assert torch.corrcoef(ranks)[0, 1] > 0.95, name


# ---------------------------------------------------------------- evidence


def test_evidence_holds_the_aligned_models_own_replies(tiny_model, tiny):
    base = loading.load(tiny, "fp32")
    seen = neuron_scores.evidence(tiny_model, base, PROMPTS, ROWS, 5, 3)
    said = generation.replies(tiny_model, PROMPTS, new_tokens=5)
    tokenizer = tiny_model.tokenizer
    for text, prompt, reply in zip(seen.safety, PROMPTS, said, strict=True):
        assert list(text.ids[: text.start]) == loading.encode_text(tokenizer, loading.chat_text(tokenizer, prompt))
        assert list(text.ids[text.start :]) == loading.encode_text(tokenizer, reply)  # cut off after 5 tokens: no end of turn
    assert [text.ids[-1] for text in seen.utility] == [tokenizer.eos_token_id] * len(ROWS)
    assert tokenizer.decode(seen.utility[0].ids[seen.utility[0].start : -1]) == ROWS[0].reply
    assert not any(str(list(text.ids))[1:20] in repr(seen) for text in (*seen.safety, *seen.utility))


@pytest.mark.parametrize(("reply", "closed"), [("Well", True), ("", True), ("Well done", False)])
def test_a_reply_is_closed_where_the_model_itself_ended_it(tiny_model, monkeypatch, reply, closed):
    monkeypatch.setattr(generation, "replies", lambda *_, **__: [reply])
    (text,) = neuron_scores.evidence(tiny_model, tiny_model, PROMPTS[:1], ROWS, 9, 0).safety
    assert (text.ids[-1] == tiny_model.tokenizer.eos_token_id) == closed
    assert len(text.ids) - text.start == len(reply) + closed


def test_what_cannot_be_scored_is_refused_in_one_line(seen, tiny):
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=300))
    with refused(REFUSED, "'gpt2'", "gate_proj, up_proj, down_proj", "Llama"):
        replace(seen, aligned=replace(seen.aligned, model=other))
    with refused(REFUSED, "'Linear'"):
        neuron_scores.mlps(nn.Linear(2, 2))
    with refused(NOT_COMPARABLE, "(2, 12)", "(3, 12)"):
        replace(seen, base=small(num_hidden_layers=3))
    for wrong in ((), (TokenizedRow((5, 6), 0),), (TokenizedRow((5, 6), 2),)):
        with refused(USAGE, "'utility'"):
            replace(seen, utility=wrong)
    packed = loading.load(tiny)
    quantizers.to_bitsandbytes_(packed.model, "nf4")
    with refused(REFUSED, "uint8", "bf16"):
        Evidence(packed, loading.load(tiny), seen.safety, seen.utility, 0)
    with refused(USAGE, "'snipp'", "set-difference"):
        score_neurons(seen, ["snipp"])


@pytest.mark.parametrize("name", sorted(set(NEURON_SCORES) - {"random"}))
def test_nan_is_refused_by_the_name_of_the_score(seen, name):
    mlp(seen.aligned, 1).up_proj.weight[3, 0] = float("nan")
    with refused(REFUSED, f"'{name}'", "NaN"):
        score_neurons(seen, ["random", name])


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("fraction", "count"), [(1e-9, 1), (0.01, 1), (0.05, 5), (0.054, 5), (0.5, 50), (0.999, 100), (1.0, 100)]
)
def test_top_takes_that_many_of_the_highest(fraction, count):
    ranked = torch.randn(4, 25, generator=torch.Generator().manual_seed(0))
    mask = top(ranked, fraction)
    assert mask.dtype == torch.bool
    assert mask.shape == (4, 25)
    assert mask.sum() == count
    assert count == 100 or ranked[mask].min() > ranked[~mask].max()


def test_equal_scores_are_taken_by_layer_and_index():
    assert top(torch.zeros(3, 4), 0.5).flatten().tolist() == [True] * 6 + [False] * 6
    ranked = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    assert top(ranked, 0.5).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_an_impossible_fraction_is_refused(fraction):
    with refused(USAGE, str(fraction)):
        top(torch.zeros(2, 3), fraction)


@pytest.mark.gpu
def test_a_gpu_scores_as_a_cpu_does(seen):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = score_neurons(seen)
    moved = [replace(one, model=copied(one).model.to("cuda")) for one in (seen.aligned, seen.base)]
    found = score_neurons(Evidence(*moved, seen.safety, seen.utility, seen.seed))
    for name in NEURON_SCORES:
        close(found[name], expected[name], rel=1e-3)
