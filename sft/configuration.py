"""The configurations of *prepare* and *sft*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, SamplingConfig, Section, ThinkingConfig
from tiebreak.training.configuration import RowsConfig


class SplitShares(Section):
    """The shares of the prompts that are held out; the rest train."""

    validation: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the prompts without a demonstration that is held out to watch training"""
    test: float = Field(default=0.3, ge=0.0, lt=1.0)
    """share of the prompts without a demonstration that is held out for the final figures"""
    demonstrations_validation: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the prompts with a demonstration that is held out to watch training"""
    seed: int = 0
    """random seed of the split, combined with the prompt"""

    @model_validator(mode="after")
    def _leave_some(self) -> SplitShares:
        if self.validation + self.test >= 1.0:
            raise ValueError("split.validation and split.test together leave nothing to train on")
        return self


class PrepareConfig(ReadingConfig, ThinkingConfig):
    """`tiebreak prepare`"""

    prompts: list[str] = []
    """prompts, or conversations without their last answer: files, folders or hub:NAME@SPLIT"""
    demonstrations: list[str] = []
    """prompts with answers, or conversations: files, folders or hub:NAME@SPLIT"""
    policy: str = "bundled:smollm2-135m-instruct"
    """the model whose tokenizer counts the lengths"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
    max_prompt_tokens: int = Field(default=384, ge=1)
    """longer prompts are dropped"""
    max_completion_tokens: int = Field(default=512, ge=1)
    """longer demonstrations are dropped"""
    near_duplicate: float = Field(default=0.8, gt=0.0, le=1.0)
    """prompts with the same numbers are duplicates from this overlap of word trigrams (Jaccard) on; 1: only exact
    duplicates"""
    max_near_duplicate_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """refuse data with a larger share of near duplicates: prompts from a template differ in one word only"""
    split: SplitShares = SplitShares()
    """shares of the prompts that are held out; the rest train. A row that names its split keeps it"""

    kept_seeds: ClassVar[frozenset[str]] = frozenset({"split.seed"})
    """runs of different seeds must hold out the same prompts, or their figures cannot be compared"""

    @model_validator(mode="after")
    def _something(self) -> PrepareConfig:
        if not self.prompts and not self.demonstrations:
            raise ValueError("neither prompts nor demonstrations: name at least one file")
        return self


class SFTConfig(RowsConfig):
    """`tiebreak sft`"""

    policy: str
    """the model to start from: a hub id, a path, bundled:…, or a run folder, whose adapter is continued"""
    demonstrations: str
    """prompts with answers, or conversations: a prepare run, a file, a folder or hub:NAME@SPLIT"""
    adapter: AdapterConfig | None = AdapterConfig()
    """what trains: by default LoRA (Hu et al. 2021) on frozen base weights; null: continue the policy's own adapter"""
    loss_on: Literal["last_answer", "all_answers"] = "last_answer"
    """in conversations of several turns: learn the last answer, or every turn of the assistant"""
    padding_free: bool = True
    """compute no padding; false: TRL's layout"""
    merge: bool = False
    """also save a plain model, base and adapter merged, in final/merged"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_k=50, max_new_tokens=96)
    """how the logged sample completions are drawn"""

    @model_validator(mode="after")
    def _possible(self) -> SFTConfig:
        if self.merge and self.adapter is not None and self.adapter.quantize == "nf4":
            raise ValueError("merge: an adapter cannot be merged into 4-bit weights without loss; set it to false")
        return self
