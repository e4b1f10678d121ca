"""The stages: one entry each, used by the command line, recipes, `inspect`, `compare` and `init`.

A new stage is a module with its configuration and its `main`, and an entry in STAGES. Nothing is imported here, so that
`tiebreak --help` is immediate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Command:
    """A command, the module that runs it, and its configuration class (`module:class`, in a module without model
    code)."""

    name: str
    module: str
    """its `main` takes the arguments after the command's name"""
    summary: str
    configuration: str = ""
    heavy: bool = False
    """it holds a model, or starts processes that do"""
    positional: str = ""
    """positional arguments before the flags, such as NAME"""
    sources: tuple[str, ...] = ("config",)
    """sources of its keys: `config`, its own file; `label`, the labelling stage's file"""
    subcommands: tuple[Command, ...] = ()
    plans: bool = False
    """the flags of a launch are keys of its own: it launches nothing"""
    shares_out: bool = False
    """several processes share its batches out, to the same result as one"""

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return False

    @property
    def launches(self) -> bool:
        """Whether it runs on several devices, and so takes `--accelerate NAME`."""
        return self.trains or self.shares_out


@dataclass(frozen=True)
class Next:
    """A possible next stage, with its keys: {output} is this stage's output, {policy} its policy."""

    stage: str
    keys: tuple[tuple[str, str], ...]
    when: str = ""
    """a key of this stage: the next one follows only if it is not empty"""


@dataclass(frozen=True)
class Figure:
    """A chart of the report: logged metrics and their held-out twins (`loss`, `eval_loss`) over the steps."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    reference: float | None = None
    """a reference value"""
    reference_name: str = ""
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """keys of the configuration, and their values with which the reference value is one; empty: with all"""

    def has_reference(self, config: Mapping[str, object]) -> bool:
        """Whether the reference value is one of a run; a missing key in old configurations had only one value."""
        return all(config.get(key, values[0]) in values for key, values in self.where.items())


@dataclass(frozen=True)
class Setting:
    """A key of the configuration that the report shows."""

    key: str
    name: str
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """another key, and its values with which this one is read; empty: with all"""

    def is_read(self, config: Mapping[str, object]) -> bool:
        """Whether the stage reads it; a missing key in old configurations had only one value."""
        return all(config.get(key, values[0]) in values for key, values in self.where.items())


@dataclass(frozen=True)
class Stage(Command):
    """A command that reads finished run folders and writes one."""

    makes: Literal["data", "policy", "reward", "report"] = "report"
    """`policy` or `reward` (a reward model) if it trains one"""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """the keys of its configuration that name inputs, and the inputs' names in the manifest; {} is the index in a list, or
    the name in a mapping"""
    rows: tuple[str, ...] = ()
    """its files of rows, final/NAME.jsonl"""
    by_people_unless: str = ""
    """a property of its configuration: if false, people do the work, and a recipe stops before it"""
    next: tuple[Next, ...] = ()
    """usual next stages, the likeliest first"""
    title: str = ""
    """its title in prose and charts, also for a policy with the stage's name; empty: its name"""
    mark: tuple[str, str] | None = None
    """tone and shape in charts, also for a policy with the stage's name"""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """its main logged metrics and their titles: the manifest keeps the last value of each, the progress line shows those
    of training, and `inspect` shows them first"""
    figures: tuple[Figure, ...] = ()
    settings: tuple[Setting, ...] = ()
    """besides those shared by training stages; see evaluation.compare.settings"""
    unread_settings: tuple[str, ...] = ()
    """shared settings that old manifests of this stage have but it never read"""
    implicit_rewards: bool = False
    """it learns implicit rewards: the report tests their held-out accuracy against chance, a guard compares their margin"""

    @property
    def trains(self) -> bool:
        return self.makes in ("policy", "reward")

    def inputs_of(self, config: object) -> dict[str, str]:
        """The inputs in a configuration (run folders, files, models, hub data), by name in the manifest."""
        found: dict[str, str] = {}
        for key, name in self.inputs.items():
            for place, source in _sources_at(config, key.split(".")):
                taken = place
                while name.format(taken) in found:  # keys that share a numbering
                    taken = int(taken) + 1
                found[name.format(taken)] = source
        return found


