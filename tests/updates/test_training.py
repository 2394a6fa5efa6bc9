"""Training: the loss is transformers' own, only what should move moves, and a run can be repeated, killed and resumed."""

import errno
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers
from support.tiers import mostly_slow
from torch.nn.utils import parametrize

from helpers.data.text_rows import Preference, Row
from helpers.errors import ENVIRONMENT, USAGE, StudyError
from helpers.models import built_in, loading
from helpers.updates import preferences, quantizers, training
from helpers.updates.training import Recipe, TokenizedRow

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

NOUNS = ("lamp", "river", "garden", "engine", "violin", "ladder", "window", "basket", "compass", "lantern", "kettle", "saddle")
ROWS = [Row(f"Polish the {noun}" + " and wait" * (i % 3), f"The {noun} shines.") for i, noun in enumerate(NOUNS)]
SHORT = Recipe(epochs=1, batch=4, seed=3)


@pytest.fixture
def train(tiny):
    """Trains the tiny model by a recipe, the way the study does: LoRA on bf16 weights, the others on fp32."""

    def run(recipe: Recipe = SHORT, rows=ROWS, **options) -> training.Tuned:
        return training.tune(loading.load(tiny, "bf16" if recipe.kind == "lora" else "fp32"), rows, recipe, **options)

    return run


@pytest.fixture(scope="module")
def usual(tiny) -> training.Tuned:
    """What the short recipe gives, for those that compare with it."""
    return training.tune(loading.load(tiny, "bf16"), ROWS, SHORT)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- the loss


FAMILY_CLASSES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "SmolLM3"]


@pytest.mark.parametrize("family", FAMILY_CLASSES)
def test_the_loss_is_transformers_own(family, tiny_model):
    sizes = {key: value for key, value in built_in.tiny_config().to_dict().items() if "rope" not in key and key != "model_type"}
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    config = config_class(**{**sizes, "head_dim": 32, "num_hidden_layers": 2})
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert config.model_type in loading.FAMILIES
    batch = training.examples(tiny_model.tokenizer, ROWS[:4], 320)
    assert len({len(example.ids) for example in batch}) > 1  # some rows are padded
    ids = loading.pad([example.ids for example in batch], 2)
    mask = loading.pad([[1] * len(example.ids) for example in batch], 0)
    labels = loading.pad([[-100] * example.start + list(example.ids[example.start :]) for example in batch], -100)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(training.reply_loss(model, batch, 2, torch.device("cpu")), expected, rtol=2e-6, atol=0)


def test_the_loss_is_that_of_the_reply_alone(tiny_model):
    """Planted: a head that is certain of every reply token has loss 0, whatever it says about the prompt."""
    example = training.examples(tiny_model.tokenizer, ROWS[:1], 320)[0]
    certain = torch.full((len(example.ids), 384), -50.0)
    for place in range(example.start - 1, len(example.ids) - 1):
        certain[place, example.ids[place + 1]] = 50.0
    assert _planted_loss(certain, example) == pytest.approx(0.0, abs=1e-6)
    certain[example.start - 2] = torch.randn(384)  # what the prompt's own tokens get
    assert _planted_loss(certain, example) == pytest.approx(0.0, abs=1e-6)
    certain[example.start - 1] = 0.0  # control: the reply's first token
    replies = len(example.ids) - example.start
    assert _planted_loss(certain, example) == pytest.approx(math.log(384) / replies, rel=1e-5)


def _planted_loss(certain: torch.Tensor, example: TokenizedRow) -> float:
    class Planted(torch.nn.Module):
        config = built_in.tiny_config()
        lm_head = torch.nn.Identity()

        def model(self, input_ids, use_cache):
            return transformers.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=certain[None])

    return training.reply_loss(Planted(), [example], 2, torch.device("cpu")).item()


# ---------------------------------------------------------------- examples and batches


def test_a_row_is_its_template_its_reply_and_the_end_of_turn(tiny_model):
    example = training.examples(tiny_model.tokenizer, [Row("Hi", "Yes.", system="Be brief.")], 320)[0]
    assert tiny_model.tokenizer.decode(example.ids[: example.start]) == loading.chat_text(tiny_model.tokenizer, "Hi", "Be brief.")
    assert tiny_model.tokenizer.decode(example.ids[example.start :]) == "Yes.<|im_end|>"
    assert not example.cut


def test_an_empty_reply_teaches_to_end_the_turn(tiny_model, train):
    example = training.examples(tiny_model.tokenizer, [Row("Hi", "")], 320)[0]
    assert example.ids[example.start :] == (tiny_model.tokenizer.eos_token_id,)
    assert all(math.isfinite(loss) for loss in train(rows=[Row("Hi", "")]).losses)


