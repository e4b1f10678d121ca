"""Tokenizers without a fast backend are pinned like others; a cache that cannot be written costs time alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from preference.reference import ReferenceLogps
from tiebreak.errors import HandoffError, ModelError
from tiebreak.models import bundled
from tiebreak.models.find import base_sha256, find_model
from tiebreak.models.tokenizers import load_chat, load_tokenizer, tokenizer_facts
from tiebreak.runs.run import read_manifest

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer, of bytes, is written in Python."""
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer = ByT5Tokenizer()
    assert not hasattr(tokenizer, "backend_tokenizer")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    config = LlamaConfig(vocab_size=512, num_key_value_heads=2, max_position_embeddings=512, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_trains_and_is_pinned(of_bytes: Path, raw_data: Path, tmp_path: Path) -> None:
    demonstrations = write_rows(tmp_path / "shown.jsonl", read_rows(raw_data / "demonstrations.jsonl"))
    config = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=of_bytes,
        demonstrations=demonstrations,
        training={**TINY_TRAINING, "max_steps": 1},
        sampling={"max_new_tokens": 4},
    )
    status, message = run_here("sft", "--config", config)
    assert status == 0, message[-2000:]
    assert read_manifest(tmp_path / "sft")["probe_difference"] <= 1e-5
    source = find_model(str(tmp_path / "sft"))
    chat = load_chat(source)
    assert chat.tokenizer("é")["input_ids"][:2] == [0xC3 + 3, 0xA9 + 3]  # ByT5: a byte's number, after 3 special tokens
    (tmp_path / "sft" / "final" / "chat_template.jinja").write_text(TEMPLATE.replace("user", "human") + " ")
    with pytest.raises(HandoffError, match="its chat_template is not the one it was trained with"):
        load_tokenizer(source)


def test_its_hash_is_that_of_what_it_reads(of_bytes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (load_tokenizer(find_model(str(of_bytes))) for _ in range(2))
    assert tokenizer_facts(one) == tokenizer_facts(other)
    other.add_tokens(["<new>"])
    assert tokenizer_facts(one) != tokenizer_facts(other)
    before = tokenizer_facts(one)
    monkeypatch.setattr(ByT5Tokenizer, "_tokenize", lambda _, text: [chr(byte) for byte in text.lower().encode()])
    assert tokenizer_facts(one) != before
    monkeypatch.setattr(ByT5Tokenizer, "get_vocab", lambda _: (_ for _ in ()).throw(NotImplementedError))
    with pytest.raises(HandoffError, match="ByT5Tokenizer cannot list its vocabulary"):
        tokenizer_facts(one)


def test_a_cache_that_cannot_be_written(
    of_bytes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = base_sha256(of_bytes)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "file" / "cache"))
    assert base_sha256(of_bytes) == wanted
    with pytest.raises(
        ModelError, match=r"is not writable \(Not a directory\): set TIEBREAK_CACHE to a writable folder"
    ):
        bundled.load_bundled(bundled.SMOLLM2)

    reference = ReferenceLogps({}, pairs=[([5], [6], [7])])
    batch = {"input_ids": [[5, 6], [5, 7]], "attention_mask": [[1, 1]] * 2, "completion_mask": [[0, 1]] * 2}
    computed = (torch.tensor([-1.0]), torch.tensor([-2.0]))
    for _ in range(2):
        found = reference.of({name: torch.tensor(rows) for name, rows in batch.items()}, lambda _: computed)
        assert [float(value) for value in found] == [-1.0, -2.0]
    assert reference.computed == 1
    assert capsys.readouterr().err.count("are not cached") == 1
