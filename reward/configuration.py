"""The configurations of *reward* and its report. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, ThinkingConfig, TrainingConfig, refuse_dropout, refuse_unread


class RewardConfig(ReadingConfig, ThinkingConfig):
    """`tiebreak reward`"""

    policy: str
    """the model to start from: usually the SFT run, whose adapter becomes the start of this one"""
    preferences: str
    """answers that were compared, rated or ranked: a label run, a file, a folder or hub:NAME@SPLIT"""
    adapter: AdapterConfig | None = None
    """null: continue the policy's own adapter; a policy without one needs this section"""
    training: TrainingConfig = TrainingConfig()
    """the optimizer, and how the model is loaded"""
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share held out of the prompts whose rows name no split; every stage holds out the same ones"""
    strength_as: Literal["margin", "weight", "nothing"] = "margin"
    """use of a preference's strength s (1 to 3). margin: the scores must differ by a margin (Touvron et al. 2023, Eq.
    2); weight: the pair counts s times (scaled Bradley-Terry, Wang et al. 2024)"""
    margin_scale: float = Field(default=1.0, ge=0.0)
    """multiplies the row's margin, or s/3 where it has none (Touvron et al. 2023, Table 27, small margin)"""
    soft_labels: bool = False
    """learn the row's confidence, or the share of raters who agree, instead of certainty"""
    use_weights: bool = True
    """count each pair by its weight; weights have mean 1, so the learning rate keeps its meaning"""
    centering: float = Field(default=0.01, ge=0.0)
    """weight of the squared sum of both scores, which keeps their mean near 0 (Eisenstein et al. 2023)"""
    members: int = Field(default=1, ge=1, le=64)
    """score heads on one adapter, each trained on its own bootstrap of the prompts: their mean is the score, their
    spread its uncertainty"""
    samples: str | None = None
    """a sample run of the policy that PPO will start from: the finished model scores its answers, and PPO normalises by
    their mean and deviation; null: PPO uses its first rollout"""
    max_samples: int = Field(default=256, ge=2)
    """answers of the sample run to score"""
    garbage_prompts: int = Field(default=16, ge=0)
    """held-out prompts for the report's adversarial answers: empty, repeated, copied, over-long"""
    share_prefixes: bool = True
    """compute each prompt and each answer once, and no padding; false: TRL's layout"""
    prompt_by_prompt: bool = True
    """put pairs of one prompt into one batch; false: pairs of similar length"""

    _no_dropout = field_validator("adapter")(refuse_dropout)

    @model_validator(mode="after")
    def _all_is_read(self) -> RewardConfig:
        if self.strength_as != "margin":
            refuse_unread(self, f"with strength_as {self.strength_as} there is no margin", "margin_scale")
        if self.samples is None:
            refuse_unread(self, "without samples there are no answers to score", "max_samples")
        return self


class RewardReportConfig(ReadingConfig):
    """`tiebreak reward report`"""

    reward_model: str
    """a finished reward run"""
    preferences: str | None = None
    """preferences to examine it on, without those that it was trained on; null: those that its own run held out"""
    garbage_prompts: int = Field(default=16, ge=0)
    """held-out prompts for adversarial answers: empty, repeated, copied, over-long"""
    batch_size: int = Field(default=16, ge=1)
    """answers per batch"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
