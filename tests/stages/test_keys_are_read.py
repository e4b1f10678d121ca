"""What a stage ignores it refuses: every key of a configuration is read by its stage, or listed here with the reason."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from support import REPOSITORY, run_here

import tiebreak.command.launch
from reward.configuration import RewardReportConfig
from tiebreak.command.help import configuration_class
from tiebreak.command.table import COMMANDS
from tiebreak.config import Section, StageConfig, TrainingConfig, load_config
from tiebreak.config.keys import keys_of
from tiebreak.errors import ConfigError
from tiebreak.models.reload import FreshProcess, ReloadedModel

ONE_STEP = ("--training.max-steps", "1", "--training.eval-steps", "1")
RUNS: dict[str, tuple[str, ...]] = {
    "prepare": ("--steps", "repair", "language", "quality", "perplexity", "contamination", "balance"),
    "sft": (*ONE_STEP, "--merge"),
    "sample": ("--max-prompts", "2"),
    "reward": (*ONE_STEP, "--samples", "{runs}/sample", "--strength-as", "margin"),
    "dpo": ONE_STEP,
    "ppo": (*ONE_STEP, "--rollouts", "1"),
    "evaluate": ("--max-prompts", "2"),
    "compare": (),
}
"""What is laid over the finished recipe's own files, so that a run is short and as much as possible is switched on."""

UNREAD = {
    "tracking": "W&B is off in tests",
    "guard": "tests/preference/test_guard_stage.py trains under one",
    "monitors": "tests/stages/test_monitors.py",
    "rater_em": "tests/preference/test_rater_em.py",
    "vllm": "needs vLLM; tests/preference/test_vllm.py reads every key",
    "rewards": "tests/preference/test_rewards.py",
    "benchmark_limit": "tests/evaluation/test_benchmarks.py",
    "benchmark_chat": "tests/evaluation/test_benchmarks.py",
    "anonymise": "tests/sft/test_personal_data.py",
    "canaries": "tests/evaluation/test_canaries.py",
    "mail": "tests/labeling_ui/test_label_mail.py",
    "criteria": "tests/labeling_ui/test_label_saying.py",
    "qualify": "read as raters judge; tests/labeling_ui/test_label_standing.py",
    "stop": "read as raters judge; tests/labeling_ui/test_label_standing.py",
    "webhook": "tests/labeling_ui/test_label_webhook.py",
    "oidc": "tests/labeling_ui/test_label_oidc.py",
    "require_alt": "tests/labeling_ui/test_label_media.py",
    "campaign": "tests/labeling_ui/test_label_campaigns.py",
    "converse": "needs a process that answers; tests/labeling_ui/test_label_conversations.py",
}
"""Sections that these runs do not switch on, and where they are read."""
ADAPTED = ("reward", "dpo", "ppo")
"""stages whose policy has an adapter here, so that they make none"""
REFUSED = {
    ("ppo", "completions_per_prompt"),
    *(
        ("dpo", key)
        for key in (
            "margin_scale",
            "desirable_weight",
            "undesirable_weight",
            "simpo_gamma",
            "cpo_alpha",
            "ref_model_sync_steps",
        )
    ),
}
"""keys that are refused where they are not read, as below"""


