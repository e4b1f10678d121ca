"""The configurations of *reward* and its report. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from pydantic import Field, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, refuse_unread
from tiebreak.training.configuration import PreferencesConfig, StrengthUse


class RewardConfig(PreferencesConfig):
    """`tiebreak reward`"""

    policy: str
    """the model to start from: usually the SFT run; training starts from a copy of its adapter"""
    adapter: AdapterConfig | None = None
    """the weights to train: by default LoRA (Hu et al. 2021) on frozen base weights. null: continue the policy's own
    adapter; a policy without one needs this section"""
    strength_as: StrengthUse = "margin"
    """use of a preference's strength s (1 to 3). margin: the scores must differ by a margin (Touvron et al. 2023, Eq.
    2); weight: the pair counts s times (scaled Bradley-Terry, Wang et al. 2024)"""
    centering: float = Field(default=0.01, ge=0.0)
    """weight of a loss on the squared sum of both scores, which keeps their mean near 0 (Eisenstein et al. 2023)"""
    members: int = Field(default=1, ge=1, le=64)
    """number of score heads on one adapter, each trained on its own bootstrap sample of the prompts: the score is their
    mean, and their spread its uncertainty"""
    samples: str | None = None
    """a sample run of PPO's initial policy: the finished model scores its answers, and PPO normalises by their mean and
    standard deviation; null: PPO uses its first rollout"""
    max_samples: int = Field(default=256, ge=2)
    """number of the sample run's answers to score"""
    garbage_prompts: int = Field(default=16, ge=0)
    """number of held-out prompts for the report's adversarial answers: empty, repeated, copied, over-long"""

    @model_validator(mode="after")
    def _all_is_read(self) -> RewardConfig:
        if self.samples is None:
            refuse_unread(self, "without samples there are no answers to score", "max_samples")
        return self


class RewardReportConfig(ReadingConfig):
    """`tiebreak reward report`"""

    reward_model: str
    """a finished reward run"""
    preferences: str | None = None
    """preferences to evaluate it on, except those that it was trained on; null: those that its own run held out"""
    garbage_prompts: int = Field(default=16, ge=0)
    """number of held-out prompts for adversarial answers: empty, repeated, copied, over-long"""
    batch_size: int = Field(default=16, ge=1)
    """answers per batch"""
    influence_pairs: int = Field(default=0, ge=0, exclude_if=lambda pairs: not pairs)
    """number of its training pairs, drawn at random, whose pull on the others is estimated by their gradients: the report
    lists those that pull against the rest. A pair takes the time of a training step on it. 0: none; of a model with a LoRA
    adapter"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