def _sources_at(value: object, parts: Sequence[str], place: str | int = "") -> Iterator[tuple[str | int, str]]:
    if value is None or value == "":
        return
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _sources_at(one, parts, name)
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _sources_at(one, parts, number)
    else:
        yield from _sources_at(getattr(value, parts[0]), parts[1:], place)


_LABEL = "labeling_ui.label"
LABEL_FILE = ("label",)
"""`Command.sources` of commands on a label store"""

PREPARE = Stage(
    "prepare",
    "sft.prepare",
    "validate, deduplicate and split prompts and demonstrations",
    "sft.configuration:PrepareConfig",
    makes="data",
    inputs={
        "prompts": "data_{}",
        "demonstrations": "data_{}",
        "contamination.against": "test_set_{}",
        "anonymise.model": "names_model",
        "anonymise.words": "words",
        "perplexity.model": "model",
    },
    rows=("prompts", "demonstrations"),
    next=(
        Next("sft", (("demonstrations", "{output}"), ("policy", "{policy}")), when="demonstrations"),
        Next("sample", (("prompts", "{output}"), ("policy", "{policy}"))),
    ),
)

SYNTHESISE = Stage(
    "synthesise",
    "sft.synthesis.synthesise",
    "make prompts, answers and pairs with a model or by rules, for people to review",
    "sft.synthesis.configuration:SynthesiseConfig",
    makes="data",
    inputs={
        "demonstrations": "demonstrations_{}",
        "prompts": "prompts_{}",
        "against": "test_set_{}",
        "gaps": "gaps",
        "templates": "templates",
        "model": "model",
    },
    rows=("answers", "prompts", "pairs"),
    next=(Next("label", (("answers", "{output}"),)),),
)

SFT = Stage(
    "sft",
    "sft.train",
    "supervised fine-tuning with LoRA",
    "sft.configuration:SFTConfig",
    heavy=True,
    makes="policy",
    inputs={"policy": "policy", "demonstrations": "demonstrations"},
    next=(Next("sample", (("policy", "{output}"),)),),
    title="SFT",
    mark=("sft", "square"),
    metrics={
        "loss": "loss",
        "eval_loss": "held-out loss",
        "mean_token_accuracy": "token accuracy",
        "eval_mean_token_accuracy": "held-out token accuracy",
    },
    figures=(
        Figure("Loss", "nats per token", ("loss",)),
        Figure("Token accuracy", "share of tokens", ("mean_token_accuracy",)),
        Figure("Entropy", "nats per token", ("entropy",)),
    ),
    settings=(Setting("loss_on", "loss on"),),
)

SAMPLE = Stage(
    "sample",
    "preference.sample",
    "sample several completions per prompt, as pairs to judge",
    "preference.configuration:SampleConfig",
    heavy=True,
    shares_out=True,
    makes="data",
    inputs={"policy": "policy", "prompts": "prompts"},
    rows=("pairs",),
    next=(Next("label", (("pairs", "{output}"),)),),
    subcommands=(
        Command(
            "probe",
            "preference.probe",
            "repeat a finished run's probe and samples without training; also sample --probe RUN",
            heavy=True,
            positional="RUN",
            sources=(),
        ),
    ),
)

SELECT = Stage(
    "select",
    "preference.selection.select",
    "select pairs for people to judge: some at random, the others by a strategy",
    "preference.selection.configuration:SelectConfig",
    makes="data",
    inputs={
        "pairs": "pairs",
        "reward_model": "reward_model",
        "policy": "policy",
        "judges": "judges.{}",
        "judged": "judged.{}",
    },
    rows=("pairs",),
    next=(Next("label", (("pairs", "{output}"),)),),
    title="selection",
)

