"""The configurations of *sample*, *dpo* and *ppo*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tiebreak.config import (
    SERVER_URL,
    LoadingConfig,
    OptimizerConfig,
    SamplingConfig,
    Section,
    SplittingConfig,
    ThinkingConfig,
    refuse_dropout,
    refuse_unread,
)
from tiebreak.config.monitors import Monitors
from tiebreak.records import Split
from tiebreak.training.configuration import PreferencesConfig, StrengthUse, TrainedConfig

LOSSES_OF_PAIRS = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
"""TRL's losses that are a mean over pairs: rows can be weighted, and a batch can be cut into passes."""
LOSSES_OF_BATCHES = ("aot", "aot_unpaired", "sft")
"""TRL's losses that sort a batch, or average over its tokens."""
KTO_LOSSES = ("kto", "apo_zero_unpaired")
LOSSES: Mapping[str, tuple[str, ...]] = {
    "dpo": LOSSES_OF_PAIRS + LOSSES_OF_BATCHES,
    "kto": KTO_LOSSES,
    "orpo": ("orpo",),
    "simpo": ("simpo",),
    "cpo": ("sigmoid", "hinge", "ipo"),
}
"""The losses of each algorithm; the first is its default."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"simpo": {"beta": 2.0, "cpo_alpha": 0.0}}
"""Defaults that differ by algorithm."""
DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses for which another divergence than the reverse KL is defined: TRL's list."""
MARGIN_LOSSES = ("sigmoid", "sigmoid_norm")
SOFT_LOSSES = ("sigmoid", "hinge", "ipo", "sigmoid_norm")
"""Losses that are defined for an uncertain label: their expectation over it. robust and exo_pair have a smoothing of
their own; the others rank single answers."""
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
LOSSES_ELSEWHERE = {
    "dpo": "its loss is called sigmoid here",
    "cdpo": "it is sigmoid with soft_labels: true",
    "simpo": "it is an algorithm, without a reference policy: --algorithm simpo",
    "orpo": "it is an algorithm, without a reference policy: --algorithm orpo",
    "cpo": "it is an algorithm, without a reference policy: --algorithm cpo",
    "mpo": "it is a sum of losses: loss_type [sigmoid, bco_pair, sft], loss_weights [0.8, 0.2, 1.0]",
    "bco": "TRL 1.16 has its loss of pairs alone: bco_pair",
    "kto": "it is an algorithm, which learns from single labelled answers: --algorithm kto",
    "ppo": "it is a stage: tiebreak ppo",
    "rloo": "it is an algorithm of the PPO stage: tiebreak ppo --algorithm rloo",
    "grpo": "it is an algorithm of the PPO stage: tiebreak ppo --algorithm grpo",
}
"""What people ask DPO for, and where it is."""
ONE_MODE_ALONE = {"server": ("base_url", "group_port"), "colocate": ("gpu_memory_utilization", "tensor_parallel_size")}
PPO_ALONE = (
    "value_head",
    "kl_target",
    "kl_horizon",
    "max_kl",
    "target_step_kl",
    "gamma",
    "lam",
    "cliprange_value",
    "vf_coef",
    "entropy_coef",
    "whiten_rewards",
)
"""Keys that only our own trainer reads."""
_OF_PAIRS = ("dpo", "orpo", "simpo", "cpo")
ONE_ALGORITHM_ALONE: Mapping[str, tuple[str, ...]] = {
    "loss_weights": ("dpo",),
    "ld_alpha": ("dpo",),
    "f_divergence_type": ("dpo",),
    "f_alpha_divergence_coef": ("dpo",),
    "strength_as": ("dpo",),
    "margin_scale": ("dpo",),
    "soft_labels": ("dpo",),
    "rater_em": ("dpo",),
    "cache_reference": ("dpo",),
    "label_smoothing": ("dpo", "simpo", "cpo"),
    "sync_ref_model": ("dpo", "kto"),
    "ref_model_sync_steps": ("dpo", "kto"),
    "use_weights": _OF_PAIRS,
    "use_edits": _OF_PAIRS,
    "prompt_by_prompt": _OF_PAIRS,
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "cpo_alpha": ("simpo", "cpo"),
    "simpo_gamma": ("simpo",),
}
"""Keys of *dpo* that some algorithms do not read, and those that do."""
GUARD_INPUT = "guard.reward_model"
"""the name of a guard's reward model among a run's inputs"""


