"""The configurations of *prepare* and *sft*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tiebreak.config import AdapterConfig, ReadingConfig, SamplingConfig, Section, ThinkingConfig
from tiebreak.config.monitors import Monitors
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


class RepairConfig(Section):
    """Repairs of what went wrong when a text was stored or sent."""

    encoding: bool = True
    """repair text that was decoded by the wrong encoding, as `Ã¼` for `ü` (ftfy)"""
    markup: bool = True
    """turn HTML into plain text, outside code"""
    signatures: bool = False
    """remove what mail programs add: signatures, quoted mails, disclaimers"""
    whitespace: bool = True
    """at most one blank line, and no runs of spaces outside code, tables and indentation"""


class LanguageConfig(Section):
    """Languages to keep."""

    keep: list[str] = Field(default=["en"], min_length=1)
    """languages of the rows to keep, as ISO 639-1 codes (py3langid)"""
    min_characters: int = Field(default=40, ge=1)
    """shorter rows are kept: too short to recognise the language"""
    min_probability: float = Field(default=0.8, gt=0.0, le=1.0)
    """rows are dropped if another language is at least this probable"""


class QualityConfig(Section):
    """Published heuristics for texts that are no good."""

    rules: list[str] = ["repetition", "symbols", "filler"]
    """rules, or groups of rules: gopher, c4, fineweb, repetition, symbols, filler; see docs/data.md"""
    action: Literal["flag", "drop"] = "flag"
    """flag: list the rows in flagged.jsonl and keep them"""


class ContaminationConfig(Section):
    """Test sets that the data may not contain."""

    against: list[str] = []
    """test sets that no row may contain, beside the test split of the data: files, folders or hub:NAME@SPLIT"""
    words: int = Field(default=13, ge=3)
    """rows that share so many words in a row with a test prompt are dropped (Brown et al. 2020)"""
    overlap: float = Field(default=0.8, gt=0.0, le=1.0)
    """rows whose word trigrams overlap a test prompt's by this share (Jaccard) are dropped"""


class AnonymiseConfig(Section):
    """How personal data is replaced."""

    mode: Literal["tag", "redact", "surrogate", "hash"] = "tag"
    """tag: <EMAIL_1>; redact: <EMAIL>; surrogate: an invented value of its kind; hash: <EMAIL_3f9a…>, by a
    secret key"""
    kinds: list[str] = []
    """kinds to look for; empty: all, see docs/data.md"""
    languages: list[Literal["de", "en"]] = Field(default=["de", "en"], min_length=1)
    """languages of the patterns of addresses, dates of birth and national numbers"""
    model: str | None = None
    """folder of a spaCy model that finds names; null: names are not looked for"""
    patterns: dict[str, str] = {}
    """further kinds, each with a regular expression, as {ORDER: "A-[0-9]{6}"}"""
    words: str | None = None
    """a text file of words to hide, one per line; case is ignored"""
    scope: Literal["conversation", "data"] = "conversation"
    """where one value has one tag or surrogate: within its row, or in all of the data"""
    key_variable: str = "TIEBREAK_PII_KEY"
    """the environment variable that holds the secret key of `hash` and `map`"""
    map: str | None = None
    """a file outside the run folder for the original values, encrypted under the key; null: they are not kept"""
    seed: int = 0
    """decides the surrogates"""


class BalanceConfig(Section):
    """What the rows are counted by, and what is rare."""

    topics: int = Field(default=0, ge=0, le=1000)
    """number of topics; 0: the square root of half the prompts, 24 at most"""
    rare: float = Field(default=0.5, gt=0.0, lt=1.0)
    """what there are fewer rows of than this share of an even share is a gap"""
    min_characters: int = Field(default=20, ge=1)
    """shorter prompts are too short to recognise their language"""
    seed: int = 0
    """random seed of the topics"""


STEPS = {
    "repair": "sft.steps.repair:Repair",
    "language": "sft.steps.language:Language",
    "quality": "sft.steps.quality:Quality",
    "contradictions": "sft.steps.contradictions:Contradictions",
    "contamination": "sft.steps.contamination:Contamination",
    "anonymise": "sft.steps.anonymise:Anonymise",
    "balance": "sft.steps.balance:Balance",
}
"""The steps of `prepare`: name → class. A step with settings has a section of its name in PrepareConfig."""


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
    steps: list[str] = []
    """what is done to the rows, in this order, before duplicates are dropped: repair, language, quality, contradictions,
    contamination, anonymise, balance, or your own package.module:function; see docs/data.md"""
    repair: RepairConfig = RepairConfig()
    """read by the step `repair`"""
    language: LanguageConfig = LanguageConfig()
    """read by the step `language`"""
    quality: QualityConfig = QualityConfig()
    """read by the step `quality`"""
    contamination: ContaminationConfig = ContaminationConfig()
    """read by the step `contamination`"""
    anonymise: AnonymiseConfig = AnonymiseConfig()
    """read by the step `anonymise`"""
    balance: BalanceConfig = BalanceConfig()
    """read by the step `balance`"""

    kept_seeds: ClassVar[frozenset[str]] = frozenset({"split.seed", "anonymise.seed", "balance.seed"})
    """runs of different seeds must have the same rows and hold out the same prompts, or their figures cannot be compared"""

    @model_validator(mode="after")
    def _something(self) -> PrepareConfig:
        if not self.prompts and not self.demonstrations:
            raise ValueError("neither prompts nor demonstrations: name at least one file")
        return self

    @field_validator("steps")
    @classmethod
    def _known(cls, steps: list[str]) -> list[str]:
        for name in steps:
            if name not in STEPS and ":" not in name:
                near = difflib.get_close_matches(name, STEPS, 1)
                hint = (
                    f": did you mean {near[0]}?"
                    if near
                    else f"; there are {', '.join(STEPS)}, or package.module:function"
                )
                raise ValueError(f"no step {name!r}{hint}")
        if twice := sorted({name for name in steps if steps.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} twice: each step once")
        return steps

    @model_validator(mode="after")
    def _steps_read_their_sections(self) -> PrepareConfig:
        unread = [
            name
            for name in STEPS
            if name in type(self).model_fields
            and getattr(self, name) != type(self).model_fields[name].default
            and name not in self.steps
        ]
        if unread:
            raise ValueError(f"{', '.join(unread)}: set, but not among the steps: add it to steps")
        return self

    @model_serializer(mode="wrap")
    def _without_unused_steps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs without steps keep the identity that they had before there were steps."""
        values: dict[str, Any] = handler(self)
        unused = {"steps"} if not self.steps else set[str]()
        unused |= {name for name in STEPS if name not in self.steps}
        return {key: value for key, value in values.items() if key not in unused}

    def function_names(self) -> dict[str, str]:
        return {f"steps.{number}": name for number, name in enumerate(self.steps) if name not in STEPS}


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
    monitors: Monitors
    """yardsticks on answers to held-out prompts while the policy trains, with thresholds that warn, alert or stop:
    [{yardstick: refusal, every_steps: 20, warn_above: 0.1, stop_above: 0.5}]"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_k=50, max_new_tokens=96)
    """how the logged sample completions are drawn"""

    @model_validator(mode="after")
    def _possible(self) -> SFTConfig:
        if self.merge and self.adapter is not None and self.adapter.quantize == "nf4":
            raise ValueError("merge: an adapter cannot be merged into 4-bit weights without loss; set it to false")
        return self