LABEL = Stage(
    "label",
    _LABEL,
    "serve pairs to raters; export, verify and count their judgments",
    "labeling_ui.configuration:LabelConfig",
    makes="data",
    inputs={"pairs": "pairs", "judges": "judges.{}", "answers": "answers"},
    rows=("judgments", "preferences"),
    by_people_unless="simulated",
    next=(Next("reward", (("preferences", "{output}"),)), Next("dpo", (("preferences", "{output}"),))),
    subcommands=(
        Command(
            "export",
            _LABEL,
            "write the run folder that training reads",
            "labeling_ui.configuration:ExportArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "import",
            _LABEL,
            "import judgments made elsewhere",
            "labeling_ui.configuration:ImportArguments",
            sources=(),
        ),
        Command(
            "gold",
            _LABEL,
            "mark pairs with a known answer, to measure raters",
            "labeling_ui.configuration:GoldArguments",
            sources=(),
        ),
        Command(
            "backup",
            _LABEL,
            "copy a store, even while it is served, and verify the copy",
            "labeling_ui.steering:BackupArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "batches",
            _LABEL,
            "list the batches of a store",
            "labeling_ui.steering:ReadArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "batch",
            _LABEL,
            "create or change a batch: priority, pool, overlap, deadline, or a pause",
            "labeling_ui.steering:BatchArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "move",
            _LABEL,
            "move pairs to another batch",
            "labeling_ui.steering:MoveArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "withdraw",
            _LABEL,
            "stop giving out pairs; they and their judgments stay",
            "labeling_ui.steering:WithdrawArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "restore",
            _LABEL,
            "restore withdrawn pairs, with their judgments, or a whole store from its backup",
            "labeling_ui.steering:RestoreArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "correct",
            _LABEL,
            "replace pairs by new versions; their old judgments stay in the log",
            "labeling_ui.steering:CorrectArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "withdrawn",
            _LABEL,
            "list withdrawn and corrected pairs",
            "labeling_ui.steering:ReadArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "reject",
            _LABEL,
            "reject a rater's judgments, so that the work is done again",
            "labeling_ui.steering:RejectArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "documents",
            _LABEL,
            "list the versions of the guidelines or the consent, or publish a new one",
            "labeling_ui.leading:DocumentArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "standing",
            _LABEL,
            "list who has passed the test or was stopped; let a rater continue, stop or test them",
            "labeling_ui.leading:StandingArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "sample",
            _LABEL,
            "draw pairs that raters agree on, for a lead to review",
            "labeling_ui.leading:SampleArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "settled",
            _LABEL,
            "list settled pairs: the answer, who settled it, and when",
            "labeling_ui.leading:ListArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "inspections",
            _LABEL,
            "list lots that are inspected by a sample, and their outcome",
            "labeling_ui.leading:ListArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "work",
            _LABEL,
            "write hours, breaks, rework and pay of each rater as a table",
            "labeling_ui.leading:WorkArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "audit",
            _LABEL,
            "write the log as a table, under pseudonyms and without texts",
            "labeling_ui.leading:PeriodArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "status",
            _LABEL,
            "count pairs, judgments and raters of a store",
            "labeling_ui.configuration:StoreArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "verify",
            _LABEL,
            "check a store against its event log",
            "labeling_ui.configuration:StoreArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "agreement",
            _LABEL,
            "measure the agreement of raters with one another and with themselves",
            "labeling_ui.configuration:StoreArguments",
            sources=LABEL_FILE,
        ),
    ),
)

JUDGE = Stage(
    "judge",
    "evaluation.judging.judge",
    "judge pairs with a model: a function, a reward model, a language model here or behind an API",
    "evaluation.judging.configuration:JudgeConfig",
    shares_out=True,
    makes="data",
    inputs={"pairs": "pairs", "reward_model": "reward_model", "model": "model", "people": "people"},
    rows=("judgments",),
    next=(Next("label", (("pairs", "{pairs}"), ("judges", "{output}"))),),
    title="judge",
    metrics={"accuracy": "accuracy against people", "kappa": "κ against people", "consistency": "position consistency"},
)