class Watch:
    """Notes which fields of which sections are read while a stage works."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.active = False

    def note(self, section: Section, *names: str) -> None:
        if self.active:
            self.seen |= {(type(section).__name__, name) for name in names}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching = Watch()
    plain, dump = Section.__getattribute__, Section.model_dump

    def read(self: Section, name: str) -> Any:
        if not name.startswith("_") and name in type(self).model_fields:
            watching.note(self, name)
        return plain(self, name)

    def dumped(self: Section, **options: Any) -> dict[str, Any]:
        if not isinstance(self, StageConfig):  # a whole stage is dumped to be written down
            watching.note(self, *type(self).model_fields)
        return dump(self, **options)

    def load(*words: Any) -> Any:
        watching.active = False  # what validators read is not used yet
        config = load_config(*words)
        watching.active = True
        return config

    monkeypatch.setattr(Section, "__getattribute__", read)
    monkeypatch.setattr(Section, "model_dump", dumped)
    monkeypatch.setattr(tiebreak.command.launch, "load_config", load)
    monkeypatch.setattr(
        FreshProcess, "ask", lambda self, what, **asked: ReloadedModel().answer({**asked, **self._about, "do": what})
    )
    return watching


def unread(stage: str, model: type[BaseModel], seen: set[tuple[str, str]]) -> list[str]:
    """The keys whose field no section of their class was asked for."""
    left_out = {*UNREAD, *(["adapter"] if stage in ADAPTED else [])}
    keys = [key for key in keys_of(model) if key.path.partition(".")[0] not in left_out]
    return [key.path for key in keys if (key.owner.__name__, key.name) not in seen and (stage, key.path) not in REFUSED]


@pytest.mark.parametrize("stage", list(RUNS))
def test_a_stage_reads_every_key(stage: str, finished_recipe: Path, tmp_path: Path, watch: Watch) -> None:
    runs = finished_recipe / "runs"
    words = [word.replace("{runs}", str(runs)) for word in RUNS[stage]]
    config = runs / stage / "config.resolved.yaml"
    status, message = run_here(stage, "--config", config, *words, "--output", tmp_path / "out")
    watch.active = False
    assert status == 0, message
    assert unread(stage, configuration_class(COMMANDS[stage]), watch.seen) == []


def test_the_report_reads_every_key(finished_recipe: Path, tmp_path: Path, watch: Watch) -> None:
    runs = finished_recipe / "runs"
    words = ("--reward-model", runs / "reward", "--preferences", runs / "label", "--output", tmp_path / "out")
    status, message = run_here("reward", "report", *words)
    watch.active = False
    assert status == 0, message
    assert unread("reward report", RewardReportConfig, watch.seen) == []


def test_labelling_reads_every_key_with_people_or_with_simulated_raters(
    finished_recipe: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import labeling_ui.configuration
    import labeling_ui.label
    import labeling_ui.web.server

    monkeypatch.setattr(labeling_ui.label, "load_config", tiebreak.command.launch.load_config)
    monkeypatch.setattr(labeling_ui.label, "listen", lambda *_: contextlib.nullcontext())
    for name in ("create_app", "run_server"):
        monkeypatch.setattr(labeling_ui.web.server, name, lambda *_, **__: None)
    pairs = finished_recipe / "runs" / "sample"
    for simulated in ("true", "false"):
        out = tmp_path / simulated
        status, message = run_here("label", "--pairs", pairs, "--output", out, "--simulate", simulated)
        watch.active = False
        assert status == 0, message
    single = {"answers": str(finished_recipe / "runs" / "prepare"), "task": "review", "batch": "lot", "inspect": {}}
    config = tmp_path / "single.yaml"
    config.write_text(yaml.safe_dump({**single, "output": str(tmp_path / "single")}))
    status, message = run_here("label", "--config", config)
    watch.active = False
    assert status == 0, message
    assert unread("label", labeling_ui.configuration.LabelConfig, watch.seen) == []


# --- what is refused


def refusal(stage: str, *words: str) -> str:
    model: Any = configuration_class(COMMANDS[stage])
    with pytest.raises(ConfigError) as caught:
        load_config(model, ["--config", f"configs/quickstart/{stage}.yaml", *words], stage)
    return str(caught.value)


@pytest.mark.parametrize("stage", ["sample", "evaluate", "ppo"])
def test_a_key_of_training_that_is_not_read_is_refused(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for key in ("logging_steps", "eval_rows", "epochs"):
        assert f"--training.{key}: this stage does not read it; leave it out" in refusal(
            stage, f"--training.{key}", "2"
        )
    if stage != "ppo":
        assert "--training.learning-rate: this stage does not read it" in refusal(
            stage, "--training.learning-rate", "1"
        )


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("ppo", ["--completions-per-prompt", "8"], "completions_per_prompt: only rloo and grpo compare"),
        ("ppo", ["--kl-horizon", "60"], "kl_horizon: without kl_target, kl_coef is fixed; leave it out"),
        ("ppo", ["--algorithm", "rloo", "--kl-horizon", "60"], "kl_horizon: rloo has no such thing"),
        (
            "ppo",
            ["--algorithm", "grpo", "--lam", "0.9", "--gamma", "0.9"],
            "gamma, lam: grpo has no such thing; leave",
        ),
        (
            "reward",
            ["--strength-as", "weight", "--margin-scale", "2"],
            "margin_scale: with strength_as weight there is no",
        ),
        ("dpo", ["--desirable-weight", "2"], "desirable_weight: --algorithm dpo has no such thing; leave it out"),
        ("dpo", ["--undesirable-weight", "2"], "undesirable_weight: --algorithm dpo has no such thing; leave it out"),
        ("dpo", ["--margin-scale", "2"], "margin_scale: with strength_as nothing there is no margin"),
        (
            "dpo",
            ["--simpo-gamma", "2", "--cpo-alpha", "2"],
            "cpo_alpha, simpo_gamma: --algorithm dpo has no such thing",
        ),
        ("dpo", ["--ref-model-sync-steps", "9"], "ref_model_sync_steps: without sync_ref_model the reference stays"),
        ("reward", ["--max-samples", "9"], "max_samples: without samples there are no answers to score"),
    ],
)
def test_a_key_that_another_switches_off_is_refused(
    stage: str, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert message in refusal(stage, *words)


@pytest.mark.parametrize("stage", ["sample", "evaluate", "ppo"])
def test_what_earlier_versions_wrote_still_opens(stage: str, finished_recipe: Path, tmp_path: Path) -> None:
    """They wrote every key of training into config.resolved.yaml: with its default, as nothing read it."""
    runs = finished_recipe / "runs"
    values = yaml.safe_load((runs / stage / "config.resolved.yaml").read_text())
    then = {key: field.default for key, field in TrainingConfig.model_fields.items()}
    values["training"] = then | values["training"]
    file = tmp_path / "then.yaml"
    file.write_text(yaml.safe_dump(values))
    status, message = run_here(stage, "--config", file)
    assert (status, "nothing to do" in message) == (0, True), message  # and is the run that it was
    values["training"]["logging_steps"] = 7
    file.write_text(yaml.safe_dump(values))
    status, message = run_here(stage, "--config", file)
    assert status == 2
    assert "training.logging_steps: this stage does not read it; leave it out" in message
