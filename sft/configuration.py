"""The configurations of *prepare* and *sft*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, SamplingConfig, Section, ThinkingConfig, TrainingConfig


class SplitShares(Section):
    """How prompts without a demonstration are shared out; the rest of them train."""

    validation: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share that is held out while models are trained, to watch them"""
    test: float = Field(default=0.3, ge=0.0, lt=1.0)
    """share that is held out for the final figures"""
    demonstrations_validation: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of the prompts that have a demonstration; the rest of them train"""
    seed: int = 0
    """decides, with the prompt, which split it belongs to"""

    @model_validator(mode="after")
    def _leave_some(self) -> SplitShares:
        if self.validation + self.test >= 1.0:
            raise ValueError("split.validation and split.test together leave nothing to train on")
        return self


class PrepareConfig(ReadingConfig, ThinkingConfig):
    """`tiebreak prepare`"""

    prompts: list[str] = []
    """files, folders or hub:NAME@SPLIT (see tiebreak.data): prompts, or conversations up to their last answer"""
    demonstrations: list[str] = []
    """files, folders or hub:NAME@SPLIT (see tiebreak.data): prompts with their answers, or conversations"""
    policy: str = "bundled:smollm2-135m-instruct"
    """the model whose tokenizer counts the lengths"""
    trust_remote_code: bool = False
    """run Python code that the model brings along"""
    max_prompt_tokens: int = Field(default=384, ge=1)
    """longer prompts are dropped"""
    max_completion_tokens: int = Field(default=512, ge=1)
    """longer demonstrations are dropped"""
    near_duplicate: float = Field(default=0.8, gt=0.0, le=1.0)
    """prompts of the same numbers whose word trigrams overlap this far (Jaccard) are one; 1: only exact duplicates"""
    max_near_duplicate_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """refuse rows of which more than this share are near duplicates: a template's prompts differ in one word alone"""
    split: SplitShares = SplitShares()
    """rows that name their own split keep it"""

    kept_seeds: ClassVar[frozenset[str]] = frozenset({"split.seed"})
    """runs of different seeds must hold out the same prompts, or their figures cannot be compared"""

    def input_sources(self) -> dict[str, str]:
        return {f"data_{n}": source for n, source in enumerate([*self.prompts, *self.demonstrations])}

    @model_validator(mode="after")
    def _something(self) -> PrepareConfig:
        if not self.prompts and not self.demonstrations:
            raise ValueError("neither prompts nor demonstrations: name at least one file")
        return self


class SFTConfig(ReadingConfig, ThinkingConfig):
    """`tiebreak sft`"""

    trains: ClassVar[bool] = True

    policy: str
    """the model to start from: a hub id, a path, bundled:…, or a run folder whose adapter is gone on with"""
    demonstrations: str
    """a prepare run, a file, a folder or hub:NAME@SPLIT (see tiebreak.data): prompts with answers, or conversations"""
    adapter: AdapterConfig | None = AdapterConfig()
    """null: the policy's own"""
    training: TrainingConfig = TrainingConfig()
    """the optimizer, and how the model is loaded"""
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of the prompts that no row names a split for; every stage holds out the same ones"""
    loss_on: Literal["last_answer", "all_answers"] = "last_answer"
    """in conversations of several turns: the demonstration alone, or every turn of the assistant"""
    padding_free: bool = True
    """compute no padding (see tiebreak.packed.forward); false: TRL's own layout"""
    merge: bool = False
    """also save base and adapter merged, as a plain model, in final/merged"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_k=50, max_new_tokens=96)
    """for the sample completions that go to W&B"""

    def input_sources(self) -> dict[str, str]:
        return {"policy": self.policy, "demonstrations": self.demonstrations}

    @model_validator(mode="after")
    def _possible(self) -> SFTConfig:
        if self.merge and self.adapter is not None and self.adapter.method == "qlora":
            raise ValueError("merge: an adapter cannot be merged into 4-bit weights without loss; set it to false")
        return self
