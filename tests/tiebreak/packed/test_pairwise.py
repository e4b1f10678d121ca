"""Packed rows: the packing by hand, and equality with the plain padded forward in all that training sees."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import ARCHITECTURES, GROUPED, PAD, VOCABULARY, Pair, build
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BloomConfig,
    Gemma2Config,
    MambaConfig,
    PreTrainedConfig,
)

from tiebreak.packed.forward import pack_forward, packed_scores, packs, why_not
from tiebreak.packed.packing import Packing, Tree, pack_padded, pack_sequences

# --- the packing, by hand


def test_packing_by_hand() -> None:
    """Prompt 5 6; completions 7 8 and 7 9 4. They begin with 5 6 7 in common. A row of its own follows: 3 2.

    packed      5 6 7 | 8 | 9 4 || 3 2
    positions   0 1 2 | 3 | 3 4 || 0 1
    8 sees 5 6 7 8, and 4 sees 5 6 7 9 4.
    """
    packing = pack_sequences([[5, 6, 7, 8], [5, 6, 7, 9, 4], [3, 2]], [[0, 1], [2]])
    (row,) = packing.rows
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3, 2]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1]]
    assert row.trees == (Tree(3, (1, 2)), Tree(2, ()))
    pair, alone = row.masks(None)
    assert pair.shared is None  # causal
    assert alone.shared is None
    assert pair.rests.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]]
    assert places(packing, 0, 4) == [0, 1, 2, 3]
    assert places(packing, 1, 5) == [0, 1, 2, 4, 5]
    assert places(packing, 2, 2) == [6, 7]


def places(packing: Packing, sequence: int, tokens: int) -> list[int]:
    steps = torch.arange(tokens)
    return packing.place(torch.full_like(steps, sequence), steps).tolist()


def test_a_window_counts_positions_and_not_places() -> None:
    """With a window of 2, the last token of 5 6 9 4 sees 9 and itself, though 8 stands nearer to it than 6."""
    row = pack_sequences([[5, 6, 8], [5, 6, 9, 4]], [[0, 1]]).rows[0]
    (masks,) = row.masks(2)
    assert masks.rests.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert masks.shared is None  # two tokens never look back further
    (narrow,) = row.masks(1)
    assert narrow.shared is not None
    assert narrow.shared.int().tolist() == [[1, 0], [0, 1]]


def test_what_all_sequences_begin_with_is_borrowed_of_the_first_tree() -> None:
    """Nine tokens in common, then 20 | 21 22 of a pair, and of a row of its own 23: fourteen tokens, not 34."""
    system = list(range(1, 10))
    sequences = [[*system, 20, 21], [*system, 20, 22, 22], [*system, 23]]
    packing = pack_sequences(sequences, [[0, 1], [2]])
    (row,) = packing.rows
    assert row.input_ids.tolist() == [[*system, 20, 21, 22, 22, 23]]
    assert row.position_ids.tolist() == [[*range(10), 10, 10, 11, 9]]
    assert row.trees == (Tree(10, (1, 2)), Tree(10, (), borrowed=9))
    assert places(packing, 2, 10) == [*range(9), 13]
    assert row.masks(1)[1].shared is not None
    # a row closed early has the beginning once more
    assert [r.input_ids.shape[1] for r in pack_sequences(sequences, [[0, 1], [2]], tokens_per_row=13).rows] == [13, 10]


def test_one_sequence_may_begin_the_other_or_equal_it() -> None:
    packing = pack_sequences([[5, 6, 7], [5, 6], [4, 4], [4, 4]], [[0, 1], [2, 3]])
    assert packing.rows[0].input_ids.tolist() == [[5, 6, 7, 4, 4]]
    assert [places(packing, n, 2) for n in range(4)] == [[0, 1], [0, 1], [3, 4], [3, 4]]


def test_the_pairs_of_a_prompt_cost_its_answers_and_no_more() -> None:
    """Prompt 5 6 with answers 7, 8 8 and 9 in all three pairs, a stranger between them: 2 + 4 tokens, and 2."""
    first, second, third = [5, 6, 7], [5, 6, 8, 8], [5, 6, 9]
    sequences = [first, second, [3, 4], [3, 2], second, third, third, first]
    packing = pack_sequences(sequences, [[0, 1], [2, 3], [4, 5], [6, 7]])
    (row,) = packing.rows
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 8, 9, 3, 4, 2]]
    assert row.position_ids.tolist() == [[0, 1, 2, 2, 3, 2, 0, 1, 1]]
    assert row.trees == (Tree(2, (1, 2, 1)), Tree(1, (1, 1)))
    assert places(packing, 1, 4) == places(packing, 4, 4) == [0, 1, 3, 4]
    assert places(packing, 5, 3) == places(packing, 6, 3) == [0, 1, 5]
    assert places(packing, 7, 3) == [0, 1, 2]


def test_pairs_are_joined_within_the_budget_and_up_to_eight_answers() -> None:
    """Ten answers of one token to a prompt of two, in pairs: a tree of eight and one of two, or trees of two alone."""
    sequences = [[5, 6, 10 + answer] for answer in range(10)]
    groups = [[n, n + 1] for n in range(0, 10, 2)]
    assert [len(tree.rests) for tree in pack_sequences(sequences, groups).rows[0].trees] == [8, 2]
    tight = pack_sequences(sequences, groups, tokens_per_row=5)
    assert [[len(tree.rests) for tree in row.trees] for row in tight.rows] == [[2]] * 5


def test_sequences_that_begin_with_a_word_alike_are_left_apart() -> None:
    """Joined they would be 1 token less of 20, and attend over 19 in place of 10. Half of them alike, they are joined."""
    one, other = [5, *range(10, 19)], [5, *range(20, 29)]
    assert pack_sequences([one, other]).rows[0].trees == (Tree(10, ()), Tree(10, ()))
    half = [*one[:5], *other[5:]]
    assert pack_sequences([one, half]).rows[0].trees == (Tree(5, (5, 5)),)


def test_strangers_are_trees_of_their_own() -> None:
    assert pack_sequences([[5, 6], [7]], [[0, 1]]).rows[0].trees == (Tree(2, ()), Tree(1, ()))


def test_a_row_is_closed_before_it_exceeds_the_budget_and_a_tree_is_never_torn() -> None:
    """Trees of 4, 3, 9 and 1 tokens under a budget of 7."""
    sequences = [[1, 2, 3], [1, 2, 4], [5, 6], [5, 7], list(range(10, 19)), list(range(10, 18)), [9], [9]]
    packing = pack_sequences(sequences, [[0, 1], [2, 3], [4, 5], [6, 7]], tokens_per_row=7)
    assert [row.input_ids.shape[1] for row in packing.rows] == [7, 9, 1]
    assert packing.row.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("last", [True, False])
def test_every_token_is_found_again_and_the_last_only_where_it_is_wanted(last: bool) -> None:
    ids, mask, _ = batch_of(CASES["mixed"])
    packing = pack_padded(ids, mask, together=2, tokens_per_row=9, last=last)
    assert len(packing.rows) > 1
    for number, length in enumerate(mask.sum(1).tolist()):
        kept = length if last else max(length - 1, 1)
        row = packing.rows[int(packing.row[number])].input_ids[0]
        assert row[places(packing, number, kept)].tolist() == ids[number, :kept].tolist()


# --- equality with the plain forward


CASES = {
    "a prompt in common": [Pair([5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]), Pair([3, 4], [5, 6], [7])],
    "completions begin alike": [Pair([5, 6], [7, 8, 9, 10, 11], [7, 8, 9, 12]), Pair([5], [6, 7], [6, 8])],
    "nothing in common": [Pair([], [5, 6, 7], [8, 9, 10, 11]), Pair([], [9, 4], [10, 4, 5])],
    "nothing in common, and one token": [Pair([], [5], [8, 9, 10])],
    "one token each": [Pair([5, 6, 7], [8], [9]), Pair([4], [8], [9])],
    "all begin alike": [
        Pair([*range(2, 12), 5, 6], [7, 8, 9], [7, 10]),
        Pair([*range(2, 12)], [9, 4], [10, 4, 5]),
        Pair([*range(2, 12)], [3], [3]),
        Pair([*range(2, 11)], [11], [4]),
    ],
    "one begins the other": [Pair([5, 6], [7, 8], [7, 8, 9]), Pair([5], [6, 7, 8, 9], [6])],
    "mixed": [Pair([5] * 9, [6, 5, 5], [5, 5, 7, 8]), Pair([3, 4], [8], [9, 10, 11]), Pair([], [4, 5], [6, 7])],
}


def batch_of(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, labels) as TRL lays pairs out: chosen rows first, padded on the right."""
    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, mask, labels = [], [], []
    for prompt, completion in rows:
        rest = width - len(prompt) - len(completion)
        ids.append([*prompt, *completion, *[PAD] * rest])
        mask.append([1] * (width - rest) + [0] * rest)
        labels.append([-100] * len(prompt) + completion + [-100] * rest)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert len(found) >= 16
    assert all(bool(g.any()) for name, g in found.items() if "layers.0" in name)
    return found


