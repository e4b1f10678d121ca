"""Exports answer as their run did: to transformers, PEFT and the hub's card, without Tiebreak; and lose nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from support import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiebreak.config import LoadingConfig
from tiebreak.errors import HandoffError, RunError
from tiebreak.export import answers
from tiebreak.export.folder import written_whole
from tiebreak.export.model_to_export import find_model_to_export
from tiebreak.export.weights import load_merged, require_finite
from tiebreak.library import load_reward_model, score
from tiebreak.models.find import find_model, format_of
from tiebreak.models.load import load_base
from tiebreak.process.stopping import Stopped

ASK = [{"role": "user", "content": "Why are my basil leaves pale?"}]


@pytest.fixture(scope="module")
def runs(finished_recipe: Path) -> Path:
    return finished_recipe / "runs"


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DPO policy, in float32 and in shards."""
    folder = tmp_path_factory.mktemp("export") / "dpo"
    status, stderr = run_here("export", runs / "dpo", "--to", "vllm", "--shard-size", "1MB", "--output", folder)
    assert status == 0, stderr
    assert "loaded without Tiebreak: largest difference from the run's probe" in stderr
    assert f"next: vllm serve {folder} --served-model-name dpo" in stderr
    return folder


@pytest.fixture(scope="module")
def beside(runs: Path, tiny_model: Path) -> Any:
    """The base with its adapter beside it, by PEFT alone."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), runs / "dpo" / "final").eval()


def prompt_of(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return ids["input_ids"]


@torch.no_grad()
def logps(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(model(ids).logits.float(), -1)


def test_merged_weights_answer_as_base_and_adapter(exported: Path, runs: Path, beside: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    ids = prompt_of(exported)
    assert torch.equal(ids, prompt_of(runs / "dpo" / "final"))
    assert (logps(model, ids) - logps(beside, ids)).abs().max() < 1e-4
    greedy = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), beside.generate(input_ids=ids, **greedy))
    assert len(list(exported.glob("model-*.safetensors"))) > 1


def test_an_export_keeps_ends_template_and_origin(exported: Path, runs: Path) -> None:
    generation = json.loads((exported / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == set(find_model_to_export(str(runs / "dpo")).chat.stop_ids)
    assert (exported / "chat_template.jinja").read_text() == (runs / "dpo/final/chat_template.jinja").read_text()
    record = json.loads((exported / "export.json").read_text())
    assert record["id"] == json.loads((runs / "dpo" / "manifest.json").read_text())["id"]
    assert record["largest_difference"] < record["allowed_difference"]
    card = (exported / "README.md").read_text()
    assert "by simulated raters: a program, not people" in card
    assert f"vllm serve {exported}" in card
    assert find_model(str(exported)).stage is None  # and Tiebreak takes it as a policy


def test_an_adapter_is_loaded_by_its_base(runs: Path, tmp_path: Path, beside: Any) -> None:
    shutil.copytree(runs / "dpo", tmp_path / "run")
    assert run_here("card", tmp_path / "run")[0] == 0
    status, stderr = run_here("export", tmp_path / "run", "--to", "adapter", "--output", tmp_path / "adapter")
    assert status == 0, stderr
    assert "- [card.md](card.md)" in (tmp_path / "adapter" / "README.md").read_text()
    assert (tmp_path / "adapter" / "card.md").read_bytes() == (tmp_path / "run" / "card.md").read_bytes()
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = prompt_of(tmp_path / "adapter")
    assert torch.equal(logps(model, ids), logps(beside, ids))


def test_a_reward_model_scores_by_its_card_as_it_does_here(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, stderr = run_here("export", runs / "reward", "--to", "safetensors", "--output", tmp_path / "reward")
    assert status == 0, stderr
    card = (tmp_path / "reward" / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(tmp_path / "reward")
    exec(code.replace("logits)", "logits.item())"), {})
    [wanted] = score(load_reward_model(str(runs / "reward")), ["…"], ["…"])
    assert float(capsys.readouterr().out) == pytest.approx(wanted, abs=1e-4)
    scale = json.loads((runs / "reward/final/score_scale.json").read_text())
    temperature = scale["temperature"]
    if temperature is None:  # no temperature fits held-out preferences that the model is wrong about
        assert "σ((score A" not in card
    else:
        assert f"σ((score A − score B) / {temperature:.6g})" in card


def test_an_adapter_over_4_bit_weights_is_merged_into_those(runs: Path, tmp_path: Path) -> None:
    """Not into the weights that they were rounded from."""
    final = tmp_path / "final"
    shutil.copytree(runs / "dpo" / "final", final)
    (final / "model.json").write_text(json.dumps({"quantized": True}))
    origin = find_model_to_export(str(final))
    assert origin.quantized
    merged = load_merged(origin).eval()
    base = load_base(origin.source, LoadingConfig(precision="float32"), weights=format_of(origin.source, None))
    ids = prompt_of(final)
    wanted = logps(PeftModel.from_pretrained(base, final).eval(), ids)
    assert (logps(merged, ids) - wanted).abs().max() < 1e-3
    whole = load_merged(find_model_to_export(str(runs / "dpo"))).eval()
    assert (logps(whole, ids) - wanted).abs().max() > 0.05


def test_template_arguments_become_the_templates_defaults(runs: Path, tmp_path: Path) -> None:
    final = tmp_path / "final"
    shutil.copytree(runs / "dpo" / "final", final)
    pinned = json.loads((final / "model.json").read_text())
    template = "{% if loud %}LOUD {% endif %}" + (final / "chat_template.jinja").read_text()
    (final / "chat_template.jinja").write_text(template)
    del pinned["chat_template_sha256"]
    (final / "model.json").write_text(json.dumps(pinned | {"chat": {"template_arguments": {"loud": True}}}))
    origin = find_model_to_export(str(final))
    wanted = origin.chat.encode_prompt([answers.Message.model_validate(ASK[0])])
    text = origin.chat.tokenizer.apply_chat_template(
        ASK, chat_template=origin.template, tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("LOUD ")
    assert origin.chat.tokenizer(text, add_special_tokens=False)["input_ids"] == wanted


def test_a_lost_template_or_end_is_an_error(runs: Path) -> None:
    origin = find_model_to_export(str(runs / "dpo"))
    right = {
        "conversations": [answers.expected_ids(origin, many) for many in answers.CONVERSATIONS],
        "ends": list(origin.chat.stop_ids),
    }
    answers.require_same_text(origin, right)
    with pytest.raises(HandoffError, match="read a conversation of user otherwise"):
        answers.require_same_text(origin, right | {"conversations": [[1], *right["conversations"][1:]]})
    with pytest.raises(HandoffError, match=re.escape("would not stop at <|im_end|>")):
        answers.require_same_text(origin, right | {"ends": [0]})


def test_a_difference_that_no_format_explains_is_an_error(runs: Path) -> None:
    origin = find_model_to_export(str(runs / "dpo"))
    probe = answers.Probe([1, 2, 3], [-1.0, -2.0], "float32", 1e-3)
    assert answers.compare(origin, probe, {"values": [-1.0, -2.2]}, "bf16").largest == pytest.approx(0.2)
    with pytest.raises(HandoffError, match=r"exported as fp32, its outputs differ .* 0\.2 nats"):
        answers.compare(origin, probe, {"values": [-1.0, -2.2]}, "fp32")
    with pytest.raises(HandoffError, match="nan nats"):
        answers.compare(origin, probe, {"values": [-1.0, float("nan")]}, "q8_0")


def test_weights_beyond_fp16_are_refused() -> None:
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(1e6)
    with pytest.raises(HandoffError, match="fp16 cannot hold weight"):
        require_finite(layer.half())


# --- the folder


def test_nothing_is_overwritten(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    status, stderr = run_here("export", runs / "dpo", "--to", "gguf", "--output", tmp_path / "there")
    assert status == 1
    assert "exists, and nothing is overwritten: give another --output" in stderr


def test_an_interrupted_export_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        [hidden] = tmp_path.iterdir()
        assert (hidden / "adapter_model.safetensors").is_file()
        raise Stopped(15)

    monkeypatch.setattr(answers, "ask_alone", interrupted)
    status, _ = run_here("export", runs / "dpo", "--to", "adapter", "--output", tmp_path / "adapter")
    assert status == 75
    assert not list(tmp_path.iterdir())


def write_twice(folder: Path, left: Path) -> None:
    """One export within another of the same folder."""
    with written_whole(folder) as hidden:
        assert not left.exists()
        (hidden / "late").touch()
        with written_whole(folder) as other:
            assert hidden.exists()
            (other / "first").touch()


def test_what_a_killed_export_left_goes_with_the_next_and_the_first_of_two_is_kept(tmp_path: Path) -> None:
    left = tmp_path / ".out-x.unfinished"
    left.mkdir()
    with pytest.raises(RunError, match="exists, and nothing is overwritten"):
        write_twice(tmp_path / "out", left)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/first"]


# --- what is refused before anything loads


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "safetensors", "--dtype", "q8_0"], "q8_0 is a format of GGUF"),
        (["--to", "adapter", "--dtype", "bf16"], "an adapter is exported as it was trained"),
        (["--to", "hub"], "--to hub needs --repo OWNER/NAME"),
        (["--to", "safetensors", "--repo", "a/b"], "repo and adapter_only belong to --to hub"),
        (["--to", "safetensors", "--shard-size", "5 apples"], "must be a number with its unit"),
        (["--to", "saftensors"], "safetensors"),
        (["--to", "hub", "--repo", "a/b"], "HF_HUB_OFFLINE is set, so nothing can be pushed"),
    ],
)
def test_wrong_requests_are_refused_at_once(runs: Path, words: list[str], message: str) -> None:
    status, stderr = run_here("export", runs / "dpo", *words)
    assert status in (1, 2)
    assert message in stderr
    assert not (runs / "dpo" / "exports").exists()


def test_a_reward_model_is_no_chat_model(runs: Path) -> None:
    assert "which --to ollama does not run" in run_here("export", runs / "reward", "--to", "ollama")[1]


def test_a_model_without_a_run_needs_an_output(tiny_model: Path) -> None:
    assert "so say where to write: --output" in run_here("export", tiny_model, "--to", "vllm")[1]
    assert "has no adapter" in run_here("export", tiny_model, "--to", "adapter", "--output", "x")[1]


# --- the hub


class FakeHub:
    """The three calls of huggingface_hub that a push makes."""

    files: tuple[str, ...] = (".gitattributes",)
    fails = False

    def __init__(self) -> None:
        pass

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
        assert private
        assert exist_ok
        return f"https://hub/{repo}"

    def list_repo_files(self, repo: str) -> list[str]:
        return list(self.files)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails:
            raise OSError("connection reset")
        type(self).pushed = sorted(path.name for path in folder_path.iterdir())

    pushed: list[str] = []


def test_a_push_is_retried_and_never_overwrites(
    runs: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    shutil.copytree(exported, tmp_path / "o")
    record = json.loads((exported / "export.json").read_text())
    (tmp_path / "o" / "export.json").write_text(json.dumps(record | {"to": "hub"}))
    words = [str(runs / "dpo"), "--to", "hub", "--repo", "a/b", "--output", str(tmp_path / "o")]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no login to the hub: run 'hf auth login'" in run_here("export", *words)[1]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "fails", True)
    assert "cannot push to a/b (connection reset)" in run_here("export", *words)[1]
    monkeypatch.setattr(FakeHub, "fails", False)
    assert run_here("export", *words) == (0, f"pushing {tmp_path / 'o'} to https://hub/a/b\n")
    assert {"README.md", "config.json", "export.json"} <= set(FakeHub.pushed)
    monkeypatch.setattr(FakeHub, "files", ("config.json",))
    assert "a/b has files already, and nothing is overwritten" in run_here("export", *words)[1]