class SampleConfig(SplittingConfig, ThinkingConfig):
    """`tiebreak sample`"""

    policy: str
    """the policy to sample from: usually the SFT run"""
    prompts: str
    """a prepare run, a file, a folder or hub:NAME@SPLIT"""
    splits: list[Split] = ["train", "validation"]
    """splits to sample prompts from; test is refused, since its prompts are for the final figures"""
    max_prompts: int | None = Field(default=None, ge=1)
    """sample at most this many prompts, spread over the splits in proportion; null: all"""
    completions_per_prompt: int = Field(default=2, ge=2)
    """completions drawn for each prompt"""
    sampling: list[SamplingConfig] = [SamplingConfig()]
    """how completions are drawn; with several settings, a prompt's completions use them in turn"""
    seed: int = Field(default=0, ge=0)
    """random seed, combined with the prompt and the completion's number"""
    batch_size: int = Field(default=32, ge=1)
    """completions sampled at once; each finished one is replaced by the next"""
    vllm: str | None = Field(default=None, pattern=SERVER_URL, exclude_if=lambda url: url is None)
    """URL of a vLLM server that draws the completions: `vllm serve FOLDER`, where FOLDER is made by `tiebreak export
    POLICY --to vllm --output FOLDER`. Never run on a GPU; null: our own sampler"""
    round: int = Field(default=0, ge=0)
    """number of the round, from 0. Later rounds sample from the policy of the previous round"""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """longest prompt; a longer one is refused"""
    training: LoadingConfig = LoadingConfig()
    """how the policy is loaded: precision, attention kernel and remote code"""

    @model_validator(mode="after")
    def _every_setting_is_used(self) -> SampleConfig:
        if not 1 <= len(self.sampling) <= self.completions_per_prompt:
            raise ValueError(
                f"sampling: {len(self.sampling)} settings for {self.completions_per_prompt} completions_per_prompt; "
                "give one at least, and no more than there are completions"
            )
        return self


class AnswerConfig(Section):
    """`python -m preference.answer`"""

    policies: list[str] = Field(min_length=1, max_length=2)
    sampling: SamplingConfig = SamplingConfig()
    max_prompt_tokens: int = Field(default=2048, ge=1)
    trust_remote_code: bool = False


class GuardConfig(Section):
    """Which policy of a run to keep, and when to stop."""

    reward_model: str
    """a finished reward run that this training does not use: trained with another seed, or on other judgments"""
    eval_every_steps: int = Field(default=50, ge=1)
    """optimizer steps between evaluations"""
    patience: int = Field(default=3, ge=1)
    """stop after its score has fallen this many times in a row while the training's own score rose"""
    max_prompts: int = Field(default=32, ge=1)
    """validation prompts to answer at each evaluation"""


class RaterEMConfig(Section):
    """Estimation of which votes are right, while the policy trains."""

    reliability: float = Field(default=0.9, gt=0.5, lt=1.0)
    """a rater's initial probability of a right vote"""
    prior_votes: float = Field(default=4.0, gt=0.0)
    """that initial value counts as this many votes"""