def plain_log_probs(model: PeftModel, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities, entropies, mean logits, is likeliest) of completion tokens in the plain layout, by hand."""
    ids, mask, labels = batch_of(pairs)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    all_logps = logits.log_softmax(-1)
    wanted = labels[:, 1:] != -100
    logps = all_logps.gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1) * wanted
    entropy = -(all_logps.exp() * all_logps).sum(-1) * wanted
    return logps, entropy, logits.mean(-1) * wanted, (logits.argmax(-1) == labels[:, 1:]) & wanted


def weights_like(values: Tensor) -> Tensor:
    """Another weight for each value, so that no two gradients can stand in for one another."""
    return torch.linspace(-1, 1, values.numel(), dtype=values.dtype).reshape(values.shape)


def tolerances(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}


def assert_same_log_probs(model: PeftModel, pairs: list[Pair], dtype: torch.dtype, tokens_per_pass: int = 1000) -> None:
    model.train()
    logps, entropy, mean_logits, is_top1 = plain_log_probs(model, pairs)
    (logps * weights_like(logps)).sum().backward()
    expected = gradients(model)
    shared = copy.deepcopy(model)
    assert not pack_forward(shared, together=2, tokens_per_pass=tokens_per_pass)
    ids, mask, labels = batch_of(pairs)
    out = shared(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
    (out.log_probs * weights_like(out.log_probs)).sum().backward()
    found = gradients(shared)
    allowed = tolerances(dtype)
    torch.testing.assert_close(out.log_probs, logps, **allowed)
    torch.testing.assert_close(out.entropy, entropy, **allowed)
    torch.testing.assert_close(out.mean_logits, mean_logits, **allowed)
    assert torch.equal(out.is_top1, is_top1)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **allowed, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_their_gradients_are_the_plain_forwards(architecture: str) -> None:
    assert_same_log_probs(build(ARCHITECTURES[architecture]()), CASES["mixed"], torch.float32)


@pytest.mark.parametrize("architecture", ["qwen2 with a window", "gemma"])
def test_a_borrowed_beginning_changes_nothing(architecture: str) -> None:
    assert_same_log_probs(build(ARCHITECTURES[architecture]()), CASES["all begin alike"], torch.float32)


@pytest.mark.parametrize("tokens_per_pass", [1, 9])
def test_passes_change_nothing(tokens_per_pass: int) -> None:
    assert_same_log_probs(build(ARCHITECTURES["llama"]()), CASES["mixed"], torch.float32, tokens_per_pass)


@pytest.mark.parametrize("case", CASES)
def test_in_float64_they_agree_to_1e_9(case: str) -> None:
    """GPT-NeoX, whose LayerNorm stays in float64; Llama's RMSNorm rounds its states and their gradients to float32."""
    model = build(ARCHITECTURES["gpt_neox"](), dtype=torch.float64)
    assert_same_log_probs(model, CASES[case], torch.float64)


