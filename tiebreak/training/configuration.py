"""The keys that trained stages share. No model code is imported, so that help and errors answer at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.config import (
    AdapterConfig,
    OptimizerConfig,
    RenderingConfig,
    Section,
    SplittingConfig,
    ThinkingConfig,
    TrainingConfig,
    check_duration,
    refuse_dropout,
    refuse_unread,
)

StrengthUse = Literal["margin", "weight", "nothing"]


class TrainedConfig(SplittingConfig, RenderingConfig):
    """Keys of every training stage; see tiebreak.training.skeleton."""

    policy: str
    """the policy to start from, which is also the reference: usually the SFT run"""
    adapter: AdapterConfig | None = None
    """the weights to train: by default LoRA (Hu et al. 2021) on frozen base weights. null: continue the policy's own
    adapter; a policy without one gets the defaults"""
    training: OptimizerConfig
    """how the model is loaded and trained: batches, steps, memory and the optimizer"""
    max_time: str | None = None
    """time limit for the command, such as 8h, 90m or 1h30m: it stops in time, with a checkpoint and exit status 80, and
    the same command resumes; null: no limit"""
    printed = frozenset({"max_time"})

    _is_duration = field_validator("max_time")(check_duration)


class RowsConfig(TrainedConfig, ThinkingConfig):
    """Keys of every stage that trains on rows of data."""

    training: TrainingConfig = TrainingConfig()


class LabelSettings(Section):
    """Use of a preference's columns; see tiebreak.training.labels."""

    strength_as: StrengthUse = "nothing"
    """use of a preference's strength s (1 to 3). margin: the sides must differ by a margin; weight: the pair counts s
    times"""
    margin_scale: float = Field(default=1.0, ge=0.0)
    """factor of the row's margin, or of s/3 if the row has none (Touvron et al. 2023, Table 27, small margin)"""
    soft_labels: bool = False
    """use the row's confidence, or the share of raters who agree, as the target instead of 1"""
    use_weights: bool = True
    """weight each pair by the row's weight; weights are scaled to mean 1, so the learning rate keeps its meaning"""

    @model_validator(mode="after")
    def _margin_is_read(self) -> LabelSettings:
        if self.strength_as != "margin":
            refuse_unread(self, f"with strength_as {self.strength_as} there is no margin", "margin_scale")
        return self


class PreferencesConfig(RowsConfig, LabelSettings):
    """Keys of every stage that trains on preferences."""

    preferences: str
    """compared, rated or ranked answers: a label run, a file, a folder or hub:NAME@SPLIT"""
    use_edits: bool = Field(default=False, exclude_if=lambda used: not used)
    """also train on raters' edits, each preferred to the answers that it improves: edit_preferences.jsonl of the label
    run"""
    share_prefixes: bool = True
    """compute each prompt and answer only once, without padding; false: TRL's layout"""
    prompt_by_prompt: bool = True
    """put pairs with the same prompt into one batch; false: pairs of similar length"""

    _no_dropout = field_validator("adapter")(refuse_dropout)
