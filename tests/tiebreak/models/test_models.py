"""Models saved, loaded in a fresh process and compared; and whatever was changed in between refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import REPOSITORY, build_tiny_model

from tiebreak.chat.build import build_chat
from tiebreak.config import AdapterConfig, StageConfig, TrackingConfig, TrainingConfig
from tiebreak.errors import ConfigError, HandoffError, MachineError, ModelError, RunError
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import find_model
from tiebreak.models.load import (
    load_base,
    load_frozen_policy,
    load_policy,
    load_reward_model,
    load_trained_reward_model,
    require_possible,
)
from tiebreak.models.precision import WeightFormat, resolve_precision
from tiebreak.models.probe import probe_values, write_probe
from tiebreak.models.reload import FreshProcess
from tiebreak.models.save import save_adapter
from tiebreak.models.tokenizers import load_tokenizer, require_same_chat, tokenizer_facts
from tiebreak.runs.run import start_run

TRAINING = TrainingConfig(precision="float32")
ADAPTER = AdapterConfig(r=4, alpha=8)
IDS = [1, 520, 9531, 198, 77, 4093, 2]


def train_a_little(model: Any) -> None:
    """Give an adapter weights that are not its initial ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def save_run(
    folder: Path, base: Path | str, kind: Any = "policy", ids: list[int] = IDS, inputs: dict[str, str] | None = None
) -> Path:
    """A finished run that holds an adapter on `base`."""
    run = start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), kind, inputs or {})
    source = find_model(str(base))
    tokenizer = load_tokenizer(source)
    load = load_policy if kind == "policy" else load_reward_model
    model = load(source, TRAINING, ADAPTER, tokenizer)
    train_a_little(model)
    save_adapter(run.final, model, Adapter(model).state(), build_chat(tokenizer), source, kind, ADAPTER)
    write_probe(run.final, ids, probe_values(model, ids), model)
    run.finish()
    return folder


def test_a_fresh_process_adds_up_in_the_same_order(tmp_path: Path) -> None:
    """A launch of several processes leaves each one thread, and a fresh one has all: of a real model another number of
    them makes more than the 1e-5 that are allowed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        folder = save_run(tmp_path / "sft", "bundled:smollm2-135m-instruct", ids=list(range(1000, 1090)))
        with FreshProcess(folder / "final") as process:
            assert process.verify() == (0.0, [])
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "sft", tiny_model)


@pytest.fixture(scope="module")
def judge(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "reward", tiny_model, "reward")


@pytest.fixture
def copy_of(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to tamper with."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# --- save and load ---------------------------------------------------------------------------------------------------

FRESH = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
base, policy, reward, ids = *sys.argv[1:4], json.loads(sys.argv[4])
options = {"num_labels": 1, "pad_token_id": 0, "dtype": torch.float32}
judge = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, **options), reward).eval()
writer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), policy).eval()
with torch.no_grad():
    logits = writer(input_ids=torch.tensor([ids])).logits[0]
    score = judge(input_ids=torch.tensor([ids])).logits
logps = [float(torch.log_softmax(logits[t], -1)[token]) for t, token in enumerate(ids[1:])]
print(json.dumps([logps, [float(score.item())]]))
"""


def test_a_fresh_process_of_plain_peft_says_the_same(trained: Path, judge: Path, tiny_model: Path) -> None:
    finals = [str(folder / "final") for folder in (trained, judge)]
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tiny_model), *finals, json.dumps(IDS)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(result.stdout.splitlines()[-1])
    for final, answer, count in zip(finals, answers, (len(IDS) - 1, 1), strict=True):
        saved = json.loads((Path(final) / "probe.json").read_text())["values"]
        assert answer == pytest.approx(saved, abs=1e-5)
        assert len(saved) == count