@pytest.mark.parametrize("tokens_per_pass", [1000, 9])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_their_gradients_are_the_plain_forwards(architecture: str, tokens_per_pass: int) -> None:
    model = build(ARCHITECTURES[architecture](), AutoModelForSequenceClassification)
    ids, mask, _ = batch_of(CASES["mixed"])
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    (plain * weights_like(plain)).sum().backward()
    expected = gradients(model)
    shared = copy.deepcopy(model)
    assert not pack_forward(shared, together=2, tokens_per_pass=tokens_per_pass)
    scores = shared(input_ids=ids, attention_mask=mask, use_cache=False).logits
    (scores * weights_like(scores)).sum().backward()
    found = gradients(shared)
    torch.testing.assert_close(scores, plain, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


def test_five_completions_of_a_prompt_are_scored_as_rows_of_their_own() -> None:
    """One prompt of three tokens, one of two, and five completions of each, nine tokens in all."""
    prompts = ([5, 6, 7], [4, 9])
    endings = ([8], [8, 3], [10, 11, 12], [13], [14, 8])
    sequences = [[*prompt, *ending] for ending in endings for prompt in prompts]
    groups = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    model = build(ARCHITECTURES["llama"](), AutoModelForSequenceClassification).get_base_model()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([s])).logits for s in sequences])
        assert packs(model)
        for budget in (None, 13):
            packing = pack_sequences(sequences, groups, tokens_per_row=budget)
            assert sum(row.input_ids.shape[1] for row in packing.rows) == (3 + 9) + (2 + 9)
            scores = packed_scores(model, packing, torch.tensor([len(s) - 1 for s in sequences]))
            torch.testing.assert_close(scores, alone, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_they_differ_by_no_more_than_padding_does() -> None:
    """The yardstick is float32: the packed forward may be as far from it as the plain one in bfloat16, and half again."""
    exact = build(ARCHITECTURES["llama"]())
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    ids, mask, labels = batch_of(CASES["mixed"] + CASES["a prompt in common"])
    with torch.no_grad():
        truth = plain_log_probs(exact, CASES["mixed"] + CASES["a prompt in common"])[0]
        plain = plain_log_probs(rounded, CASES["mixed"] + CASES["a prompt in common"])[0]
        assert not pack_forward(rounded, together=2)
        out = rounded(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    noise = (plain.float() - truth).abs().mean()
    assert 1e-4 < noise < 0.5
    assert (out.log_probs - truth).abs().mean() < 1.5 * noise


def test_a_lora_layer_that_is_not_plain_goes_to_pefts_forward() -> None:
    """With its adapter switched off it is its base layer; with dropout it is PEFT's layer, random numbers included."""
    from tiebreak.packed.lora import fuse_lora

    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

    def layer_of(dropout: float) -> Any:
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(16, 8))
        model = get_peft_model(layer, LoraConfig(r=4, target_modules=["0"], lora_dropout=dropout))
        torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
        return model

    plain, fused = layer_of(0.0), layer_of(0.0)
    assert fuse_lora(fused) == 1
    torch.testing.assert_close(fused(x), plain(x))
    assert type(fused(x).grad_fn).__name__ == "_LoraLinearBackward"
    with fused.disable_adapter(), plain.disable_adapter():
        assert torch.equal(fused(x), plain(x))
    dropped, reference = layer_of(0.5), layer_of(0.5)
    fuse_lora(dropped)
    torch.manual_seed(1)
    values = dropped(x)
    torch.manual_seed(1)
    assert torch.equal(values, reference(x))
    assert torch.allclose(dropped.eval()(x), reference.eval()(x), atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build(ARCHITECTURES["llama"]())
    ids, mask, labels = batch_of(CASES["mixed"])
    assert not pack_forward(model, together=2)
    passes: list[int] = []
    layer = model.get_base_model().base_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    results, counts = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable()
            model.train()
        passes.clear()
        out = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        (out.log_probs * weights_like(out.log_probs)).sum().backward()
        results.append(gradients(model))
        counts.append(len(passes))
    assert counts == [1, 2]  # with checkpointing the backward pass computes the layer again
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-6, atol=1e-7)


def test_calls_of_other_forms_go_to_the_plain_forward() -> None:
    model = build(ARCHITECTURES["llama"]())
    ids, mask, _ = batch_of(CASES["mixed"])
    before = model(input_ids=ids, attention_mask=mask).logits
    assert not pack_forward(model, together=2)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    assert model.generate(ids[:1, :3], max_new_tokens=2, do_sample=False).shape == (1, 5)


# --- architectures that cannot take it


def gemma2() -> PreTrainedConfig:
    return Gemma2Config(**GROUPED, head_dim=4, query_pre_attn_scalar=4, sliding_window=8)


def bloom() -> PreTrainedConfig:
    """Tells positions by its mask, not by position ids."""
    return BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4, pad_token_id=PAD)


