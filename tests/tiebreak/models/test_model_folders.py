"""A model folder that was merged, copied, cut short or mixed up: it reads as it was trained, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import TINY_TRAINING, run_here, write_config
from transformers import AutoModelForCausalLM

from tiebreak.config import SamplingConfig, TrainingConfig
from tiebreak.errors import HandoffError, ModelError, TiebreakError
from tiebreak.messages import Message
from tiebreak.models.find import find_model
from tiebreak.models.load import load_base, load_frozen_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.generation import draw

ASK = (Message(role="user", content="Why?"),)
TEMPLATE = (
    "{% set how = ' ' + manner if manner is defined else '' %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ how }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ how }}\n{% endif %}"
)
READ = "<|im_start|>user loud\nWhy?<|im_end|>\n<|im_start|>assistant loud\n"


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, raw_data: Path) -> Path:
    """A policy that was trained with an argument to its template, and merged."""
    folder = tmp_path_factory.mktemp("loud")
    (folder / "template.jinja").write_text(TEMPLATE)
    config = write_config(
        folder / "sft.yaml",
        output=folder / "sft",
        policy=tiny_model,
        demonstrations=raw_data / "demonstrations.jsonl",
        adapter={"r": 4, "alpha": 8},
        training={**TINY_TRAINING, "max_steps": 1},
        sampling={"max_new_tokens": 4},
        chat_template=folder / "template.jinja",
        template_arguments={"manner": "loud"},
        merge=True,
    )
    status, stderr = run_here("sft", "--config", config)
    assert status == 0, stderr
    return folder / "sft"


def read_as(source: Path) -> str:
    chat = load_chat(find_model(str(source)))
    return str(chat.tokenizer.decode(chat.encode_prompt(ASK)))


def test_a_policy_reads_alike_wherever_it_is_taken_from(loud: Path, tmp_path: Path) -> None:
    """The run, its final folder, that folder copied elsewhere, and the merged weights, copied elsewhere too."""
    copied, merged = tmp_path / "copied", tmp_path / "merged"
    shutil.copytree(loud / "final", copied, ignore=shutil.ignore_patterns("merged"))
    shutil.copytree(loud / "final" / "merged", merged)
    for source in (loud, loud / "final", copied, loud / "final" / "merged", merged):
        assert read_as(source) == READ
    [checkpoint] = (loud / "checkpoints").glob("checkpoint-*")
    assert read_as(checkpoint) == READ


def broken(source: Path, folder: Path, file: str, change: Callable[[Path], object]) -> Path:
    shutil.copytree(source, folder)
    change(folder / file)
    return folder


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("final/adapter_model.safetensors", Path.unlink, "is missing: copy the whole folder"),
        ("final/model.json", lambda path: path.write_text("{"), "model.json cannot be read"),
        ("final/model.json", lambda path: path.write_text("{}"), "is broken (no adapter_sha256 and no base"),
    ],
)
def test_a_run_that_lost_a_file_is_refused(
    loud: Path, tmp_path: Path, file: str, change: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(TiebreakError) as caught:
        find_model(str(broken(loud, tmp_path / "run", file, change)))
    assert message in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_weights_that_were_cut_short_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    source = find_model(str(broken(tiny_model, tmp_path / "model", "model.safetensors", cut)))
    with pytest.raises(ModelError, match="cannot load the model"):
        load_base(source, TrainingConfig())


def without(*names: str) -> Callable[[Path], object]:
    """Leaves these tensors out of a file of weights."""

    def leave_out(path: Path) -> None:
        kept = {name: weight for name, weight in load_file(path).items() if name not in names}
        save_file(kept, path, metadata={"format": "pt"})

    return leave_out


def configured(**values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


NORM = "model.norm.weight"
THIRD = "model.layers.2.input_layernorm.weight"


@pytest.mark.parametrize(
    ("file", "change", "lacking", "as_reward"),
    [
        ("model.safetensors", without(NORM), f"its weights lack {NORM}, which", True),
        ("config.json", configured(num_hidden_layers=3), f"its weights lack 9 weights ({THIRD}, ", True),
        ("config.json", configured(tie_word_embeddings=False), "its weights lack lm_head.weight, which", False),
        (
            "config.json",
            configured(intermediate_size=96),
            "model.layers.0.mlp.down_proj.weight has the size 64 × 128 in its weights and 64 × 96 by its config.json, and "
            "5 other weights differ too",
            True,
        ),
    ],
)
def test_random_numbers_never_take_the_place_of_weights(
    tiny_model: Path, tmp_path: Path, file: str, change: Callable[[Path], object], lacking: str, as_reward: bool
) -> None:
    """As transformers would have it: a norm of ones, a layer or a head as it is drawn, with a warning alone. A reward
    model needs no head."""
    source = find_model(str(broken(tiny_model, tmp_path / "model", file, change)))
    with pytest.raises(ModelError) as refusal:
        load_base(source, TrainingConfig())
    assert lacking in str(refusal.value)
    if as_reward:
        with pytest.raises(ModelError):
            load_base(source, TrainingConfig(), kind="reward")
    else:
        load_base(source, TrainingConfig(), kind="reward")


def test_weights_that_a_model_has_no_place_for_are_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layer more than config.json counts: 9 tensors."""
    source = find_model(str(broken(tiny_model, tmp_path / "model", "config.json", configured(num_hidden_layers=1))))
    capsys.readouterr()
    for kind in ("policy", "reward"):
        load_base(source, TrainingConfig(), kind=kind)
        assert "no place for 9 weights (model.layers.1.input_layernorm.weight, " in capsys.readouterr().err
    for kind in ("policy", "reward"):
        load_base(find_model(str(tiny_model)), TrainingConfig(), kind=kind)
        assert not capsys.readouterr().err


