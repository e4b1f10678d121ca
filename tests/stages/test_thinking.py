"""Thoughts through the stages: a policy is pinned to how it was rendered, and what is masked in SFT stays masked in DPO."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows

THOUGHT = "Pale is hungry."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    asks = [f"Why is leaf {n} pale?" for n in range(6)]
    write_rows(
        folder / "demonstrations.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": ask}],
                "completion": [{"role": "assistant", "content": f"Add {n} ml.", "reasoning_content": THOUGHT}],
            }
            for n, ask in enumerate(asks)
        ],
    )
    write_rows(
        folder / "preferences.jsonl",
        [
            {
                "prompt": ask,
                "chosen": [{"role": "assistant", "content": f"Add {n} ml.", "reasoning_content": THOUGHT}],
                "rejected": f"<think>\nNo idea.\n</think>\n\nWait {n} days.",
                "split": "train",
            }
            for n, ask in enumerate(asks)
        ],
    )
    return folder


def stage(folder: Path, name: str, **values: Any) -> tuple[int, str]:
    defaults = {"output": folder / name, "tracking": {"mode": "disabled"}, "training": TINY_TRAINING | {"max_steps": 1}}
    return run_here(name, "--config", write_config(folder / f"{name}.yaml", **(defaults | values)))


@pytest.fixture(scope="module")
def sft(folder: Path, tiny_model: Path) -> Path:
    status, printed = stage(
        folder,
        "sft",
        policy=tiny_model,
        demonstrations=folder / "demonstrations.jsonl",
        chat_template="qwen3",
        thinking="mask",
        template_arguments={"some_switch": True},
        validation_share=0.0,
    )
    assert status == 0, printed
    assert "⟦\n\nAdd" in printed or "⟦Add" in printed  # the preflight's example: its thought is not learned
    assert THOUGHT in printed
    return folder / "sft"


def test_a_policy_brings_its_template_and_settings(folder: Path, sft: Path) -> None:
    pinned = json.loads((sft / "final" / "model.json").read_text())
    assert pinned["chat"] == {"template_arguments": {"some_switch": True}, "thinking": "mask"}
    values = {"policy": sft, "preferences": folder / "preferences.jsonl"}
    status, printed = stage(folder, "dpo", **values)
    assert status == 0, printed
    assert "⟦\n\nAdd" in printed or "⟦Add" in printed
    status, printed = stage(folder, "dpo", **values, output=folder / "other", template_arguments={"some_switch": False})
    assert status == 1
    assert "was trained with template_arguments: {'some_switch': True}" in printed
    status, printed = stage(folder, "dpo", **values, output=folder / "another", chat_template="gemma3")
    assert status == 1
    assert "chat_template is not the one it was trained with" in printed


def test_dpo_compares_answers_and_not_their_masked_thoughts(folder: Path, sft: Path) -> None:
    """What TRL's collator makes of a pair: its mask holds the answers' tokens alone, worked from the text."""
    from preference.configuration import DPOConfig
    from preference.pairs import PairCollator, encode, to_dataset
    from tiebreak.data.reading import read_preferences
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    chat = load_chat(find_model(str(sft)))
    config = DPOConfig.model_validate({"output": "x", "policy": str(sft), "preferences": "x"})
    pairs = encode(read_preferences(str(folder / "preferences.jsonl"))[:2], chat, config)
    batch = PairCollator(pad_token_id=chat.pad_id)(list(to_dataset(pairs)))
    learned = [
        chat.tokenizer.decode(ids[mask.bool()]).strip()
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert learned == [f"{text}<|im_end|>" for text in ("Add 0 ml.", "Add 1 ml.", "Wait 0 days.", "Wait 1 days.")]
    assert torch.equal(batch["attention_mask"].sum(1), (batch["input_ids"] != chat.pad_id).sum(1))


def test_sampled_answers_keep_the_ids_that_were_drawn(folder: Path, sft: Path) -> None:
    status, printed = stage(
        folder,
        "sample",
        policy=sft,
        prompts=folder / "demonstrations.jsonl",
        training={},
        sampling=[{"max_new_tokens": 12}],
    )
    assert status == 0, printed
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    chat = load_chat(find_model(str(sft)))
    pairs = read_rows(folder / "sample" / "final" / "pairs.jsonl")
    assert pairs
    for completion in itertools.chain.from_iterable(pair["completions"] for pair in pairs):
        assert chat.read(completion["ids"]).text == completion["text"]
        assert completion["tokenizer_sha256"] == chat.tokenizer_sha256
        assert completion["finished"] == (completion["ids"][-1] in chat.stop_ids)
    counts = json.loads((folder / "sample" / "final" / "report.json").read_text())["counts"]
    assert 0 <= counts["other_tokens_from_text"] <= counts["completions"]
