"""The configuration of *select*. It imports no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from tiebreak.config import LoadingConfig, StageConfig, refuse_unread
from tiebreak.data.columns import check_columns

Strategy = Literal["random", "disagreement", "margin", "largest_gap", "judge_unsure", "diverse"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
BY_SCORES = ("disagreement", "margin", "largest_gap")
"""strategies that read a reward model's scores"""
LEAST_RANDOM = 0.05
"""smallest share of the random arm, which a strategy is measured against"""


class SelectConfig(StageConfig):
    """`tiebreak select`"""

    pairs: str
    """the pool: a sample run, or a file of rows with prompt, response_a and response_b. Sets of more than two
    completions are split into all pairs"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the file's, such as {response_a: left}; null: ignore the column"""
    selected_pairs: int = Field(ge=1)
    """number of pairs to select, in proportion over all splits; held-out pairs are all selected at random"""
    strategy: Strategy = "random"
    """which pairs the other arm prefers. random: any; disagreement: those on whose score difference the reward model's
    members disagree; margin: the smallest score difference; largest_gap: the largest; judge_unsure: those on which
    model judges are inconsistent or unsure; diverse: those unlike the pairs already taken, by the policy's hidden
    states"""
    diverse: bool = False
    """from the strategy's best pairs, take those that are unlike one another, by the policy's hidden states"""
    candidates: float = Field(default=3.0, ge=1.0)
    """with diverse: true: size of the strategy's best pairs, as a multiple of the number to select"""
    random_share: float = Field(default=0.2, ge=LEAST_RANDOM, le=1.0)
    """share of the selected pairs drawn at random from the whole pool, to measure the strategy against"""
    reward_model: str | None = None
    """disagreement, margin, largest_gap: a finished reward run"""
    judges: list[str] = []
    """judge_unsure: finished judge runs on this pool"""
    policy: str | None = None
    """diverse: the model whose hidden states are compared, usually the one to be trained next"""
    judged: list[str] = []
    """label runs, or files of judgments, whose pairs are not selected again"""
    seed: int = Field(default=0, ge=0)
    """random seed for the random arm, ties in score, and the order of the selected pairs"""
    batch_size: int = Field(default=16, ge=1)
    """answers per batch, if a model reads them"""
    training: LoadingConfig = LoadingConfig()
    """how models are loaded: precision, attention kernel and remote code"""

    @property
    def is_diverse(self) -> bool:
        """Whether hidden states are read."""
        return self.diverse or self.strategy == "diverse"

    @field_validator("columns")
    @classmethod
    def _of_ours(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        check_columns(columns)
        return columns

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> SelectConfig:
        needed = {
            "reward_model": self.strategy in BY_SCORES,
            "judges": self.strategy == "judge_unsure",
            "policy": self.is_diverse,
        }
        lacking = [key for key, needs in needed.items() if needs and not getattr(self, key)]
        if lacking:
            raise ValueError(f"{' and '.join(lacking)}: strategy {self.strategy} reads {lacking[0]}: name it")
        unread = [key for key, needs in needed.items() if not needs]
        refuse_unread(self, f"strategy {self.strategy} does not read it", *unread)
        if self.diverse and self.strategy in ("random", "diverse"):
            raise ValueError("diverse: it narrows another strategy's choice; by itself it is strategy: diverse")
        if not self.diverse:
            refuse_unread(self, "only diverse after another strategy reads it", "candidates")
        if self.strategy == "random":
            refuse_unread(self, "with strategy random, both arms are one", "random_share")
        return self