class DPOConfig(PreferencesConfig):
    """`tiebreak dpo`"""

    algorithm: Literal["dpo", "kto", "orpo", "simpo", "cpo"] = "dpo"
    """dpo: pairs (Rafailov et al. 2023). orpo (Hong et al. 2024), simpo (Meng et al. 2024), cpo (Xu et al. 2024):
    pairs, without a reference policy. kto: single answers labelled true or false, in TRL's columns prompt, completion
    and label (Ethayarajh et al. 2024); `preferences` is then a label run that exported `unpaired`, a file, a folder or
    hub:NAME@SPLIT"""
    beta: float = Field(default=0.1, gt=0.0)
    """weight of the KL to the reference; 0.1 as in Rafailov et al. 2023. orpo: weight of the odds ratio, λ, 0.1 as in Hong
    et al. 2024. cpo, simpo: scale of the difference of log-probabilities; simpo's default is 2.0 (Meng et al. 2024)"""
    loss_type: list[str] = ["sigmoid"]
    """dpo: one or more of TRL's losses, which are summed: sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair,
    sppo_hard, apo_zero, apo_down, discopop, sigmoid_norm, aot, aot_unpaired, sft. kto: kto (the default) or
    apo_zero_unpaired, which has no KL. cpo: sigmoid, hinge or ipo"""
    loss_weights: list[float] | None = None
    """dpo: a weight for each loss; null: 1 each. loss_type [sigmoid, bco_pair, sft] with [0.8, 0.2, 1.0] is MPO (Wang et
    al. 2024)"""
    ld_alpha: float | None = Field(default=None, ge=0.0, le=1.0)
    """dpo: weight of the longer answer's tokens beyond the length of the shorter one (LD-DPO, Liu et al. 2024); null:
    1"""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """dpo: divergence from the reference (f-DPO, Wang et al. 2024); for the losses sigmoid, sigmoid_norm, hinge, ipo,
    exo_pair, robust, discopop and sft"""
    f_alpha_divergence_coef: float = 0.5
    """α of alpha_divergence"""
    sync_ref_model: bool = False
    """dpo, kto: copy the policy to the reference every ref_model_sync_steps steps (TR-DPO's hard update, Gorbatovski et
    al. 2024)"""
    ref_model_sync_steps: int = Field(default=512, ge=1)
    """optimizer steps between syncs (τ)"""
    cpo_alpha: float = Field(default=1.0, ge=0.0)
    """cpo, simpo: weight of the chosen answer's negative log-likelihood, per token; simpo's default is 0"""
    simpo_gamma: float = Field(default=1.0, ge=0.0)
    """simpo: target margin γ between the answers' log-probabilities per token times β; γ/β is 0.5 as in Meng et al.
    2024"""
    desirable_weight: float = Field(default=1.0, gt=0.0)
    """kto: weight of desirable answers. The ratio of weight × count, desirable to undesirable, should be from 1:1 to
    4:3 (Eq. 8)"""
    undesirable_weight: float = Field(default=1.0, gt=0.0)
    """kto: weight of undesirable answers"""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """assumed share of wrong labels; for the losses robust, exo_pair, aot and aot_unpaired"""
    strength_as: StrengthUse = "nothing"
    """use of a preference's strength s (1 to 3). margin: implicit rewards must differ by a margin (Amini et al. 2024;
    losses sigmoid and sigmoid_norm); weight: the pair counts s times; nothing: as in Rafailov et al. 2023"""
    soft_labels: bool = False
    """use the row's confidence, or the share of raters who agree, as the target instead of 1 (cDPO, Mitchell 2023;
    losses sigmoid, hinge, ipo and sigmoid_norm)"""
    rater_em: RaterEMConfig | None = Field(default=None, exclude_if=lambda em: em is None)
    """dpo: re-estimate from the policy's margin and each rater's reliability which votes are right (RE-PO, Cao et al. 2025;
    loss sigmoid); true: with all defaults. Labels exported with `aggregation.votes: true` have the votes"""
    cache_reference: bool = True
    """store the reference's log-probabilities in the user's cache, for later epochs, other betas and resumed runs"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_k=50, max_new_tokens=96)
    """how the logged sample completions and the guard's answers are drawn"""
    monitors: Monitors
    """yardsticks on answers to held-out prompts while the policy trains, with thresholds that warn, alert or stop:
    [{yardstick: refusal, every_steps: 20, warn_above: 0.1, stop_above: 0.5}]"""
    guard: GuardConfig | None = None
    """keep the policy that a held-out reward model scores highest, and stop training when it over-optimises"""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, values: Any) -> Any:
        algorithm = values.get("algorithm", "dpo") if isinstance(values, dict) else None
        if algorithm not in tuple(LOSSES):
            return values
        return {"loss_type": [LOSSES[algorithm][0]], **DEFAULTS.get(algorithm, {}), **values}

    @field_validator("rater_em", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _votes_decide_alone(self) -> DPOConfig:
        if self.rater_em is None or self.algorithm != "dpo":
            return self
        if self.loss_type != ["sigmoid"] or self.f_divergence_type != "reverse_kl":
            raise ValueError(
                "rater_em: the policy's margin must be a log-odds: use loss_type [sigmoid] and f_divergence_type reverse_kl"
            )
        if self.soft_labels or self.strength_as == "margin":
            key = "soft_labels" if self.soft_labels else "strength_as: margin"
            raise ValueError(
                f"rater_em: it estimates from the votes what {key} reads from the row: leave one of them out"
            )
        return self

    @field_validator("loss_type")
    @classmethod
    def _losses_there_are(cls, names: list[str], info: ValidationInfo) -> list[str]:
        algorithm = info.data.get("algorithm", "dpo")
        faults = [_unknown_loss(name, algorithm) for name in names if name not in LOSSES[algorithm]]
        twice = sorted({name for name in names if names.count(name) > 1})
        faults += [f"{name} is listed twice" for name in twice]
        if not names:
            faults.append("name at least one loss")
        if algorithm != "dpo" and len(names) > 1:
            faults.append(f"{algorithm} trains with one loss; --algorithm dpo adds several up")
        if faults:
            raise ValueError("; ".join(faults))
        return names

    @model_validator(mode="after")
    def _of_its_algorithm(self) -> DPOConfig:
        unread = [key for key, able in ONE_ALGORITHM_ALONE.items() if self.algorithm not in able]
        refuse_unread(self, f"--algorithm {self.algorithm} has no such thing", *unread)
        if not self.sync_ref_model:
            refuse_unread(self, "without sync_ref_model the reference stays", "ref_model_sync_steps")
        elif self.guard is not None:
            raise ValueError(
                "sync_ref_model: the guard measures the KL to the initial policy, so the reference must stay"
            )
        if self.loss_type == ["kto"] and self.training.per_device_batch_size < 2:
            raise ValueError(
                "training.per_device_batch_size: 1, but KTO estimates its KL on prompts and answers of different rows of a "
                "batch: give 2 or more (8 is usual), or loss_type [apo_zero_unpaired], which has no KL"
            )
        return self

    @model_validator(mode="after")
    def _sums_and_divergences(self) -> DPOConfig:
        faults = []
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            faults.append(
                f"loss_weights: {len(self.loss_weights)} weights for {len(self.loss_type)} losses "
                f"({', '.join(self.loss_type)}): give one for each"
            )
        if self.loss_weights is not None and (min(self.loss_weights, default=0) < 0 or not any(self.loss_weights)):
            faults.append("loss_weights: must be at least 0, and one of them above")
        other = [name for name in self.loss_type if name not in DIVERGENCE_LOSSES]
        if self.f_divergence_type != "reverse_kl" and other:
            faults.append(
                f"f_divergence_type: {', '.join(other)} cannot take {self.f_divergence_type}; "
                f"{', '.join(DIVERGENCE_LOSSES)} can"
            )
        if self.f_divergence_type != "alpha_divergence" and self.f_alpha_divergence_coef != 0.5:
            faults.append("f_alpha_divergence_coef: only f_divergence_type alpha_divergence reads this; leave it out")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _labels_have_a_meaning(self) -> DPOConfig:
        faults = [
            f"{key}: {', '.join(other)} cannot take it; {', '.join(able)} can"
            for key, asked, able in (
                ("strength_as: margin", self.strength_as == "margin", MARGIN_LOSSES),
                ("strength_as: weight", self.strength_as == "weight", LOSSES_OF_PAIRS),
                ("soft_labels", self.soft_labels, SOFT_LOSSES),
            )
            if asked and (other := [name for name in self.loss_type if name not in able])
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> DPOConfig:
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: exo_pair takes its logarithm, so it must be above 0; set label_smoothing: 0.001"
            )
        if self.label_smoothing and self.algorithm == "cpo" and self.loss_type != ["sigmoid"]:
            raise ValueError(
                f"label_smoothing: TRL ignores it with CPO's loss {self.loss_type[0]}; set it to 0, or use sigmoid"
            )
        if self.label_smoothing and self.algorithm == "dpo" and not set(SMOOTHED_LOSSES) & set(self.loss_type):
            raise ValueError(
                f"label_smoothing: TRL ignores it with loss_type {self.loss_type}; set it to 0, or add one that uses it: "
                f"{', '.join(sorted(SMOOTHED_LOSSES))}"
            )
        return self


def _unknown_loss(name: str, algorithm: str) -> str:
    losses = LOSSES[algorithm]
    among = f"there is no {name!r} among {algorithm.upper()}'s losses"
    owner = next((other for other, own in LOSSES.items() if name in own and other != algorithm), None)
    if name.lower() in LOSSES_ELSEWHERE:
        return f"{among}: {LOSSES_ELSEWHERE[name.lower()]}"
    if owner:
        return f"{among}: it is one of --algorithm {owner}"
    near = difflib.get_close_matches(name.lower(), losses, n=2, cutoff=0.6)
    return among + (f"; did you mean {' or '.join(near)}?" if near else f", which are {', '.join(losses)}")


class RewardConfig(Section):
    """One of several rewards: a reward model, a function, or checkable instructions."""

    model: str | None = None
    """a finished reward run"""
    function: str | None = None
    """a Python function, as module:name: beside the configuration file, in the current folder, or installed"""
    instructions: str | None = Field(default=None, exclude_if=lambda file: file is None)
    """a file of checkable instructions; the reward is the share that an answer follows; see docs/evaluation.md"""
    weight: float = 1.0
    """weight of its score in the sum; negative: a penalty"""
    spread_penalty: float = Field(default=0.0, ge=0.0)
    """for a reward model with several members: subtract this many standard deviations of their scores from the mean"""

    @model_validator(mode="after")
    def _one_source(self) -> RewardConfig:
        if sum(source is not None for source in (self.model, self.function, self.instructions)) != 1:
            raise ValueError(
                "a reward is a model, a function (package.module:function) or a file of instructions: give one of them"
            )
        if self.model is None and self.spread_penalty:
            kind = "a function" if self.function else "a file of instructions"
            raise ValueError(f"spread_penalty: {kind} has no members whose scores could spread")
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function: {self.function!r} is not of the form package.module:function")
        return self


class VLLMConfig(Section):
    """vLLM instead of our own sampler, for the rollouts of training. Needs GPUs, and was never run on one."""

    mode: Literal["server", "colocate"] = "server"
    """server: `vllm serve` on separate GPUs; TRL's client sends the weights by NCCL (if no server runs, the error gives
    the command that starts it). colocate: in each training process, on the same GPU"""
    base_url: str = Field(default="http://127.0.0.1:8000", pattern=SERVER_URL)
    """URL of the server"""
    group_port: int = Field(default=51216, ge=1, le=65535)
    """port on which the server's workers receive weights from the trainer"""
    gpu_memory_utilization: float = Field(default=0.3, gt=0.0, lt=1.0)
    """colocate: share of each GPU's memory that vLLM uses for weights and cache"""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """colocate: GPUs that share one copy; the number of processes must be a multiple of it"""
    logp_tolerance: float = Field(default=0.05, gt=0.0)
    """stop if vLLM's log-probabilities differ from the policy's by more than this, in nats per token, on average over a
    rollout. The default is meant to be above vLLM's bfloat16 noise and below the effect of wrong weights; not measured
    on a GPU"""

    @model_validator(mode="after")
    def _of_its_mode(self) -> VLLMConfig:
        other = "colocate" if self.mode == "server" else "server"
        refuse_unread(self, f"only mode {other} reads this", *ONE_MODE_ALONE[other])
        return self


class PPOConfig(TrainedConfig):
    """`tiebreak ppo`. Defaults marked N+ are from Huang et al. 2024."""

    algorithm: Literal["ppo", "rloo", "grpo"] = "ppo"
    """ppo: Tiebreak's own trainer, with a critic. rloo, grpo: TRL's trainers on the same rewards and rollouts; kl_coef
    is their beta (GRPO puts the KL into the loss, not into the reward), cliprange their epsilon, ppo_epochs their
    num_iterations, whiten_advantages their normalisation (in GRPO by the group's standard deviation)"""
    completions_per_prompt: int = Field(default=4, ge=2)
    """rloo, grpo: completions per prompt, which are compared with one another"""
    reward_model: str | None = None
    """a finished reward run, with weight 1"""
    rewards: list[RewardConfig] = []
    """further rewards, or all rewards if reward_model is null: {model: RUN, weight: W}, {function: module:name, weight:
    W} or {instructions: FILE, weight: W}"""
    prompts: str
    """a prepare run, a file, a folder or hub:NAME@SPLIT"""
    value_head: str | None = None
    """a finished PPO run, to start from its critic; null: a critic that predicts 0, the mean of the normalised
    scores"""
    training: OptimizerConfig = OptimizerConfig(learning_rate=3e-6)
    """how the policy is loaded and trained; per_device_batch_size × gradient_accumulation_steps episodes make one optimizer
    step on each process"""
    episodes_per_rollout: int = Field(default=64, ge=1)
    """completions drawn before each round of updates, over all processes"""
    rollouts: int = Field(default=100, ge=1)
    """number of rollouts; training.max_steps, if set, stops earlier"""
    ppo_epochs: int = Field(default=4, ge=1)
    """passes over each rollout (N+)"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, max_new_tokens=96)
    """how rollouts are drawn; log-probabilities are computed at the same temperature, by default 0.7 (N+)"""
    vllm: VLLMConfig | None = None
    """sample rollouts with vLLM, on GPUs ({mode: server} or {mode: colocate}); null: with Tiebreak's sampler, on the
    training device. The metric sampling/logp_difference is the difference between vLLM's log-probabilities and the
    policy's"""
    kl_coef: float = Field(default=0.05, ge=0.0)
    """weight of the KL to the reference in the reward (N+), per token log π − log π_ref (k1); with kl_target, the
    initial weight"""
    kl_target: float | None = Field(default=None, gt=0.0)
    """target KL, in nats per completion, kept by adapting kl_coef (Ziegler et al. 2019); null: kl_coef is fixed.
    kl_target and max_kl use the estimate k3, which varies less than k1 but must not be used in the reward"""
    kl_horizon: int = Field(default=10_000, ge=1)
    """episodes over which kl_coef changes by at most a fifth"""
    max_kl: float | None = Field(default=None, gt=0.0)
    """stop if a rollout's KL to the reference exceeds this, in nats per completion"""
    target_step_kl: float | None = Field(default=None, gt=0.0)
    """skip a rollout's remaining updates once the policy's KL from the sampling policy exceeds this, in nats per token
    (policy/approxkl_avg)"""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """discount of later rewards, per token"""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """λ of generalised advantage estimation (Schulman et al. 2016)"""
    cliprange: float = Field(default=0.2, gt=0.0)
    """clip the ratio of new to old probability to 1 ± this"""
    cliprange_value: float = Field(default=0.2, gt=0.0)
    """clip a new value to the old one ± this"""
    vf_coef: float = Field(default=0.1, ge=0.0)
    """weight of the critic's loss"""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """weight of the policy's entropy (nats per token) in the objective"""
    missing_eos_penalty: float = Field(default=1.0, ge=0.0)
    """subtracted from the (normalised) score of a completion that was cut off (N+)"""
    length_penalty: float = Field(default=0.0, ge=0.0)
    """subtracted from the (normalised) score for each token of a completion"""
    normalise_scores: bool = True
    """normalise each reward by the mean and standard deviation of its scores on the policy's first completions, before
    training (N+)"""
    whiten_rewards: bool = False
    """divide each rollout's rewards by their standard deviation and keep their mean; off as in N+ (Table 1)"""
    whiten_advantages: bool = True
    """normalise advantages to mean 0 and standard deviation 1 over a rollout's tokens (N+)"""
    stop_when_all_cut_off: bool = True
    """stop if no completion of a rollout ends within sampling.max_new_tokens"""
    max_validation_prompts: int = Field(default=32, ge=0)
    """validation prompts to answer at each evaluation"""
    monitors: Monitors
    """yardsticks on answers to held-out prompts while the policy trains, with thresholds that warn, alert or stop:
    [{yardstick: refusal, every_steps: 20, warn_above: 0.1, stop_above: 0.5}]"""
    guard: GuardConfig | None = None
    """keep the policy that a held-out reward model scores highest, and stop training when it over-optimises"""

    _no_dropout = field_validator("adapter")(refuse_dropout)

    def function_names(self) -> dict[str, str]:
        return {f"rewards.{number}": reward.function for number, reward in enumerate(self.rewards) if reward.function}

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        if self.algorithm != "ppo":
            refuse_unread(self, f"{self.algorithm} has no such thing", *PPO_ALONE)
            if self.episodes_per_rollout % self.completions_per_prompt:
                raise ValueError(
                    f"episodes_per_rollout ({self.episodes_per_rollout}) must be a multiple of completions_per_prompt "
                    f"({self.completions_per_prompt})"
                )
        else:
            refuse_unread(self, "only rloo and grpo compare the completions of a prompt", "completions_per_prompt")
        if self.kl_target is None:
            refuse_unread(self, "without kl_target, kl_coef is fixed", "kl_horizon")
        if self.guard is not None and self.guard.reward_model in [reward.model for reward in self.all_rewards]:
            raise ValueError(
                "guard.reward_model: it is what the policy learns from; give one of another seed and share of judgments"
            )
        if self.reward_model is None and not self.rewards:
            raise ValueError("reward_model: missing; name a finished reward run, or give rewards")
        if self.sampling.top_k or self.sampling.top_p < 1.0:
            raise ValueError(
                "sampling: PPO needs top_k 0 and top_p 1; a cut distribution is not the one whose log-probabilities are "
                "learned from"
            )
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature: PPO cannot explore with greedy sampling; 0.7 to 1.0 is usual")
        minibatch = self.training.per_device_batch_size * self.training.gradient_accumulation_steps
        if self.episodes_per_rollout % minibatch:
            raise ValueError(
                f"episodes_per_rollout ({self.episodes_per_rollout}) must be a multiple of per_device_batch_size × "
                f"gradient_accumulation_steps ({minibatch})"
            )
        return self

    @property
    def all_rewards(self) -> list[RewardConfig]:
        """reward_model and rewards as one list."""
        return [*([RewardConfig(model=self.reward_model)] if self.reward_model else []), *self.rewards]
