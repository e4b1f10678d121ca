"""Pairs in one row: the packing by hand, and equality with the plain padded forward in all that training sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Trainer,
)

from preference.dpo import CheckedDPOTrainer, DPOConfig, EncodedPair, build_dpo_args
from preference.dpo import to_dataset as to_dpo_dataset
from reward.train import EncodedPreference, RewardConfig, build_reward_args
from reward.train import to_dataset as to_reward_dataset
from tiebreak.config import TrainingConfig
from tiebreak.head import token_logps
from tiebreak.pairwise import pack_pairs, share_prefixes, shared_prefix_lengths, why_not
from tiebreak.records import Message, Preference
from tiebreak.runs import Run

PAD, VOCABULARY = 0, 31


# --- the packing, by hand


def test_packing_by_hand() -> None:
    """Prompt 5 6; completions 7 8 and 7 9 4. They begin with 5 6 7 in common.

    packed      5 6 7 | 8 | 9 4
    positions   0 1 2 | 3 | 3 4
    8 sees 5 6 7 8, and 4 sees 5 6 7 9 4.
    """
    ids = torch.tensor([[5, 6, 7, 8, PAD], [5, 6, 7, 9, 4]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    packed = pack_pairs(ids, mask, PAD)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert packed.may_attend.int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0],
                [1, 1, 1, 0, 1, 0],
                [1, 1, 1, 0, 1, 1],
            ]
        ]
    ]
    assert packed.place[0, :4].tolist() == [0, 1, 2, 3]
    assert packed.place[1].tolist() == [0, 1, 2, 4, 5]


def test_rows_of_other_lengths_are_packed_beside_each_other() -> None:
    """A pair with nothing in common (3 | 2 1) beside a longer one (5 6 | 7 | 8): the shorter row is padded.

    Padding stands at position 0 and is seen by padding alone.
    """
    ids = torch.tensor([[3, PAD, PAD], [5, 6, 7], [2, 1, PAD], [5, 6, 8]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    packed = pack_pairs(ids, mask, PAD)
    assert packed.input_ids.tolist() == [[3, 2, 1, PAD], [5, 6, 7, 8]]
    assert packed.position_ids.tolist() == [[0, 0, 1, 0], [0, 1, 2, 2]]
    assert packed.may_attend[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert [packed.place[row, : int(mask[row].sum())].tolist() for row in range(4)] == [
        [0],
        [0, 1, 2],
        [1, 2],
        [0, 1, 3],
    ]


def test_a_sequences_own_last_token_is_never_shared() -> None:
    """Where one sequence begins the other, or equals it, each still has a token of its own to be read at."""
    ids = torch.tensor([[5, 6, 7], [5, 6, PAD], [5, 6, 7], [5, 6, 7]])
    assert shared_prefix_lengths(ids, torch.tensor([3, 2, 3, 3])).tolist() == [2, 1]


def test_unpacking_returns_every_token_to_its_row() -> None:
    """Hidden states that hold their token's id come back as the plain rows, whatever was packed."""
    ids, mask, _ = batch_of(CASES["mixed"])
    packed = pack_pairs(ids, mask, PAD)
    back = packed.unpack(packed.input_ids[..., None].float()).squeeze(-1).long()
    assert torch.equal(back[mask.bool()], ids[mask.bool()])


# --- equality with the plain forward


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


CASES = {
    "a prompt in common": [Pair([5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]), Pair([3, 4], [5, 6], [7])],
    "completions begin alike": [Pair([5, 6], [7, 8, 9, 10, 11], [7, 8, 9, 12]), Pair([5], [6, 7], [6, 8])],
    "nothing in common": [Pair([], [5, 6, 7], [8, 9, 10, 11]), Pair([], [9, 4], [10, 4, 5])],
    "one token each": [Pair([5, 6, 7], [8], [9]), Pair([4], [8], [9])],
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


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}


