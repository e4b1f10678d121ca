"""Adapters that were made elsewhere by PEFT: continued exactly by every stage, or refused in a sentence.

The oracle is PEFT's own forward of the folder as `AutoPeftModelForCausalLM` loads it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, HRAConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import TINY_TRAINING, run_here, write_config
from torch import nn
from transformers import AutoModelForCausalLM, LagunaConfig, LlamaConfig, LlamaForSequenceClassification

from preference.policy.adapters import POLICY, REFERENCE
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.config.adapter import METHODS, PLACED
from tiebreak.errors import ConfigError, HandoffError, ModelError, RunError
from tiebreak.models.adapters import adapter as adapters
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy, load_policy, load_reward_model
from tiebreak.models.probe import probe_values
from tiebreak.models.tokenizers import load_chat
from tiebreak.runs.differences import differences
from tiebreak.runs.run import read_manifest

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`",
    "ignore:Setting `save_embedding_layers`",
    "ignore:Could not find a config file",
)
TRAINING = TrainingConfig(precision="float32")
IDS = [1, 520, 9531, 198, 77, 4093, 2]
LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5, "target_modules": LINEAR},
    "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": LINEAR},
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 20},
        "layers_to_transform": [1],
    },
    "embeddings": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
}
BESIDE_THE_HEAD = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "modules_to_save": ["lm_head"]}


def make(folder: Path, base: Path, config: Any) -> Path:
    """An adapter with weights of its own, saved by PEFT."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {**KINDS, "whole head": BESIDE_THE_HEAD}
    return {
        kind: make(folder / kind, tiny_model, LoraConfig(task_type="CAUSAL_LM", **values))
        for kind, values in kinds.items()
    }


def answers_of_peft(folder: Path) -> list[float]:
    return probe_values(AutoPeftModelForCausalLM.from_pretrained(folder), IDS)


def lora_weights(folder: Path) -> set[str]:
    return {name for name in load_file(folder / "adapter_model.safetensors") if ".lora_" in name}


def tokenizer_of(folder: Path) -> Any:
    return load_chat(find_model(str(folder))).tokenizer


@pytest.mark.parametrize("kind", [*KINDS, "whole head"])
def test_a_foreign_adapter_answers_as_in_peft(made: dict[str, Path], tiny_model: Path, kind: str) -> None:
    source = find_model(str(made[kind]))
    assert source.base == str(tiny_model)
    wanted = answers_of_peft(made[kind])
    base = probe_values(AutoModelForCausalLM.from_pretrained(tiny_model), IDS)
    assert max(abs(a - b) for a, b in zip(wanted, base, strict=True)) > 0.05
    frozen = load_frozen_policy(source, TRAINING)
    assert probe_values(frozen, IDS) == pytest.approx(wanted, abs=1e-4)
    # weights that the head shares with the embeddings cannot take what is added to the embeddings alone
    assert isinstance(frozen, PeftModel) == (kind == "embeddings")


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_foreign_adapter_is_continued_by_its_own_configuration(made: dict[str, Path], kind: str) -> None:
    source = find_model(str(made[kind]))
    model = load_policy(source, TRAINING, None, tokenizer_of(made[kind]))
    assert probe_values(model, IDS) == pytest.approx(answers_of_peft(made[kind]), abs=1e-6)
    theirs = json.loads((made[kind] / "adapter_config.json").read_text())
    ours = model.peft_config["default"].to_dict()
    for key in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform"):
        assert ours[key] == theirs[key]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(lora_weights(made[kind]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_reference_is_a_whole_copy_and_merged_only_where_that_is_a_sum(made: dict[str, Path], kind: str) -> None:
    """The copy answers as the policy did while the policy moves on, beside its base weights and merged into them."""
    model = load_policy(find_model(str(made[kind])), TRAINING, None, tokenizer_of(made[kind]))
    wanted = answers_of_peft(made[kind])
    Adapter(model, POLICY).copy(REFERENCE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "default" in name.split("."):
                parameter.add_(0.3)
    assert max(abs(a - b) for a, b in zip(probe_values(model, IDS), wanted, strict=True)) > 0.05
    with Adapter(model, REFERENCE).active():
        assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-6)
    with Adapter(model, REFERENCE).merged():
        assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_beside_others_answers_as_peft_loads_it(made: dict[str, Path], tiny_model: Path, kind: str) -> None:
    """On a policy with an adapter of another kind, which stays as it was."""
    model = load_policy(find_model(str(tiny_model)), TRAINING, AdapterConfig(r=2, alpha=4), tokenizer_of(tiny_model))
    before = probe_values(model, IDS)
    weights = load_file(made[kind] / "adapter_model.safetensors")
    mounted = Adapter.mount(model, made[kind], kind, "other", {k: w for k, w in weights.items() if ".lora_" in k})
    wanted = answers_of_peft(made[kind])
    with mounted.active():
        assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-5)
    with mounted.merged():
        assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-4)
    assert probe_values(model, IDS) == before
    assert not any(parameter.requires_grad for parameter in mounted.parameters().values())