def test_a_generation_config_that_is_no_json_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = broken(tiny_model, tmp_path / "model", "generation_config.json", lambda path: path.write_text("{"))
    with pytest.raises(HandoffError, match=r"generation_config\.json is no JSON"):
        load_chat(find_model(str(folder)))


def smaller(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 1000}))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_they_are_used(
    tiny_model: Path, tmp_path: Path
) -> None:
    chat = load_chat(find_model(str(broken(tiny_model, tmp_path / "model", "config.json", smaller))))
    with pytest.raises(HandoffError, match="that the model has no weights for, whose vocabulary is of 1000"):
        chat.encode_prompt(ASK)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}])
def test_a_model_that_gives_no_numbers_writes_nothing(sampling: dict[str, float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, float("nan"), 1.0, 2.0]])
    uniform = torch.tensor([0.5, 0.5])
    settings = SamplingConfig.model_validate(sampling)
    assert draw(logits[:1], uniform[:1], settings).shape == (1,)
    with pytest.raises(HandoffError, match="not finite numbers"):
        draw(logits, uniform, settings)


def test_merged_weights_are_those_of_the_policy(loud: Path) -> None:
    ids = torch.tensor([[1, 520, 9531, 198]])
    with torch.no_grad():
        ours = load_frozen_policy(find_model(str(loud)), TrainingConfig())(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(loud / "final" / "merged")(input_ids=ids).logits
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "place", "advice"),
    [
        ("mxfp4", None, "quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(FOLDER)"),
        ("fp8", None, "quantization_config=FineGrainedFP8Config(dequantize=True))"),
        ("awq", None, "give the model in 16 or 32 bits. adapter.quantize: nf4 or int8"),
        ("gptq", "text_config", "give the model in 16 or 32 bits. adapter.quantize: nf4 or int8"),
    ],
)
def test_weights_that_were_quantised_elsewhere_are_refused(
    method: str, place: str | None, advice: str, tiny_model: Path, tmp_path: Path
) -> None:
    """As gpt-oss is published, and many a Llama; of a multimodal model, its text tower names it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    held = {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config | ({place: held} if place else held)))
    with pytest.raises(ModelError, match=f"holds weights quantised with {method} ") as refused:
        find_model(str(folder))
    assert advice in str(refused.value)


@pytest.mark.parametrize("stored", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_numbers_are_refused(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """transformers casts them without their scales, and the model would train from noise."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].to(stored)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is stored as .*: give the model in 16 or 32 bits"):
        find_model(str(folder))
    mask = {"model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}  # as old GPT-2 files have
    save_file({**weights, **mask}, folder / "model.safetensors", metadata={"format": "pt"})
    assert find_model(str(folder)).base_path == folder


def test_weights_in_bitsandbytes_format_are_not_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert find_model(str(folder)).base_path == folder
