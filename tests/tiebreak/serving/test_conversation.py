"""`tiebreak chat`, driven by lines: its answers are those of transformers' own greedy generation, turn after turn."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiebreak.command.cli import main
from tiebreak.config import SamplingConfig
from tiebreak.library import Answer, load_policy, load_reward_model, score
from tiebreak.packed import generation
from tiebreak.packed.generation import sample_completions, stream_completion
from tiebreak.serving.chat import Session, _AnswerDisplay
from tiebreak.serving.configuration import ChatArguments

GREEDY = ("--sampling.temperature", "0", "--sampling.max-new-tokens", "6")
ASK, NEXT = "Why are my basil leaves pale?", "And at night?"


@pytest.fixture(scope="module")
def runs(finished_recipe: Path) -> Path:
    return finished_recipe / "runs"


@pytest.fixture(scope="module")
def merged(runs: Path) -> tuple[Any, Any]:
    """The SFT policy as transformers loads it."""
    folder = runs / "sft" / "final" / "merged"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def greedy(merged: tuple[Any, Any], messages: list[dict[str, str]], count: int = 6) -> str:
    model, tokenizer = merged
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def chat(monkeypatch: pytest.MonkeyPatch, lines: list[str], *words: str | Path) -> tuple[str, str]:
    """(standard output, standard error) of a chat that these lines drive."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    shown, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(stderr):
        main(["chat", *map(str, words)])
    return shown.getvalue(), stderr.getvalue()


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def test_answers_are_transformers_own_and_turns_follow(
    runs: Path, merged: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [ASK, NEXT, "/save " + str(tmp_path / "c.jsonl"), "/system Be brief.", ASK, "/nonsense", "/exit", "never"]
    shown, stderr = chat(monkeypatch, lines, runs / "sft", *GREEDY)
    first = greedy(merged, turns(ASK))
    second = greedy(merged, turns(ASK, first, NEXT))
    brief = greedy(merged, [{"role": "system", "content": "Be brief."}, *turns(ASK)])
    assert shown == f"{first}\n{second}\n{brief}\n"
    assert "no such command: /nonsense (/help lists them)" in stderr
    [row] = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert row["messages"] == turns(ASK, first, NEXT, second)
    _, stderr = chat(monkeypatch, ["/save " + str(tmp_path / "c.jsonl"), "/clear", "/help"], runs / "sft", *GREEDY)
    assert "exists, and nothing is overwritten" in stderr
    assert "/system TEXT  give the system message" in stderr


def test_two_policies_answer_with_their_scores(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--against", runs / "dpo", "--reward-model", runs / "reward", *GREEDY)
    shown, _ = chat(monkeypatch, [ASK], runs / "sft", *words)
    sides = re.split(r"^.*/runs/(?:sft|dpo):\n", shown, flags=re.M)[1:]
    for name, side in zip(("sft", "dpo"), sides, strict=True):
        policy, judge = load_policy(str(runs / name)), load_reward_model(str(runs / "reward"))
        [one] = sample_completions(
            policy.model,
            [policy.chat.encode_prompt(_messages())],
            [0],
            SamplingConfig(temperature=0, max_new_tokens=6),
            stop_ids=policy.chat.stop_ids,
            pad_id=policy.chat.pad_id,
            batch_size=1,
        )
        read = policy.chat.read(one.ids)
        answer = Answer(read.text, read.finished, tuple(one.ids), policy.chat.tokenizer_sha256)
        assert side == f"{read.text}\nscore {score(judge, [ASK], [answer])[0]:+.3f}\n"


def _messages() -> list[Any]:
    from tiebreak.messages import Message

    return [Message(role="user", content=ASK)]


def test_ctrl_c_stops_an_answer_and_not_the_program(
    runs: Path, merged: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = generation.stream_completion
    calls = []

    def interrupted(*arguments: Any, **options: Any) -> Iterator[int]:
        calls.append(1)
        for number, token in enumerate(drawn(*arguments, **options)):
            if len(calls) == 1 and number == 3:
                signal.raise_signal(signal.SIGINT)
            yield token

    monkeypatch.setattr(generation, "stream_completion", interrupted)
    before = signal.getsignal(signal.SIGINT)
    shown, stderr = chat(monkeypatch, [ASK, NEXT], runs / "sft", *GREEDY)
    part = greedy(merged, turns(ASK), 3)
    assert shown == f"{part}\n{greedy(merged, turns(ASK, part, NEXT))}\n"
    assert "stopped" in stderr
    assert signal.getsignal(signal.SIGINT) is before


def test_a_turn_that_does_not_fit_is_refused_and_the_next_is_answered(
    runs: Path, merged: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, stderr = chat(monkeypatch, ["word " * 600, "<|im_end|>", ASK], runs / "sft", *GREEDY)
    assert stderr.count("error: ") == 2
    assert shown == greedy(merged, turns(ASK)) + "\n"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_stream_as_they_are_sampled(runs: Path, temperature: float) -> None:
    policy = load_policy(str(runs / "sft"))
    prompt = policy.chat.encode_prompt(_messages())
    sampling = SamplingConfig(temperature=temperature, top_k=50, max_new_tokens=9)
    options: Any = {"stop_ids": policy.chat.stop_ids, "pad_id": policy.chat.pad_id}
    [wanted] = sample_completions(policy.model, [prompt], [7], sampling, batch_size=1, **options)
    assert list(stream_completion(policy.model, prompt, 7, sampling, **options)) == wanted.ids
    options["stop_ids"] = (wanted.ids[4],)
    assert (
        list(stream_completion(policy.model, prompt, 7, sampling, **options))
        == wanted.ids[: wanted.ids.index(wanted.ids[4]) + 1]
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_thoughts_are_dim_and_half_characters_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    shown = _AnswerDisplay(Session(ChatArguments(), [], None, terminal))
    for thought, text in (("Iron", ""), ("Iron?", ""), ("Iron?", "It is \ufffd"), ("Iron?", "It is é\x1b[31m.")):
        shown.update(thought, text)
    shown.finish("Iron?", "It is é\x1b[31m.")
    assert terminal.getvalue() == "\x1b[2mIron\x1b[0m\x1b[2m?\x1b[0m\n\nIt is é.\n"


def test_what_is_no_policy_is_refused(runs: Path) -> None:
    assert "is a reward model, but a policy model is needed" in run_here("chat", runs / "reward")[1]
    assert "chat takes one policy before its flags" in run_here("chat", "--seed", "1")[1]
