"""The configurations of *reward* and its report. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, ThinkingConfig, TrainingConfig, refuse_dropout, refuse_unread


class RewardConfig(ReadingConfig, ThinkingConfig):
    """`tiebreak reward`"""

    trains: ClassVar[bool] = True

    policy: str
    """the model to start from: usually the SFT run, whose adapter becomes the start of this one"""
    preferences: str
    """a label run, a file, a folder or hub:NAME@SPLIT (see tiebreak.data): answers compared, rated or ranked"""
    adapter: AdapterConfig | None = None
    """null: the policy's own; a policy without one needs it"""
    training: TrainingConfig = TrainingConfig()
    """the optimizer, and how the model is loaded"""
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of the prompts that no row names a split for; every stage holds out the same ones"""
    strength_as: Literal["margin", "weight", "nothing"] = "margin"
    """what a strength s (1 to 3) does: its pair must be told apart by a margin (Touvron et al. 2023, Eq. 2), or counts s
    times (scaled Bradley-Terry, Wang et al. 2024)"""
    margin_scale: float = Field(default=1.0, ge=0.0)
    """times the row's margin, or s/3 where it has none (Touvron et al. 2023, Table 27, small margin)"""
    soft_labels: bool = False
    """learn the row's confidence, or the share of raters who agree, in place of certainty; see
    tiebreak.training.labels.target_of"""
    use_weights: bool = True
    """count each pair by its weight; all weights together leave the learning rate as it is"""
    centering: float = Field(default=0.01, ge=0.0)
    """weight of the squared sum of both scores, which keeps their mean near 0 (Eisenstein et al. 2023)"""
    members: int = Field(default=1, ge=1, le=64)
    """score heads on the one adapter, each trained on its own bootstrap of the prompts; their mean is the score, and
    their spread says what the data leave open"""
    samples: str | None = None
    """a sample run, whose answers the finished model scores: PPO can normalise by their mean and deviation, so this should
    be of the policy that PPO starts from; null: PPO measures its first rollout"""
    max_samples: int = Field(default=256, ge=2)
    """answers of the sample run that are scored"""
    garbage_prompts: int = Field(default=16, ge=0)
    """held-out prompts to which the report makes bad answers: empty, repeated, copied, over-long"""
    share_prefixes: bool = True
    """compute a prompt and each of its answers once, and no padding (see tiebreak.packed.forward); false: TRL's own
    layout"""
    prompt_by_prompt: bool = True
    """pairs of one prompt stand together in a batch (see tiebreak.training.prompt_order); false: pairs of like length do"""

    _no_dropout = field_validator("adapter")(refuse_dropout)

    @model_validator(mode="after")
    def _all_is_read(self) -> RewardConfig:
        if self.strength_as != "margin":
            refuse_unread(self, f"with strength_as {self.strength_as} there is no margin", "margin_scale")
        if self.samples is None:
            refuse_unread(self, "without samples there are no answers to score", "max_samples")
        return self

    def input_sources(self) -> dict[str, str]:
        samples = {"samples": self.samples} if self.samples else {}
        return {"policy": self.policy, "preferences": self.preferences, **samples}


class RewardReportConfig(ReadingConfig):
    """`tiebreak reward report`"""

    reward_model: str
    """a finished reward run"""
    preferences: str | None = None
    """what to examine it on, of which rows that it was trained on are left out; null: those its own run held out"""
    garbage_prompts: int = Field(default=16, ge=0)
    """held-out prompts to which bad answers are made: empty, repeated, copied, over-long"""
    batch_size: int = Field(default=16, ge=1)
    """answers scored at once"""
    trust_remote_code: bool = False
    """run Python code that the model brings along"""
