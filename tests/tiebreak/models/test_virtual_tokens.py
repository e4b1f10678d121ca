"""Virtual tokens below the model's layers compute what PEFT computes with them before its wrapper."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from outcomes import ask_here
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from support import TINY_TRAINING, end_process, run_here, write_config
from transformers import AutoModelForCausalLM

from tiebreak.config import AdapterConfig, LoadingConfig, OptimizerConfig, SamplingConfig
from tiebreak.errors import ConfigError
from tiebreak.export import alone
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.virtual_tokens import EMBEDDINGS
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy, require_possible
from tiebreak.models.reload import FreshProcess
from tiebreak.packed.generation import sample_completions

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = [1, 520, 9531, 198, 77, 4093, 2]
COUNT = 3


KINDS = {"prompt": PromptTuningConfig, "ptuning": PromptEncoderConfig, "prefix": PrefixTuningConfig}


@pytest.fixture(scope="module", params=KINDS)
def prompted(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of virtual tokens, saved by PEFT."""
    torch.manual_seed(0)
    config = KINDS[request.param](task_type="CAUSAL_LM", num_virtual_tokens=COUNT)
    folder = tmp_path_factory.mktemp("prompted")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folder)
    return folder


def test_every_caller_of_the_base_model_computes_with_them(tiny_model: Path, prompted: Path) -> None:
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), prompted).eval()
    ours = load_frozen_policy(find_model(str(prompted)), LoadingConfig(precision="float32"))
    batch = torch.tensor([IDS, [*IDS[:4], 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        wanted = theirs(input_ids=batch, attention_mask=mask).logits[:, -len(IDS) :]
        plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()(input_ids=batch, attention_mask=mask).logits
        for model in (ours, ours.get_base_model()):
            found = model(input_ids=batch, attention_mask=mask).logits
            torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=1e-4, atol=1e-4)
        assert (wanted - plain)[mask.bool()].abs().max() > 0.05
        answer: list[int] = []
        for _ in range(4):
            answer.append(int(theirs(input_ids=torch.tensor([IDS + answer])).logits[0, -1].argmax()))
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=4)
    (drawn,) = sample_completions(ours, [IDS], [0], sampling, stop_ids=(), pad_id=2, batch_size=1)
    assert drawn.ids == answer


def test_an_export_is_asked_for_its_text_and_not_for_virtual_tokens(tiny_model: Path, prompted: Path) -> None:
    """The check of an exported adapter, against PEFT's logits with the virtual positions counted by hand."""
    plain = {"adapter": True, "dtype": "float32", "quantized": "", "scores": 0, "trust_remote_code": False}
    found = alone.values({"folder": str(prompted), "file": "", "ids": IDS, **plain})
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), prompted).eval()
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([IDS])).logits[0]
    before = 0 if theirs.active_peft_config.peft_type == "PREFIX_TUNING" else COUNT
    assert len(logits) == before + len(IDS)
    wanted = [float(logits[before + n].log_softmax(-1)[token]) for n, token in enumerate(IDS[1:])]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_copy_computes_with_its_own(prompted: Path, tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    require_same_copy(Adapter.load(base, prompted, "policy", trains=True))


@pytest.mark.parametrize("method", ["ptuning", "prefix"])
def test_a_copy_of_a_new_one_computes_with_its_own(method: str, tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    require_same_copy(
        Adapter.build(base, AdapterConfig.model_validate({"method": method, "virtual_tokens": COUNT}), "CAUSAL_LM")
    )


def require_same_copy(policy: Adapter) -> None:
    """The copy answers as the policy did, once that has changed; the policy's weights alone train."""
    wanted = policy.answers()
    reference = policy.copy("reference")
    policy.train_alone()
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))  # a shift of all keys alike would change nothing
    assert reference.answers() == pytest.approx(wanted, abs=1e-6)
    assert max(abs(a - b) for a, b in zip(policy.answers(), wanted, strict=True)) > 0.01
    trained = {name for name, each in policy.model.named_parameters() if each.requires_grad}
    assert trained == policy.parameters().keys()
    assert all(name.startswith("prompt_encoder.default.") for name in trained)


def test_a_new_prefix_is_as_if_its_tokens_stood_before_the_text(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    batch, mask = torch.tensor([IDS, [*IDS[:4], 0, 0, 0]]), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    torch.manual_seed(3)
    tokens = torch.randint(base.config.vocab_size, (1, COUNT)).expand(2, -1)
    with torch.no_grad():
        longer = torch.cat([torch.ones_like(tokens), mask], dim=1)
        wanted = base(input_ids=torch.cat([tokens, batch], dim=1), attention_mask=longer).logits[:, COUNT:]
    config = AdapterConfig.model_validate({"method": "prefix", "virtual_tokens": COUNT})
    with mock.patch("torch.randint", return_value=tokens[:1]):
        model = Adapter.build(base, config, "CAUSAL_LM").model
    with torch.no_grad():
        found = model(input_ids=batch, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=1e-4, atol=1e-4)


def test_a_prefix_is_refused_where_it_would_train_nothing(tiny_model: Path) -> None:
    """transformers drops every cache where it computes layers again."""
    adapter = AdapterConfig.model_validate({"method": "prefix"})
    training = OptimizerConfig.model_validate({**TINY_TRAINING, "gradient_checkpointing": True})
    with pytest.raises(ConfigError, match="method: prefix would train nothing"):
        require_possible(find_model(str(tiny_model)), adapter, training, "sft")


@pytest.mark.parametrize("method", ["ptuning", "prefix", pytest.param("prompt", marks=pytest.mark.proof)])
def test_a_resumed_run_has_the_weights_of_an_uncut_one(
    tiny_model: Path, raw_data: Path, tmp_path: Path, method: str
) -> None:
    output = tmp_path / "run"
    config = write_config(
        tmp_path / "sft.yaml",
        output=output,
        policy=tiny_model,
        demonstrations=raw_data / "demonstrations.jsonl",
        adapter={"method": method, "virtual_tokens": COUNT},
        training={**TINY_TRAINING, "max_steps": 4, "save_steps": 2, "per_device_batch_size": 1, "learning_rate": 0.01},
        sampling={"max_new_tokens": 1, "temperature": 0.0},
    )

    def weights() -> torch.Tensor:
        with mock.patch.object(FreshProcess, "ask", ask_here):
            status, message = run_here("sft", "--config", config)
        end_process(output)
        assert status == 0, message[-3000:]
        return load_file(output / "final" / "adapter_model.safetensors")[EMBEDDINGS]

    uncut = weights()
    (output / "manifest.json").unlink()
    shutil.rmtree(output / "checkpoints" / "checkpoint-4")
    assert torch.equal(weights(), uncut)