REWARD = Stage(
    "reward",
    "reward.train",
    "train a reward model on preferences; report on one",
    "reward.configuration:RewardConfig",
    heavy=True,
    makes="reward",
    inputs={"policy": "policy", "preferences": "preferences", "samples": "samples"},
    next=(Next("ppo", (("reward_model", "{output}"), ("policy", "{policy}"))),),
    subcommands=(
        Command(
            "report",
            "reward.report",
            "report on whether to trust a reward model, on any preferences",
            "reward.configuration:RewardReportConfig",
            heavy=True,
        ),
    ),
    metrics={"loss": "loss", "accuracy": "accuracy", "margin": "margin", "eval_loss": "held-out loss"},
    figures=(
        Figure("Loss", "nats per pair", ("loss",)),
        Figure("Accuracy", "share of pairs", ("accuracy", "accuracies"), 0.5, "chance"),
        Figure("Margin, chosen − rejected", "score", ("margin", "margins"), 0.0),
        Figure("Mean score", "score", ("mean_reward", "min_reward", "max_reward")),
    ),
    settings=(
        Setting("strength_as", "strength as"),
        Setting("margin_scale", "margin scale"),
        Setting("soft_labels", "soft labels"),
        Setting("use_weights", "weights used"),
        Setting("centering", "centering"),
        Setting("members", "members"),
    ),
)

_PAIRS, _ANSWERS, _SIMPO = {"algorithm": ("dpo",)}, {"algorithm": ("kto",)}, {"algorithm": ("simpo",)}
_LN_2 = {
    "algorithm": ("dpo",),
    "loss_type": (["sigmoid"], ["sigmoid_norm"], ["robust"], ["aot"], ["aot_unpaired"]),
    "loss_weights": (None,),
}

DPO = Stage(
    "dpo",
    "preference.dpo",
    "direct preference optimisation: DPO, KTO, ORPO, SimPO, CPO",
    "preference.configuration:DPOConfig",
    heavy=True,
    makes="policy",
    inputs={"policy": "policy", "preferences": "preferences", "guard.reward_model": "guard.reward_model"},
    next=(Next("evaluate", (("policies.sft", "{policy}"), ("policies.dpo", "{output}"))),),
    title="DPO",
    mark=("dpo", "diamond"),
    metrics={
        "loss": "loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "eval_loss": "held-out loss",
        "eval_rewards/accuracies": "held-out accuracy",
    },
    figures=(
        Figure("Loss", "nats per pair", ("loss",), math.log(2), "ln 2", _LN_2),
        Figure("Accuracy of implicit rewards", "share of pairs", ("rewards/accuracies",), 0.5, "chance"),
        Figure("Margin of implicit rewards", "implicit reward", ("rewards/margins",), 0.0),
        Figure("Implicit rewards", "implicit reward", ("rewards/chosen", "rewards/rejected"), 0.0),
        Figure("Log-probability of answers", "nats per answer", ("logps/chosen", "logps/rejected")),
        Figure("Score of the guard's reward model", "score", ("guard/score",)),
    ),
    settings=(
        Setting("algorithm", "algorithm"),
        Setting("beta", "beta"),
        Setting("loss_type", "loss"),
        Setting("loss_weights", "weights of the losses", _PAIRS),
        Setting("label_smoothing", "label smoothing", {"algorithm": ("dpo", "simpo", "cpo")}),
        Setting("ld_alpha", "LD-DPO alpha", _PAIRS),
        Setting("f_divergence_type", "divergence", _PAIRS),
        Setting("sync_ref_model", "reference follows", {"algorithm": ("dpo", "kto")}),
        Setting("simpo_gamma", "SimPO gamma", _SIMPO),
        Setting("cpo_alpha", "weight of the NLL", {"algorithm": ("simpo", "cpo")}),
        Setting("desirable_weight", "weight of desirable answers", _ANSWERS),
        Setting("undesirable_weight", "weight of undesirable answers", _ANSWERS),
    ),
    implicit_rewards=True,
)

_OWN, _GROUPS = {"algorithm": ("ppo",)}, {"algorithm": ("rloo", "grpo")}