def test_every_way_of_loading_says_the_same_and_not_what_the_base_says(trained: Path, tiny_model: Path) -> None:
    source = find_model(str(trained))
    saved = json.loads((trained / "final" / "probe.json").read_text())["values"]
    frozen = load_frozen_policy(source, TRAINING)  # merged
    going_on = load_policy(source, TRAINING, None, load_tokenizer(source))
    base = load_frozen_policy(find_model(str(tiny_model)), TRAINING)
    assert probe_values(frozen, IDS) == pytest.approx(saved, abs=1e-4)
    assert probe_values(going_on, IDS) == pytest.approx(saved, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(probe_values(base, IDS), saved, strict=True)) > 0.01
    assert not any(p.requires_grad for p in frozen.parameters())
    assert {n.split(".")[-3] for n, p in going_on.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_a_reward_models_head_is_saved_with_it(judge: Path) -> None:
    model = load_trained_reward_model(find_model(str(judge), "reward"), TRAINING)
    saved = json.loads((judge / "final" / "probe.json").read_text())["values"]
    assert probe_values(model, IDS) == pytest.approx(saved, abs=1e-5)


def test_a_reward_model_starts_with_the_policys_adapter(trained: Path) -> None:
    source = find_model(str(trained))
    tokenizer = load_tokenizer(source)
    reward = load_reward_model(source, TRAINING, None, tokenizer)
    policy = load_policy(source, TRAINING, None, tokenizer)
    theirs = {n: p for n, p in policy.named_parameters() if "lora" in n}
    ours = {n: p for n, p in reward.named_parameters() if "lora" in n}
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert ours


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_tampered_adapter_is_refused(copy_of: Path) -> None:
    weights = copy_of / "final" / "adapter_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(HandoffError, match="has changed since it was saved: its hash differs"):
        find_model(str(copy_of))


def test_other_base_weights_are_refused(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    run = save_run(tmp_path / "run", base)
    find_model(str(run))
    build_tiny_model(base, seed=7)
    with pytest.raises(HandoffError, match="was trained on other weights"):
        find_model(str(run))


def test_a_base_that_moved_with_its_runs_is_found(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run that was trained on it, and by one that continues that; from any folder."""
    project, moved = tmp_path / "project", tmp_path / "moved"
    shutil.copytree(tiny_model, project / "models" / "tiny")
    monkeypatch.chdir(project)
    save_run(Path("runs/sft"), "models/tiny", inputs={"policy": "models/tiny"})
    save_run(Path("runs/dpo"), "runs/sft", inputs={"policy": "runs/sft"})
    monkeypatch.chdir(tmp_path)
    project.rename(moved)
    for run in ("sft", "dpo"):
        source = find_model(str(moved / "runs" / run))
        assert source.base_path.samefile(moved / "models" / "tiny")
        assert Path(source.base).samefile(moved / "models" / "tiny")
    with FreshProcess(moved / "runs" / "dpo" / "final") as process:
        assert process.verify()[0] == 0.0
    (moved / "models").rename(tmp_path / "away")
    with pytest.raises(
        ModelError, match=r"was trained on models/tiny, which is not available .*: ln -s PLACE models/tiny$"
    ):
        find_model(str(moved / "runs" / "dpo"))


def test_another_tokenizer_or_template_is_refused(copy_of: Path) -> None:
    (copy_of / "final" / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(HandoffError, match="its chat_template is not the one it was trained with"):
        load_tokenizer(find_model(str(copy_of)))
    change_json(copy_of / "final" / "tokenizer.json", lambda t: t["model"]["vocab"].update({"zzz": 49152}))
    with pytest.raises(HandoffError, match="its tokenizer is not the one it was trained with"):
        load_tokenizer(find_model(str(copy_of)))


def test_a_model_that_answers_differently_is_refused(copy_of: Path) -> None:
    """As a changed setting of the adapter, which no weight's hash can tell, would make it."""
    change_json(copy_of / "final" / "adapter_config.json", lambda config: config.update(lora_alpha=80))
    with pytest.raises(HandoffError, match="outputs differ from those before it was saved"):
        load_frozen_policy(find_model(str(copy_of)), TRAINING)
    (copy_of / "final" / "probe.json").unlink()
    with pytest.raises(HandoffError, match=r"has no probe\.json"):
        load_frozen_policy(find_model(str(copy_of)), TRAINING)


def test_weights_that_are_pickled_alone_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors weights; pickled ones are not loaded"):
        find_model(str(tmp_path / "pickled"))


def test_names_that_lead_nowhere(tmp_path: Path, trained: Path, judge: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        find_model(str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"neither a model \(no config\.json\) nor a finished run"):
        find_model(str(tmp_path))
    with pytest.raises(ModelError, match="cannot get 'nobody/nothing' from the hub"):
        find_model("nobody/nothing")
    with pytest.raises(HandoffError, match="is a policy, but a reward model is needed"):
        find_model(str(trained), "reward")
    with pytest.raises(HandoffError, match="is a reward model, but a policy model is needed"):
        find_model(str(judge))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="is not finished"):
        find_model(str(tmp_path / "cut"))


def test_a_name_that_is_no_folder_says_what_it_is(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as file:
        find_model(str(tiny_model / "config.json"))
    assert str(file.value) == f"{tiny_model / 'config.json'} is a file, but a model is a folder: give {tiny_model}"
    with pytest.raises(ModelError) as home:
        find_model("~/models/mine")
    assert str(home.value).endswith(f"~ is not read as the home folder here; write {Path.home() / 'models' / 'mine'}")


def test_another_dropout_than_the_adapters_own_is_refused(trained: Path) -> None:
    asked = ADAPTER.model_copy(update={"dropout": 0.3})
    with pytest.raises(ConfigError, match=r"adapter\.dropout: 0\.3 \(it has 0\.0\)"):
        load_policy(find_model(str(trained)), TrainingConfig(), asked, load_tokenizer(find_model(str(trained))))


def test_an_adapter_of_another_shape_is_refused(trained: Path) -> None:
    source = find_model(str(trained))
    with pytest.raises(ConfigError, match=r"adapter\.r: 8 \(it has 4\)"):
        load_policy(source, TRAINING, AdapterConfig(r=8, alpha=8), load_tokenizer(source))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_settings_that_need_a_gpu() -> None:
    assert resolve_precision(TrainingConfig()) == torch.float32
    assert resolve_precision(TrainingConfig(precision="bfloat16")) == torch.bfloat16
    with pytest.raises(MachineError, match=r"training\.precision: float16 needs a GPU"):
        resolve_precision(TrainingConfig(precision="float16"))
    with pytest.raises(MachineError, match=r"training\.attention: flash_attention_2 needs a GPU"):
        resolve_precision(TrainingConfig(attention="flash_attention_2"))


def test_what_bitsandbytes_computes_is_refused_without_it(tiny_model: Path) -> None:
    """It is missing outside Linux."""
    source = find_model(str(tiny_model))
    with mock.patch.dict(sys.modules, {"bitsandbytes": None}):
        with pytest.raises(
            MachineError, match=r"adapter\.quantize: nf4: this needs bitsandbytes.*pip install bitsandbytes"
        ):
            require_possible(source, AdapterConfig(quantize="nf4"), TRAINING, "sft")
        with pytest.raises(MachineError, match=r"training\.optimizer: adamw_8bit: this needs bitsandbytes"):
            require_possible(source, None, TrainingConfig(optimizer="adamw_8bit"), "sft")
        with pytest.raises(MachineError, match="base weights in nf4: this needs bitsandbytes"):
            load_base(source, TRAINING, weights=WeightFormat("nf4"))
        require_possible(source, None, TRAINING, "sft")


# --- adapters and tokenizers -----------------------------------------------------------------------------------------


def test_switching_the_adapter_changes_answers_and_nothing_of_what_trains(trained: Path) -> None:
    source = find_model(str(trained))
    model = load_policy(source, TRAINING, None, load_tokenizer(source))
    model.load_adapter(str(trained / "final"), "reference")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.mul_(1.5)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    mine = probe_values(model, IDS)
    with Adapter(model, "reference").active():
        assert probe_values(model, IDS) == pytest.approx(
            json.loads((trained / "final" / "probe.json").read_text())["values"], abs=1e-5
        )
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert probe_values(model, IDS) == mine
    with pytest.raises(ZeroDivisionError), Adapter(model, "reference").active():
        raise ZeroDivisionError
    assert probe_values(model, IDS) == mine
    assert any(before.values())


def test_padding_is_parted_from_the_end_of_sequence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    change_json(tmp_path / "model" / "tokenizer_config.json", lambda c: c.update(pad_token=c["eos_token"]))
    tokenizer = load_tokenizer(find_model(str(tmp_path / "model")))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    change_json(tmp_path / "model" / "tokenizer_config.json", lambda c: c.pop("pad_token"))
    assert load_tokenizer(find_model(str(tmp_path / "model"))).pad_token == "<|endoftext|>"


def test_padding_is_never_a_token_that_a_text_can_hold(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    tokenizer.add_tokens(["<padded_cell>", "<extra_field>"])  # as <tool_call> of Qwen: added, and not special
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer.save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", lambda c: c.update(pad_token=c["eos_token"]))
    chosen = load_tokenizer(find_model(str(folder)))
    assert chosen.pad_token == "<|endoftext|>"
    assert chosen.pad_token_id in chosen.all_special_ids


def test_two_tokenizers_are_one_only_if_every_text_becomes_the_same_ids(tiny_model: Path) -> None:
    one, other = load_tokenizer(find_model(str(tiny_model))), load_tokenizer(find_model(str(tiny_model)))
    one("some text", padding="max_length", max_length=40, truncation=True)  # leaves padding settings behind
    assert tokenizer_facts(one) == tokenizer_facts(other)
    require_same_chat(build_chat(one), build_chat(other), "two")
    other.add_tokens(["<new>"])
    with pytest.raises(HandoffError, match="two: their tokenizer differ"):
        require_same_chat(build_chat(one), build_chat(other), "two")
    third = load_tokenizer(find_model(str(tiny_model)))
    third.chat_template = str(third.chat_template) + "{# another #}"
    with pytest.raises(HandoffError, match="two: their chat template differ"):
        require_same_chat(build_chat(one), build_chat(third), "two")


def test_a_base_model_without_a_named_adapter_gets_the_default(tmp_path: Path) -> None:
    """`adapter: null` on a base model once failed after training, when the adapter's shape was asked for."""
    from tiebreak.config import AdapterConfig
    from tiebreak.models.find import ModelSource
    from tiebreak.models.load import adapter_of

    base = ModelSource("base", "policy", "base", "base", tmp_path, "0" * 64, None)
    assert adapter_of(base, None) == AdapterConfig()
    assert adapter_of(base, AdapterConfig(r=4)).r == 4