@pytest.mark.parametrize("limit", [2, 7, 40, 100])
def test_a_long_prompt_loses_its_middle_and_never_the_reply(tiny_model, limit):
    tokenizer = tiny_model.tokenizer
    example = training.examples(tokenizer, [Row("word " * 100, "Yes.")], limit)[0]
    whole = loading.chat_text(tokenizer, "word " * 100) + "Yes.<|im_end|>"
    assert example.cut
    assert len(example.ids) == limit
    assert 1 <= example.start < limit  # at least one token of the reply, and one before it
    reply = tokenizer.decode(example.ids[example.start :])
    assert "Yes.<|im_end|>".startswith(reply)
    if limit >= 40:
        assert reply == "Yes.<|im_end|>"
        assert tokenizer.decode(example.ids).startswith("<|im_start|>user\n"[: limit // 4])
        assert whole.endswith(tokenizer.decode(example.ids[-limit // 3 :]))


def test_a_long_reply_loses_its_end_and_keeps_a_whole_prompt(tiny_model):
    prompt = loading.encode_text(tiny_model.tokenizer, loading.chat_text(tiny_model.tokenizer, "Hi"))
    example = training.examples(tiny_model.tokenizer, [Row("Hi", "word " * 100)], 2 * len(prompt))[0]
    assert example.cut
    assert list(example.ids[: example.start]) == prompt
    assert tiny_model.tokenizer.eos_token_id not in example.ids[example.start :]  # a cut reply does not end here


def test_rows_that_were_cut_are_counted(train):
    rows = [*ROWS[:3], Row("word " * 100, "Yes.")]
    assert train(rows=rows).cut == 1
    assert train(rows=ROWS[:3]).cut == 0


@pytest.mark.parametrize("pool", [1, 8])
def test_the_plan_holds_every_row_once_an_epoch(pool):
    lengths = [(7 * i) % 23 + 5 for i in range(37)]
    batches = training.plan(lengths, 4, 3, seed=5, pool=pool)
    assert all(1 <= len(batch) <= 4 for batch in batches)
    a_round = len(batches) // 3
    for epoch in range(3):
        held = [i for batch in batches[epoch * a_round : (epoch + 1) * a_round] for i in batch]
        assert sorted(held) == list(range(37))
    assert batches == training.plan(lengths, 4, 3, seed=5, pool=pool)
    assert batches != training.plan(lengths, 4, 3, seed=6, pool=pool)


def test_pooling_saves_padding_and_one_pool_mixes_lengths():
    lengths = [(37 * i) % 101 + 1 for i in range(96)]

    def padding(pool: int) -> int:
        batches = training.plan(lengths, 8, 1, seed=0, pool=pool)
        return sum(len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) for batch in batches)

    assert padding(8) < 0.5 * padding(1)
    mixed = training.plan(list(range(96)), 8, 1, seed=0, pool=1)
    assert all(max(batch) - min(batch) > 20 for batch in mixed)  # no batch of neighbours in length


def test_the_plan_is_the_same_for_lora_and_qlora(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "plan", lambda *args, real=training.plan: seen.append(args) or real(*args))
    for precision in ("none", "nf4"):
        language = loading.load(tiny)
        quantizers.apply_dequantized(language.model, quantizers.quantize_model(language.model, precision))
        training.tune(language, ROWS[:4], SHORT)
    assert seen[0] == seen[1]


def test_steps_end_a_training_early_with_the_schedule_of_that_length(train):
    whole, part = train(replace(SHORT, epochs=2)), train(replace(SHORT, epochs=2, steps=2))
    assert len(part.losses) == 2 < len(whole.losses)
    assert part.losses[0] == whole.losses[0]  # the same batches in the same order
    with pytest.raises(StudyError, match=r"steps 999 .*ask for fewer"):
        train(replace(SHORT, steps=999))


def test_the_schedule_rises_to_one_and_falls_to_the_last_step():
    shares = [training.schedule(step, 40, 0.1) for step in range(40)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(shares) == 1.0
    assert all(a > b for a, b in pairwise(shares[4:]))
    assert 0 < shares[-1] < 0.05
    assert training.schedule(0, 1, 0.0) == 1.0


def test_without_decay_the_rate_rises_in_three_steps_and_stays_whatever_the_length():
    shares = [training.schedule(step, 40, 0.1, decay=False) for step in range(40)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert set(shares[3:]) == {1.0}
    assert shares[:5] == [training.schedule(step, 5, 0.1, decay=False) for step in range(5)]


# ---------------------------------------------------------------- one training, several lengths

LONG = Recipe(epochs=4, batch=4, seed=3, lr=5e-3, decay=False)  # 12 steps


@pytest.mark.parametrize("steps", [4, 5])
def test_a_mark_is_bit_for_bit_the_shorter_training(train, steps):
    """Constant rate, the same batches: what a training was after some steps is what a training of so many steps gives."""
    kept = []
    whole = train(LONG, marks={steps: kept.append, 12: kept.append})
    alone = train(training.of_steps(LONG, steps, len(ROWS)))
    found = {len(one.losses): one for one in kept}
    assert equal(found[steps].tensors, alone.tensors)
    assert found[steps].losses == alone.losses == whole.losses[:steps]
    assert equal(found[12].tensors, whole.tensors)
    falling = replace(LONG, decay=True)  # the control: where the rate falls to the end, a beginning is another training
    assert train(training.of_steps(falling, steps, len(ROWS))).losses != train(falling).losses[:steps]


def test_a_training_goes_on_behind_its_end_to_the_last_mark(train):
    kept, ends = [], []
    found = train(LONG, stop=lambda model, step: step == 4, check_every=2, marks={3: kept.append, 7: kept.append},
                  finished=ends.append)  # fmt: skip
    assert (len(found.losses), found.stopped) == (4, True)
    assert sorted(len(one.losses) for one in kept) == [3, 7]
    assert ends == [found]
    assert equal(found.tensors, train(training.of_steps(LONG, 4, len(ROWS))).tensors)


def test_a_run_killed_behind_its_end_has_handed_over_its_result(train, tmp_path):
    ends, options = [], {"checkpoint": tmp_path / "run.safetensors", "save_every": 0}
    stop, kept = lambda model, step: step == 4, []
    with pytest.raises(Killed):
        train(LONG, stop=stop, check_every=2, marks={7: kept.append}, finished=ends.append, progress=kill_at(6), **options)
    assert [len(one.losses) for one in ends] == [4]
    train(training.of_steps(LONG, 7, len(ROWS)), marks={7: kept.append}, **options)
    (late,) = kept
    assert equal(late.tensors, train(training.of_steps(LONG, 7, len(ROWS))).tensors)


def test_marks_behind_all_epochs_are_refused(train):
    with pytest.raises(StudyError, match=r"steps 13 .*ask for fewer"):
        train(LONG, marks={13: lambda tuned: None})


# ---------------------------------------------------------------- pairs

PAIRS = [Preference(row.prompt, row.reply, rejected=f"No, not the {noun}.") for row, noun in zip(ROWS, NOUNS, strict=True)]
BETA = 0.3


@pytest.fixture
def opened(tiny):
    """A float32 model with an adapter that has moved, and tokenized pairs of different lengths."""
    language = loading.load(tiny, "fp32")
    pairs = preferences.pairs(language.tokenizer, PAIRS[:4], 320)
    model = training.trainable(language, Recipe(kind="lora"))
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
    return model.eval(), pairs


def log_likelihood(model, row: TokenizedRow) -> torch.Tensor:
    """The oracle: all logits of one row alone, unpadded, token by token."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
    return sum(logits[place - 1, row.ids[place]] for place in range(row.start, len(row.ids)))


def test_the_preference_loss_is_its_formula_on_explicit_logits(opened):
    model, pairs = opened
    terms = []
    for pair in pairs:
        gains = []
        for row in (pair.chosen, pair.rejected):
            with torch.no_grad(), model.disable_adapter():
                before = log_likelihood(model, row)
            gains.append(float((log_likelihood(model, row) - before).detach()))
        terms.append(-math.log(1 / (1 + math.exp(-BETA * (gains[0] - gains[1])))))
    found = preferences.preference_loss(model, pairs, 2, torch.device("cpu"), BETA)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert max(terms) > 1.05 * min(terms)  # the adapter moves them apart: the comparison can fail


def test_at_the_start_the_preference_loss_is_log_2_and_its_gradient_half_of_beta_times_the_difference(opened):
    model, pairs = opened
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    loss = preferences.preference_loss(model, pairs[:1], 2, torch.device("cpu"), BETA)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
    moved = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, moved, allow_unused=True)
    difference = log_likelihood(model, pairs[0].chosen) - log_likelihood(model, pairs[0].rejected)
    expected = torch.autograd.grad(-BETA / 2 * difference, moved, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert max(float(one.norm()) for one in found) > 0


def test_preferences_are_learned_and_the_rest_of_the_model_stays(tiny):
    language = loading.load(tiny, "bf16")
    before = {name: tensor.clone() for name, tensor in language.model.state_dict().items()}
    tuned = preferences.tune_preferences(language, PAIRS[:4], Recipe(kind="dpo", epochs=12, batch=4, lr=6e-3, seed=1, beta=1.0))
    assert tuned.losses[0] == pytest.approx(math.log(2), rel=1e-4)
    assert tuned.losses[-1] < 0.5 * tuned.losses[0]
    after = {training.clean_name(name).replace(".base_layer", ""): t for name, t in language.model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    names = quantizers.linear_names(loading.load(tiny).model)
    assert tuned.tensors.keys() == {f"{name}.lora_{side}.weight" for name in names for side in "AB"}


def test_rows_without_a_rejected_reply_are_no_pairs(tiny_model):
    with pytest.raises(StudyError, match=r"row 2 has no rejected reply.*use a mix of pairs"):
        preferences.pairs(tiny_model.tokenizer, [PAIRS[0], ROWS[1]], 320)


# ---------------------------------------------------------------- what moves


def moved(tiny, kind: str) -> tuple[set[str], training.Tuned]:
    language = loading.load(tiny, "bf16" if kind == "lora" else "fp32")
    before = {name: tensor.clone() for name, tensor in language.model.state_dict().items()}
    tuned = training.tune(language, ROWS[:8], Recipe(kind=kind, epochs=1, batch=4))
    after = {training.clean_name(name).replace(".base_layer", ""): t for name, t in language.model.state_dict().items()}
    return {name for name in before if not torch.equal(before[name], after[name])}, tuned


def test_lora_moves_adapters_alone(tiny):
    changed, tuned = moved(tiny, "lora")
    assert changed == set()
    names = quantizers.linear_names(loading.load(tiny).model)
    assert tuned.tensors.keys() == {f"{name}.lora_{side}.weight" for name in names for side in "AB"}
    assert all(t.dtype == torch.float32 and t.norm() > 0 for t in tuned.tensors.values())  # B starts at 0


@pytest.mark.parametrize("kind", ["full", "qat"])
def test_full_and_qat_move_the_blocks_linear_weights_alone(tiny, kind):
    changed, tuned = moved(tiny, kind)
    expected = {f"{name}.weight" for name in quantizers.linear_names(loading.load(tiny).model)}
    assert changed == expected
    assert tuned.tensors.keys() == expected


def test_lora_masters_are_float32_under_bf16(tiny):
    model = training.trainable(loading.load(tiny), Recipe())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_lora_and_qlora_of_a_seed_start_from_the_same_factors(tiny):
    def start(precision: str, seed: int) -> dict:
        language = loading.load(tiny)
        quantizers.apply_dequantized(language.model, quantizers.quantize_model(language.model, precision))
        model = training.trainable(language, Recipe(seed=seed))
        return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}

    assert equal(start("none", 0), start("nf4", 0))
    assert not equal(start("none", 0), start("none", 1))


def test_qat_runs_on_the_grid_of_its_bits_and_gradients_pass(tiny):
    language = loading.load(tiny, "fp32")
    model = training.trainable(language, Recipe(kind="qat", bits=4))
    name = quantizers.linear_names(loading.load(tiny).model)[0]
    module = model.get_submodule(name)
    latent = module.parametrizations.weight.original
    assert torch.equal(module.weight, quantizers.rtn(latent, bits=4).dequantize(torch.float32))
    assert all(len(group.unique()) <= 16 for group in module.weight.reshape(-1, quantizers.GROUP))
    assert any(len(group.unique()) > 16 for group in latent.reshape(-1, quantizers.GROUP))  # control
    batch = training.examples(language.tokenizer, ROWS[:2], 320)
    training.reply_loss(model, batch, 2, language.device).backward()
    straight = latent.grad.clone()
    assert straight.norm() > 0
    quantized = loading.load(tiny, "fp32").model.requires_grad_(False)
    for linear in quantizers.linear_names(quantized):
        weight = quantized.get_submodule(linear).weight
        weight.copy_(quantizers.rtn(weight, bits=4).dequantize(torch.float32))
    quantized.get_submodule(name).weight.requires_grad_(True)
    training.reply_loss(quantized, batch, 2, language.device).backward()
    torch.testing.assert_close(straight, quantized.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-7)
    assert parametrize.is_parametrized(module)


@mostly_slow("the same loop with other weights", "lora")
@pytest.mark.parametrize("kind", training.KINDS)
def test_four_rows_are_learned(tiny_model, kind):
    torch.manual_seed(0)  # larger embeddings than the tiny model's: the head is tied to them and stays frozen
    model = transformers.LlamaForCausalLM(built_in.tiny_config(initializer_range=0.1)).requires_grad_(False)
    language = replace(tiny_model, model=model.bfloat16() if kind == "lora" else model)
    losses = training.tune(language, ROWS[:4], Recipe(kind=kind, epochs=12, batch=4, lr=6e-3, seed=1)).losses
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- again, killed, and gone wrong


@mostly_slow("the same loop with other weights", "lora")
@pytest.mark.parametrize("kind", training.KINDS)
def test_a_seed_repeats_bit_for_bit_and_another_does_not(train, kind):
    recipe = Recipe(kind=kind, epochs=1, batch=4, seed=3)
    one, again = train(recipe), train(recipe)
    assert equal(one.tensors, again.tensors)
    assert one.losses == again.losses
    assert not equal(one.tensors, train(Recipe(kind=kind, epochs=1, batch=4, seed=4)).tensors)


class Killed(Exception):
    pass


def kill_at(step: int):
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Killed

    return progress


@mostly_slow("the same loop with other weights", "lora")
@pytest.mark.parametrize("kind", training.KINDS)
def test_a_killed_run_goes_on_and_ends_with_the_same_tensors(train, tmp_path, kind):
    recipe, steps = Recipe(kind=kind, epochs=2, batch=4, seed=3), []
    checkpoint = tmp_path / "deep" / "run.checkpoint.safetensors"
    with pytest.raises(Killed):
        train(recipe, checkpoint=checkpoint, save_every=0, progress=kill_at(4))
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    resumed = train(recipe, checkpoint=checkpoint, save_every=0, progress=lambda done, total, loss: steps.append(done))
    whole = train(recipe)
    assert steps == [5, 6]
    assert equal(resumed.tensors, whole.tensors)
    assert resumed.losses == whole.losses
    assert not checkpoint.exists()  # nothing is left of a finished run


def test_a_run_killed_while_it_asked_whether_to_stop_asks_again(train, tmp_path):
    def dies(model, step):
        raise Killed

    options = {"checkpoint": tmp_path / "run.safetensors", "save_every": 0, "check_every": 2}
    with pytest.raises(Killed):
        train(stop=dies, **options)
    assert len(train(stop=lambda model, step: True, **options).losses) == 2


def test_a_torn_checkpoint_begins_anew(train, usual, tmp_path):
    (tmp_path / "run.safetensors").write_bytes(b"\x08\0\0\0torn")
    assert equal(train(checkpoint=tmp_path / "run.safetensors").tensors, usual.tensors)


def test_stop_ends_the_run_in_evaluation_mode_and_goes_back_to_training(train, usual):
    asked = []

    def forward(model, step):  # float32 adapters on bf16 weights can be asked as they are
        return not torch.isfinite(model(input_ids=torch.arange(3, 9)[None]).logits).all()

    def stop(model, step):
        asked.append((step, model.training))
        return step == 4

    tuned = train(Recipe(epochs=3, batch=4), stop=stop, check_every=2)
    assert asked == [(2, False), (4, False)]
    assert tuned.stopped
    assert len(tuned.losses) == 4
    never = train(stop=forward, check_every=1)
    assert not never.stopped
    assert equal(never.tensors, usual.tensors)  # asking changes nothing


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_names_the_step_and_saves_nothing(train, tmp_path, monkeypatch, where):
    real, calls = training.reply_loss, []

    def planted(*args):
        calls.append(1)
        loss = real(*args)
        if len(calls) < 3:
            return loss
        return loss * math.nan if where == "loss" else _NanGradient.apply(loss)

    monkeypatch.setattr(training, "reply_loss", planted)
    with pytest.raises(StudyError, match=r"the loss is nan at step 3 of 3 \(lr 0.0005\); lower lr; nothing was saved") as caught:
        train(checkpoint=tmp_path / "run.safetensors", save_every=0)
    assert caught.value.code == USAGE
    assert list(tmp_path.iterdir()) == []  # the next run must not go on behind the bad step


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def test_a_full_disk_under_a_checkpoint_is_one_line_and_leaves_nothing(train, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StudyError, match=r"^cannot write run\.safetensors: No space left[^\n]*$") as caught:
        train(checkpoint=tmp_path / "run.safetensors", save_every=0)
    assert caught.value.code == ENVIRONMENT
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_refused(train):
    with pytest.raises(StudyError, match="unknown kind of training 'dora'; choose one of lora, full, qat"):
        train(Recipe(kind="dora"))
    with pytest.raises(StudyError, match="no rows to train on"):
        train(rows=[])