PPO = Stage(
    "ppo",
    "preference.ppo.train",
    "proximal policy optimisation against a reward model",
    "preference.configuration:PPOConfig",
    heavy=True,
    makes="policy",
    inputs={
        "policy": "policy",
        "prompts": "prompts",
        "reward_model": "reward_model",
        "rewards.model": "rewards.{}",
        "rewards.instructions": "rewards.{}",
        "value_head": "value_head",
        "guard.reward_model": "guard.reward_model",
    },
    next=(Next("evaluate", (("policies.sft", "{policy}"), ("policies.ppo", "{output}"))),),
    title="PPO",
    mark=("ppo", "triangle"),
    metrics={
        "objective/kl": "KL",
        "objective/scores": "score",
        "objective/rlhf_reward": "reward",
        "eval_objective/scores": "held-out score",
        "eval_objective/kl": "held-out KL",
    },
    figures=(
        Figure("Score of the reward model", "score", ("objective/scores", "guard/training_score")),
        Figure("Score of the guard's reward model", "score", ("guard/score",)),
        Figure("KL from the SFT policy", "nats per answer", ("objective/kl",), 0.0),
        Figure("Reward, score − KL penalty", "score", ("objective/rlhf_reward",)),
        Figure("Length of rollouts", "tokens", ("completions/mean_length",)),
        Figure("Entropy of rollouts", "nats per answer", ("objective/entropy",)),
        Figure("Entropy of the policy", "nats per token", ("policy/entropy_avg",)),
        Figure("Policy loss", "", ("loss/policy_avg",)),
        Figure("Value loss", "", ("loss/value_avg",)),
        Figure("Clipped share", "share of tokens", ("policy/clipfrac_avg", "val/clipfrac_avg")),
        Figure("KL of an update, approximate", "nats per token", ("policy/approxkl_avg",)),
    ),
    settings=(
        Setting("algorithm", "algorithm"),
        Setting("kl_coef", "KL coefficient"),
        Setting("kl_target", "KL target in nats"),
        Setting("rollouts", "rollouts"),
        Setting("episodes_per_rollout", "episodes a rollout"),
        Setting("ppo_epochs", "epochs a rollout"),
        Setting("completions_per_prompt", "completions a prompt", _GROUPS),
        Setting("sampling.temperature", "temperature"),
        Setting("sampling.max_new_tokens", "longest answer in tokens"),
        Setting("cliprange", "clip range"),
        Setting("gamma", "gamma", _OWN),
        Setting("lam", "lambda", _OWN),
        Setting("vf_coef", "value loss coefficient", _OWN),
        Setting("entropy_coef", "entropy coefficient"),
        Setting("missing_eos_penalty", "penalty of an unfinished answer"),
        Setting("length_penalty", "length penalty"),
    ),
    unread_settings=("training.epochs",),
)

EVALUATE = Stage(
    "evaluate",
    "evaluation.evaluate",
    "measure policies on held-out prompts",
    "evaluation.configuration:EvaluateConfig",
    heavy=True,
    shares_out=True,
    inputs={
        "prompts": "prompts",
        "policies": "policy_{}",
        "reward_model": "reward_model",
        "references": "references",
    },
    next=(Next("compare", (("evaluation", "{output}"),)),),
)

COMPARE = Stage(
    "compare",
    "evaluation.compare",
    "write one report on the whole recipe: report.html, report.json",
    "evaluation.configuration:CompareConfig",
    inputs={"evaluation": "evaluation", "runs": "runs.{}", "against": "against.{}"},
    subcommands=(
        Command(
            "overview",
            "evaluation.overview",
            "compare any runs: settings, curves, win rates, answers, cost",
            "evaluation.configuration:OverviewArguments",
            positional="RUNS…",
            sources=(),
        ),
    ),
)

DUEL = Stage(
    "duel",
    "evaluation.duel.pairs",
    "let people compare policies on held-out prompts, blind; report win rates and ratings",
    "evaluation.duel.configuration:DuelConfig",
    makes="data",
    inputs={"evaluation": "evaluation"},
    rows=("pairs",),
    next=(Next("label", (("pairs", "{output}"),)),),
    subcommands=(
        Command(
            "report",
            "evaluation.duel.report",
            "report on a duel from its judgments",
            "evaluation.duel.configuration:DuelReportConfig",
        ),
    ),
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (PREPARE, SYNTHESISE, SFT, SAMPLE, JUDGE, SELECT, LABEL, REWARD, DPO, PPO, EVALUATE, COMPARE, DUEL)
}
"""In recipe order; the quickstart's recipe has no judge, no selection and no duel."""

_UNLISTED = Stage("", "", "")


def find_stage(name: str) -> Stage:
    """The entry of a stage; an empty one for an unknown stage, as from another version."""
    return STAGES.get(name, _UNLISTED)
