"""Sampling, against transformers' own generation, closed-form probabilities and plain forward passes."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiebreak.config import SamplingConfig
from tiebreak.packed.forward import packs
from tiebreak.packed.generation import (
    FOUND_STORE,
    REPORTED,
    SampledCompletion,
    _columns,
    _with_text,
    draw,
    find_store,
    row_seed,
    sample_completions,
    stream_completion,
)

PAD = 0


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts(count: int = 6) -> list[list[int]]:
    pick = random.Random(0)
    return [[pick.randrange(3, 49152) for _ in range(pick.randrange(2, 14))] for _ in range(count)]


def sample(
    model: Any, rows: list[list[int]], seeds: list[int], sampling: SamplingConfig, **options: Any
) -> list[SampledCompletion]:
    options = {"stop_ids": [-1], "pad_id": PAD, "batch_size": 4, **options}
    return sample_completions(model, rows, seeds, sampling, **options)


# --- whole completions -----------------------------------------------------------------------------------------------


def test_greedy_is_transformers_own(model: Any) -> None:
    rows = prompts()
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=8)
    ours = sample(model, rows, [0] * len(rows), greedy, batch_size=3)
    for row, sampled in zip(rows, ours, strict=True):
        theirs = model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=PAD,
        )
        assert sampled.ids == theirs[0, len(row) :].tolist()
        assert not sampled.finished


def test_a_row_is_the_same_whatever_shares_its_batch(model: Any) -> None:
    rows, sampling = prompts(), SamplingConfig(temperature=1.0, top_k=50, max_new_tokens=6)
    seeds = [row_seed("x", n) for n in range(len(rows))]
    together = sample(model, rows, seeds, sampling, batch_size=6)
    alone = [sample(model, [row], [seed], sampling)[0] for row, seed in zip(rows, seeds, strict=True)]
    turned = sample(model, rows[::-1], seeds[::-1], sampling, batch_size=4)[::-1]
    assert [s.ids for s in together] == [s.ids for s in alone] == [s.ids for s in turned]


def test_seeds_decide(model: Any) -> None:
    row, sampling = prompts(1)[0], SamplingConfig(max_new_tokens=6)
    first, second = sample(model, [row] * 2, [1, 2], sampling)
    assert first.ids != second.ids
    assert sample(model, [row] * 2, [2, 1], sampling) == [second, first]
    assert len({row_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert row_seed("a", "b") != row_seed("ab")
    assert all(0 <= row_seed(n) < 2**63 for n in range(50))


def test_a_row_ends_at_its_own_end_of_sequence(model: Any) -> None:
    """Made certain by taking as the end whatever token the greedy run writes third."""
    rows = prompts()
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=7)
    whole = sample(model, rows, [0] * 6, greedy, batch_size=6)
    eos = whole[2].ids[2]
    for row, stopped in zip(whole, sample(model, rows, [0] * 6, greedy, stop_ids=[eos], batch_size=6), strict=True):
        expected = row.ids[: row.ids.index(eos) + 1] if eos in row.ids else row.ids
        assert stopped.ids == expected
        assert stopped.finished is (eos in row.ids)
        assert len(stopped.logps) == len(stopped.ids)


@pytest.mark.parametrize(("temperature", "measured_at"), [(0.7, 0.7), (1.0, 1.0), (0.0, 1.0)])
def test_logps_are_a_plain_forwards(model: Any, temperature: float, measured_at: float) -> None:
    rows = prompts()
    sampling = SamplingConfig(temperature=temperature, top_k=20, max_new_tokens=5)
    for row, sampled in zip(rows, sample(model, rows, list(range(6)), sampling), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row + sampled.ids])).logits[0].double()
        table = torch.log_softmax(logits / measured_at, -1)
        expected = [float(table[len(row) + t - 1, token]) for t, token in enumerate(sampled.ids)]
        assert sampled.logps == pytest.approx(expected, abs=5e-5)


# --- what is never drawn, and what a model's own generation would do


def test_ids_without_text_are_never_drawn(model: Any) -> None:
    """Greedily as transformers' own generation suppresses tokens; log-probabilities are those of the whole vocabulary."""
    rows = prompts(3)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=5)
    free = sample(model, rows, [0] * 3, greedy)
    banned = sorted({token for one in free for token in one.ids})
    for row, sampled in zip(rows, sample(model, rows, [0] * 3, greedy, textless_ids=banned), strict=True):
        theirs = model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            do_sample=False,
            max_new_tokens=5,
            pad_token_id=PAD,
            suppress_tokens=banned,
        )
        assert sampled.ids == theirs[0, len(row) :].tolist()
        with torch.no_grad():
            table = model(input_ids=torch.tensor([row + sampled.ids])).logits[0, len(row) - 1 : -1].log_softmax(-1)
        assert sampled.logps == pytest.approx([float(r[t]) for r, t in zip(table, sampled.ids, strict=True)], abs=5e-5)
        assert sampled.textless_share == pytest.approx(float(table[:, banned].exp().sum(-1).mean()), rel=1e-4)
    streamed = stream_completion(model, rows[0], 0, greedy, stop_ids=[-1], pad_id=PAD, textless_ids=banned)
    assert list(streamed) == sample(model, rows[:1], [0], greedy, textless_ids=banned)[0].ids
    assert [one.textless_share for one in free] == [0.0] * 3