def mamba() -> PreTrainedConfig:
    """Has no attention."""
    return MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=PAD)


@pytest.mark.parametrize(
    ("config", "attention", "reason"),
    [
        (gemma2, "eager", "not torch's own"),
        (bloom, "eager", "not torch's own"),
        (ARCHITECTURES["llama"], "eager", "not torch's own"),
        (mamba, None, "cannot be replaced|test|not torch's own"),
    ],
    ids=["gemma2", "bloom", "llama asked for eager", "mamba"],
)
def test_an_architecture_that_cannot_take_it_keeps_the_plain_forward_and_says_why(
    config: Callable[[], PreTrainedConfig], attention: str | None, reason: str
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(), attn_implementation=attention)
    ids, mask, _ = batch_of(CASES["mixed"])
    before = model(input_ids=ids, attention_mask=mask).logits
    assert re.search(reason, why_not(model))
    assert re.search(reason, pack_forward(model, together=2))
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_an_architecture_is_believed_only_after_a_trial() -> None:
    """A Llama whose rotary embedding counts places in the row, whatever position ids it is given."""
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]())
    rotary = model.model.rotary_emb
    plain = rotary.forward
    rotary.forward = lambda x, position_ids: plain(x, torch.arange(x.shape[1])[None])
    assert "hidden states differed" in why_not(model)
    assert model.config._attn_implementation == "sdpa"