def build(
    config: PreTrainedConfig,
    auto: Any = AutoModelForCausalLM,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> PeftModel:
    """A random model under a LoRA adapter that is not at its start, so that all of it has a gradient."""
    torch.manual_seed(0)
    scores = auto is AutoModelForSequenceClassification
    if scores:
        config.num_labels = 1
    base = auto.from_config(config, attn_implementation=attention, dtype=dtype)
    base.config.use_cache = False
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS" if scores else "CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


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


def assert_same_log_probs(model: PeftModel, pairs: list[Pair], dtype: torch.dtype) -> None:
    model.train()
    logps, entropy, mean_logits, is_top1 = plain_log_probs(model, pairs)
    (logps * weights_like(logps)).sum().backward()
    expected = gradients(model)
    shared = copy.deepcopy(model)
    assert share_prefixes(shared)
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_their_gradients_are_the_plain_forwards(architecture: str, attention: str) -> None:
    model = build(ARCHITECTURES[architecture](), attention=attention)
    assert_same_log_probs(model, CASES["mixed"], torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_in_float64_they_agree_to_1e_9(case: str) -> None:
    """GPT-NeoX, whose LayerNorm stays in float64; Llama's RMSNorm rounds its states and their gradients to float32."""
    model = build(ARCHITECTURES["gpt_neox"](), dtype=torch.float64)
    assert_same_log_probs(model, CASES[case], torch.float64)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_their_gradients_are_the_plain_forwards(architecture: str, attention: str) -> None:
    model = build(ARCHITECTURES[architecture](), AutoModelForSequenceClassification, attention)
    ids, mask, _ = batch_of(CASES["mixed"])
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    (plain * weights_like(plain)).sum().backward()
    expected = gradients(model)
    shared = copy.deepcopy(model)
    assert share_prefixes(shared)
    scores = shared(input_ids=ids, attention_mask=mask, use_cache=False).logits
    (scores * weights_like(scores)).sum().backward()
    found = gradients(shared)
    torch.testing.assert_close(scores, plain, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build(ARCHITECTURES["llama"]())
    ids, mask, labels = batch_of(CASES["mixed"])
    assert share_prefixes(model)
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
    assert share_prefixes(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    assert model.generate(ids[:1, :3], max_new_tokens=2, do_sample=False).shape == (1, 5)


# --- architectures that cannot take it


def gemma2() -> PreTrainedConfig:
    return Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4, sliding_window=8)


def mistral_with_a_window() -> PreTrainedConfig:
    return MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [(gemma2, "do not attend to everything"), (mistral_with_a_window, "slides over a window")],
    ids=["gemma2", "mistral"],
)
def test_an_architecture_that_cannot_take_it_keeps_the_plain_forward_and_says_so(
    config: Callable[[], PreTrainedConfig], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(config(), attention="eager")
    ids, mask, _ = batch_of(CASES["mixed"])
    before = model(input_ids=ids, attention_mask=mask).logits
    assert reason in why_not(model.get_base_model())
    assert not share_prefixes(model)
    assert reason in capsys.readouterr().err
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_capped_logits_are_refused_for_their_own_sake() -> None:
    """Full attention everywhere, and a soft cap after the head."""
    config = gemma2()
    config.layer_types = ["full_attention"] * 2
    config.sliding_window = None
    assert "capped or scaled" in why_not(build(config, attention="eager").get_base_model())


# --- the head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 700])
def test_the_heads_chunks_give_autograds_values_and_gradient(tokens: int, temperature: float) -> None:
    """700 tokens are two chunks. The oracle is log_softmax of whole logits, with torch's own gradient."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, VOCABULARY).requires_grad_(False)
    hidden = torch.randn(tokens, 8, requires_grad=True)
    targets = torch.randint(VOCABULARY, (tokens,))
    weights = torch.randn(tokens)
    logps = (head(hidden) / temperature).log_softmax(-1)
    (logps[torch.arange(tokens), targets] * weights).sum().backward()
    expected, hidden.grad = hidden.grad, None
    out = token_logps(hidden, head, targets, temperature)
    (out.logps * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.logps, logps[torch.arange(tokens), targets])
    torch.testing.assert_close(out.entropy, -(logps.exp() * logps).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.mean_logits, head(hidden).mean(-1))


def test_a_head_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="head is trained"):
        token_logps(torch.zeros(1, 8), torch.nn.Linear(8, VOCABULARY), torch.tensor([0]))


# --- through TRL's trainers


TRAINING = TrainingConfig(
    learning_rate=1e-2, max_steps=10, per_device_batch_size=3, warmup_share=0.0, precision="float32"
)


def random_pairs(count: int = 24) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    return [Pair(draw(1, 9), draw(1, 7), draw(1, 7)) for _ in range(count)]


def words() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w1")


def losses(trainer: Trainer, share: bool, folder: Path) -> list[dict[str, float]]:
    """The rows that ten steps log."""
    if share:
        assert share_prefixes(trainer.model)
    trainer.args.save_strategy = "no"
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 10
    assert len({row["loss"] for row in rows}) > 5  # it trains
    assert not any(folder.rglob("*.safetensors"))
    return rows


def assert_same_rows(one: list[dict[str, float]], other: list[dict[str, float]], keys: list[str]) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in keys:
            assert a[key] == pytest.approx(b[key], abs=1e-3), f"{key} at step {step}"


def test_dpo_through_trl_logs_the_same_with_and_without(tmp_path: Path) -> None:
    config = DPOConfig(output=str(tmp_path), policy="", preferences="", training=TRAINING, beta=0.5)
    run = Run(folder=tmp_path, stage="dpo", config=config, inputs={}, fingerprint="")
    pairs = [EncodedPair(p.prompt, p.chosen, p.rejected) for p in random_pairs()]

    def rows(share: bool) -> list[dict[str, float]]:
        trainer = CheckedDPOTrainer(
            model=build(ARCHITECTURES["llama"]()),
            args=build_dpo_args(config, run),
            train_dataset=to_dpo_dataset(pairs),
            processing_class=words(),
        )
        return losses(trainer, share, tmp_path)

    keys = ["loss", "rewards/margins", "logps/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "grad_norm"]
    assert_same_rows(rows(share=True), rows(share=False), keys)


def test_reward_training_through_trl_logs_the_same_with_and_without(tmp_path: Path) -> None:
    from trl import RewardTrainer

    config = RewardConfig(output=str(tmp_path), policy="", preferences="", training=TRAINING)
    run = Run(folder=tmp_path, stage="reward", config=config, inputs={}, fingerprint="")
    source = Preference(
        prompt=(Message(role="user", content="x"),),
        chosen=(Message(role="assistant", content="y"),),
        rejected=(Message(role="assistant", content="z"),),
    )
    pairs = [EncodedPreference(p.prompt, p.chosen, p.rejected, n % 3 / 3, source) for n, p in enumerate(random_pairs())]

    def rows(share: bool) -> list[dict[str, float]]:
        trainer = RewardTrainer(
            model=build(ARCHITECTURES["llama"](), AutoModelForSequenceClassification),
            args=build_reward_args(config, run),
            train_dataset=to_reward_dataset(pairs),
            processing_class=words(),
        )
        return losses(trainer, share, tmp_path)

    assert_same_rows(rows(share=True), rows(share=False), ["loss", "margin", "mean_reward", "accuracy", "grad_norm"])