@pytest.mark.parametrize("top", [{}, {"top_k": 2}, {"top_p": 0.99}, {"top_k": 3, "temperature": 2.0}])
def test_what_is_left_is_drawn_in_its_proportions(top: dict[str, Any]) -> None:
    """Logits 1 and 0 beside two ids without text that would take nearly everything: σ(1/T), whatever is cut."""
    logits = torch.tensor([[90.0, 1.0, 95.0, 0.0]]).expand(2000, -1)
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    sampling = SamplingConfig(max_new_tokens=1, **top)
    drawn = draw(_with_text(logits, _columns((0, 2, 7), logits)), uniform, sampling)  # the logits have no column 7
    assert set(drawn.tolist()) <= {1, 3}
    expected = 1 / (1 + math.exp(-1 / sampling.temperature))
    assert float((drawn == 1).double().mean()) == pytest.approx(expected, abs=1e-3)


def test_what_a_models_own_generation_would_do_is_reported_once(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    own = copy.deepcopy(model)
    for attribute in (FOUND_STORE, REPORTED):
        own.__dict__.pop(attribute, None)
    own.generation_config.update(repetition_penalty=1.3, min_length=0, num_beams=1, suppress_tokens=[5])
    for _ in range(2):
        sample(own, prompts(2), [0, 0], SamplingConfig(max_new_tokens=2), textless_ids=list(range(3, 20_000)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "generation_config.json: sampling does not apply repetition_penalty: 1.3, suppress_tokens: [5]; it draws by the "
        "keys of sampling alone"
    )
    assert lines[1].startswith("19997 of the model's ids have no token in its tokenizer and ")
    assert len(lines) == 2
    sample(model, prompts(2), [0, 0], SamplingConfig(max_new_tokens=2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_rows_that_wait_take_the_places_of_those_that_are_done(model: Any, batch_size: int) -> None:
    """Rows of very different lengths, for the end is one of the four likeliest tokens: each as if it were alone."""
    rows = prompts(14)
    sampling = SamplingConfig(temperature=1.0, top_k=4, max_new_tokens=9)
    seeds = list(range(len(rows)))
    whole = sample(model, rows, seeds, sampling, batch_size=len(rows))
    ends = {token for sampled in whole for token in sampled.ids[2:5]}
    eos = max(ends, key=lambda token: sum(token in sampled.ids for sampled in whole))
    expected = [s.ids[: s.ids.index(eos) + 1] if eos in s.ids else s.ids for s in whole]
    assert len({len(ids) for ids in expected}) > 1
    reported: list[int] = []
    crowded = sample(model, rows, seeds, sampling, stop_ids=[eos], batch_size=batch_size, on_done=reported.append)
    assert [s.ids for s in crowded] == expected
    assert sum(reported) == len(rows)
    for sampled, alone in zip(crowded, whole, strict=True):
        assert sampled.logps == pytest.approx(alone.logps[: len(sampled.ids)], abs=1e-5)


def tokens_given(model: Any, rows: list[list[int]], max_new_tokens: int) -> tuple[int, int]:
    """(tokens, padding among them, that the model computed; tokens that were written except for each row's last)."""
    assert packs(model)  # which tries the model out
    find_store(model, PAD)
    given = 0

    def count(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        nonlocal given
        given += options["input_ids"].numel()

    hook = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        sampling = SamplingConfig(top_k=5, max_new_tokens=max_new_tokens)
        sampled = sample(model, rows, list(range(len(rows))), sampling, batch_size=len(rows))
    finally:
        hook.remove()
    return given, sum(len(one.ids) - 1 for one in sampled)


def test_nothing_is_computed_twice_or_on_rows_that_are_done(model: Any) -> None:
    """Each different prompt once, without padding, and each written token but a row's last."""
    asked = prompts(3)
    assert len({len(prompt) for prompt in asked}) > 1
    given, written = tokens_given(model, [row for row in asked for _ in range(4)], max_new_tokens=7)
    assert given == sum(map(len, asked)) + written


def test_a_model_that_cannot_take_packed_prompts_draws_the_same(model: Any, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager").eval()
    assert packs(model)
    assert not packs(other)
    rows, sampling = prompts(7), SamplingConfig(temperature=1.0, top_k=4, max_new_tokens=6)
    ours = sample(model, rows, list(range(7)), sampling, batch_size=3)
    assert [one.ids for one in sample(other, rows, list(range(7)), sampling, batch_size=3)] == [one.ids for one in ours]


def test_what_all_prompts_begin_with_is_computed_once(model: Any) -> None:
    """As the message of a chat template: 12 tokens, and then what each prompt has of its own; drawn as without it."""
    asked = prompts(3)
    system = list(range(40, 52))
    given, written = tokens_given(model, [system + row for row in asked], max_new_tokens=4)
    assert given == len(system) + sum(map(len, asked)) + written


def test_progress_is_reported_row_by_row(model: Any) -> None:
    reported: list[int] = []
    sample(model, prompts(), [0] * 6, SamplingConfig(max_new_tokens=2), on_done=reported.append)
    assert sum(reported) == 6


# --- one draw --------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def uniforms(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def counts(sampling: SamplingConfig, draws: int = 20_000, logits: Tensor = LOGITS) -> list[int]:
    tokens = draw(logits.expand(draws, -1), uniforms(draws), sampling)
    return torch.bincount(tokens, minlength=len(logits)).tolist()


def closed_form(temperature: float, kept: list[int]) -> list[float]:
    """softmax(logits / temperature) of the kept tokens alone, by hand."""
    weights = [math.exp(float(LOGITS[n]) / temperature) if n in kept else 0.0 for n in range(6)]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("sampling", "temperature", "kept"),
    [
        (SamplingConfig(), 1.0, [0, 1, 2, 3, 4, 5]),
        (SamplingConfig(temperature=2.0), 2.0, [0, 1, 2, 3, 4, 5]),
        (SamplingConfig(top_k=3), 1.0, [0, 1, 2]),
        # p = .561 .206 .125 .076 .028 .004: two make .767, less than .8, and three .892
        (SamplingConfig(top_p=0.8), 1.0, [0, 1, 2]),
        (SamplingConfig(top_p=0.5), 1.0, [0]),
        (SamplingConfig(temperature=2.0, top_k=4, top_p=0.6), 2.0, [0, 1]),
    ],
)
def test_draws_follow_the_closed_form(sampling: SamplingConfig, temperature: float, kept: list[int]) -> None:
    expected, seen = closed_form(temperature, kept), counts(sampling)
    assert [n for n, count in enumerate(seen) if count] == kept
    chi_square = sum((seen[n] - 20_000 * expected[n]) ** 2 / (20_000 * expected[n]) for n in kept)
    # the 99.9% points of chi-square with 0 to 5 degrees of freedom
    assert chi_square <= [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52][len(kept) - 1]


def test_the_order_of_the_tokens_does_not_matter() -> None:
    turned = counts(SamplingConfig(top_k=2), logits=LOGITS.flip(0))
    assert [n for n, count in enumerate(turned) if count] == [4, 5]


def test_a_draw_inverts_the_distribution_function() -> None:
    """Four equal tokens: the quarters of [0, 1) in order, their edges included."""
    points = torch.tensor([0.0, 0.24, 0.25, 0.49, 0.5, 0.75, 0.999999999], dtype=torch.float64)
    assert draw(torch.zeros(7, 4), points, SamplingConfig()).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_no_rounding_picks_a_token_that_cannot_be() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]]).expand(3, -1)
    points = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, points, SamplingConfig()).tolist() == [0, 1, 1]
    assert draw(logits, points, SamplingConfig(top_k=3)).max() < 2


def test_greedy_takes_the_likeliest() -> None:
    assert counts(SamplingConfig(temperature=0.0), draws=10) == [10, 0, 0, 0, 0, 0]