def test_a_whole_module_has_no_place_beside_other_adapters(made: dict[str, Path], tiny_model: Path) -> None:
    model = load_policy(find_model(str(tiny_model)), TRAINING, AdapterConfig(r=2), tokenizer_of(tiny_model))
    weights = load_file(made["whole head"] / "adapter_model.safetensors")
    with pytest.raises(HandoffError, match=r"whole: its adapter does not fit this backbone: .*lm_head"):
        Adapter.mount(model, made["whole head"], "whole", "other", weights)


def test_an_adapter_taken_for_another_kind_is_refused(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA as if it only added to the weights, as LoRA does; and a copy that leaves its magnitudes out."""
    model = load_policy(find_model(str(made["DoRA"])), TRAINING, None, tokenizer_of(made["DoRA"]))
    wrong = dataclasses.replace(METHODS["lora"], adds=lambda layer, name: True)
    with monkeypatch.context() as patched:
        patched.setattr(adapters, "method_of", lambda peft_type: wrong)
        with (
            pytest.raises(HandoffError, match="the adapter 'default', added to the weights gives other answers"),
            Adapter(model).merged(),
        ):
            pass
    assert probe_values(model, IDS) == pytest.approx(answers_of_peft(made["DoRA"]), abs=1e-6)
    own = Adapter.parameters
    lora_alone = lambda self: {k: p for k, p in own(self).items() if "magnitude" not in k}  # noqa: E731
    monkeypatch.setattr(Adapter, "parameters", lora_alone)
    with pytest.raises(HandoffError, match="the copy 'reference' of the adapter 'default' gives other answers"):
        Adapter(model).copy(REFERENCE)


def test_method_and_quantisation_are_apart_and_runs_are_what_they_were() -> None:
    """A run's identity is a hash of its configuration as it is written."""
    plain = {"method": "lora", "r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    assert AdapterConfig().model_dump(mode="json") == plain
    for asked in ({"method": "qlora"}, {"quantize": "nf4"}, {"method": "lora", "quantize": "nf4"}):
        config = AdapterConfig.model_validate(asked)
        assert (config.method, config.quantize) == ("lora", "nf4")
        assert list(config.model_dump(mode="json").items()) == list((plain | {"method": "qlora"}).items())
        assert AdapterConfig.model_validate(config.model_dump()) == config
        assert not differences(plain | {"method": "qlora"}, config)
        assert [one.key for one in differences(plain, config)] == ["quantize"]
    with pytest.raises(ValueError, match="quantize: 'none' contradicts method: qlora"):
        AdapterConfig.model_validate({"method": "qlora", "quantize": "none"})


@pytest.mark.parametrize("kind", ["rsLoRA", "DoRA", "patterns"])
def test_a_reward_model_starts_as_the_policy(made: dict[str, Path], kind: str) -> None:
    """Its last hidden state is the policy's."""
    ids = torch.tensor([IDS])
    reward = load_reward_model(find_model(str(made[kind])), TRAINING, None, tokenizer_of(made[kind])).eval()
    policy = AutoPeftModelForCausalLM.from_pretrained(made[kind]).eval()
    with torch.no_grad():
        ours = reward.get_base_model().model(input_ids=ids).last_hidden_state
        theirs = policy.get_base_model().model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# --- through the stages ---


def stage(name: str, folder: Path, data: Path, **values: Any) -> dict[str, Any]:
    """A stage of two steps; its manifest."""
    files = {"sft": ("demonstrations", "demonstrations"), "ppo": ("prompts", "prompts")}
    key, file = files.get(name, ("preferences", "preferences"))
    training = {**TINY_TRAINING, "max_steps": 2, "per_device_batch_size": 2}
    config = {"adapter": None, "training": training, key: data / f"{file}.jsonl", **values}
    status, message = run_here(name, "--config", write_config(folder.with_suffix(".yaml"), output=folder, **config))
    assert status == 0, message[-3000:]
    return read_manifest(folder)


@pytest.mark.parametrize("kind", ["DoRA", "embeddings"])
def test_every_stage_continues_a_foreign_adapter(
    made: dict[str, Path], raw_data: Path, tmp_path: Path, kind: str
) -> None:
    """SFT on it, DPO on `RUN/final` of that, a reward model on it, and PPO of one on the other."""
    short = {"sampling": {"max_new_tokens": 6, "temperature": 1.0}}
    stage("sft", tmp_path / "sft", raw_data, policy=made[kind], **short)
    stage("dpo", tmp_path / "dpo", raw_data, policy=tmp_path / "sft" / "final", **short)
    for name in ("sft", "dpo"):
        saved = json.loads((tmp_path / name / "final" / "adapter_config.json").read_text())
        assert saved["use_dora"] == (kind == "DoRA")
        assert set(saved["target_modules"]) == set(KINDS[kind]["target_modules"])
        assert lora_weights(tmp_path / name / "final") == lora_weights(made[kind])
    assert read_manifest(tmp_path / "dpo")["inputs"]["policy"]["id"] == read_manifest(tmp_path / "sft")["id"]
    if kind == "embeddings":
        return
    stage("reward", tmp_path / "reward", raw_data, policy=made[kind])
    rollouts = {"episodes_per_rollout": 4, "rollouts": 1, "ppo_epochs": 1, "stop_when_all_cut_off": False}
    stage("ppo", tmp_path / "ppo", raw_data, policy=made[kind], reward_model=tmp_path / "reward", **rollouts, **short)
    # a checkpoint is a policy too, on the base that its run named
    checkpoint = tmp_path / "dpo" / "checkpoints" / "checkpoint-2"
    found = find_model(str(checkpoint))
    assert found.base == find_model(str(tmp_path / "dpo")).base
    last = probe_values(load_frozen_policy(find_model(str(tmp_path / "dpo")), TRAINING), IDS)
    assert probe_values(load_frozen_policy(found, TRAINING), IDS) == pytest.approx(last, abs=1e-5)
    (checkpoint / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(RunError, match="is not a complete checkpoint"):
        find_model(str(checkpoint))


# --- refused ---


def test_what_cannot_be_continued_exactly_is_refused_by_name(
    made: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    cases: dict[str, tuple[Any, str]] = {
        "HRA": (HRAConfig(task_type="CAUSAL_LM", target_modules=LINEAR), "is a HRA adapter, and those continued here"),
        "bias": (LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, bias="lora_only"), "has bias: lora_only"),
        "tokens": (
            LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, trainable_token_indices=[1, 2]),
            "has trainable_token_indices",
        ),
        "PiSSA": (
            LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, init_lora_weights="pissa"),
            "init_lora_weights",
        ),
    }
    for name, (config, reason) in cases.items():
        with pytest.raises(HandoffError, match=reason):
            find_model(str(make(tmp_path / name, tiny_model, config)))
    with pytest.raises(
        HandoffError, match=r"has modules_to_save: \['lm_head'\], of which a reference cannot keep a copy"
    ):
        load_policy(find_model(str(made["whole head"])), TRAINING, None, tokenizer_of(tiny_model))
    with pytest.raises(HandoffError, match="name a finished reward run"):
        find_model(str(made["plain"]), "reward")


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_adapter_that_peft_loads_in_part_is_refused_before_and_after_training(tmp_path: Path) -> None:
    """While loading, transformers renames Laguna's `mlp.shared_expert.`. This regular expression also matches
    `mlp.shared_experts`, so PEFT looks for an adapter's weights under wrong names, and leaves random weights in place."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = LagunaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=2, **heads, **experts
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=r"cannot load what it would save of .*shared_experts\.down_proj on Laguna"):
        Adapter.build(copy.deepcopy(base), AdapterConfig(r=2), "CAUSAL_LM")
    assert Adapter.build(copy.deepcopy(base), AdapterConfig(r=2, target_modules=["q_proj"]), "CAUSAL_LM").layers()
    base.save_pretrained(tmp_path / "base")
    elsewhere = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), elsewhere)
    made.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.raises(HandoffError, match=r"does not load .*shared_experts.down_proj.* \(and 5 more\) on Laguna"):
        Adapter.load(base, tmp_path / "adapter", "mine", trains=False)


def test_a_module_that_peft_treats_as_the_head_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    base = LlamaForSequenceClassification(config)
    assert Adapter.build(copy.deepcopy(base), AdapterConfig(r=2), "SEQ_CLS").layers()
    assert Adapter.build(copy.deepcopy(base), AdapterConfig(method="prompt", virtual_tokens=2), "SEQ_CLS")
    base.model.layers[0].mlp.classifier = nn.Linear(16, 4)  # as LongCat-Flash's router
    refusal = r"treats model\.layers\.0\.mlp\.classifier as the head of the reward model"
    with pytest.raises(ConfigError, match=refusal):
        Adapter.build(copy.deepcopy(base), AdapterConfig(r=2), "SEQ_CLS")
    LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=refusal):
        Adapter.start_from(base, tmp_path, "mine", "SEQ_CLS", {})


def test_an_adapter_that_does_not_fit_its_base_is_refused(
    made: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["plain"], tmp_path / "adapter"))
    change(folder, target_modules=[*LINEAR, "k_proj"])
    with pytest.raises(HandoffError, match=r"has no weights in LlamaForCausalLM for .*k_proj"):
        load_frozen_policy(find_model(str(folder)), TRAINING)
    change(folder, target_modules=LINEAR[:2])
    with pytest.raises(HandoffError, match=r"has weights that have no place in LlamaForCausalLM for .*down_proj"):
        load_frozen_policy(find_model(str(folder)), TRAINING)
    change(folder, target_modules=LINEAR, r=2)
    with pytest.raises(HandoffError, match="does not fit LlamaForCausalLM, its base"):
        load_frozen_policy(find_model(str(folder)), TRAINING)
    wide = Path(shutil.copytree(tiny_model, tmp_path / "wide"))
    save_file({f"model.layers.0.self_attn.{LINEAR[0]}.weight": torch.zeros(96, 96)}, wide / "model.safetensors")
    change(folder, base_model_name_or_path=str(wide))
    with pytest.raises(
        HandoffError, match=r"an adapter on another base than .*wide: its lora_A of .* 64, and .* 96 × 96"
    ):
        find_model(str(folder))
    change(folder, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"is an adapter on .*gone, which is not available"):
        find_model(str(folder))
    change(folder, base_model_name_or_path=None)
    with pytest.raises(HandoffError, match="names no base model: set base_model_name_or_path"):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("kind", "asked", "reason"),
    [
        ("plain", {"r": 3, "alpha": 5, "target_modules": LINEAR[::-1]}, None),
        ("plain", {"r": 3, "alpha": 5}, "adapter.target_modules: 'all-linear'"),
        (
            "plain",
            {"r": 3, "alpha": 5, "target_modules": LINEAR, "dropout": 0.3},
            r"adapter.dropout: 0.3 \(it has 0.0\)",
        ),
        ("DoRA", {"r": 4, "alpha": 8, "target_modules": LINEAR}, r"adapter.dora: False \(it has True\)"),
        (
            "patterns",
            {"r": 4, "alpha": 8, "target_modules": LINEAR},
            r"adapter.rank_pattern: {} \(it has {'q_proj': 2}\)",
        ),
    ],
)
def test_another_adapter_than_the_policys_own_is_refused(
    made: dict[str, Path], kind: str, asked: dict[str, Any], reason: str | None
) -> None:
    source, tokenizer = find_model(str(made[kind])), tokenizer_of(made[kind])
    if reason is None:
        load_policy(source, TRAINING, AdapterConfig(**asked), tokenizer)
        return
    with pytest.raises(ConfigError, match=reason):
        load_policy(source, TRAINING, AdapterConfig(**asked), tokenizer)


def test_all_linear_means_the_modules_and_not_the_word(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT writes the names that `all-linear` stood for."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules="all-linear")
    folder = make(tmp_path / "all", tiny_model, config)
    asked = AdapterConfig(r=2, alpha=4, target_modules="all-linear")
    load_policy(find_model(str(folder)), TRAINING, asked, tokenizer_of(folder))


def test_an_entry_of_a_method_names_what_peft_and_the_configuration_have() -> None:
    """What is misspelt in an entry would be found when somebody first trains with it."""
    for name, method in METHODS.items():
        assert set(method.reads) <= set(AdapterConfig.model_fields), name
        if method.peft_type:
            configuration = getattr(peft, method.config_class)
            assert configuration().peft_type.value == method.peft_type
            read = [configuration, *([peft.PromptEncoderConfig] if name == "prompt" else [])]  # P-tuning's embeddings
            fields = {field.name for one in read for field in dataclasses.fields(one)}
            assert method.continued - PLACED <= fields, name
