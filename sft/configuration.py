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
    """share of the prompts without a demonstration to hold out for validation during training"""
    test: float = Field(default=0.3, ge=0.0, lt=1.0)
    """share of the prompts without a demonstration to hold out for the final figures"""
    demonstrations_validation: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the prompts with a demonstration to hold out for validation during training"""
    seed: int = Field(default=0, ge=0)
    """random seed of the split, combined with the prompt"""

    @model_validator(mode="after")
    def _leave_some(self) -> SplitShares:
        if self.validation + self.test >= 1.0:
            raise ValueError("split.validation and split.test together leave nothing to train on")
        return self


class RepairConfig(Section):
    """Repairs of what went wrong when a text was stored or sent."""

    encoding: bool = True
    """repair text that was decoded with the wrong encoding, such as `Ã¼` for `ü` (ftfy)"""
    markup: bool = True
    """turn HTML into plain text, outside code"""
    signatures: bool = False
    """remove signatures, quoted mails and disclaimers"""
    whitespace: bool = True
    """reduce runs of blank lines to one, and runs of spaces to one outside code, tables and indentation"""


class LanguageConfig(Section):
    """Languages to keep."""

    keep: list[str] = Field(default=["en"], min_length=1)
    """languages of the rows to keep, as ISO 639-1 codes (py3langid)"""
    min_characters: int = Field(default=40, ge=1)
    """keep shorter rows, whose language cannot be recognised"""
    min_probability: float = Field(default=0.8, gt=0.0, le=1.0)
    """drop a row if another language is at least this probable"""


class QualityConfig(Section):
    """Published heuristics for bad texts."""

    rules: list[str] = ["repetition", "symbols", "filler"]
    """rules, or groups of rules: gopher, c4, fineweb, repetition, symbols, filler; see docs/data.md"""
    action: Literal["flag", "drop"] = "flag"
    """flag: keep the rows and list them in flagged.jsonl; drop: leave them out"""

    @field_validator("rules")
    @classmethod
    def _some(cls, rules: list[str]) -> list[str]:
        if not rules:
            raise ValueError("no rule is named, so nothing would be checked: name some, or leave quality out of steps")
        return rules


class PerplexityConfig(Section):
    """Rows that surprise a model more, or less, than the others do."""

    model: str | None = None
    """the model that measures: a hub id, a path, bundled:… or a run folder; null: `policy`"""
    deviations: float = Field(default=3.5, gt=0.0)
    """flag rows whose log perplexity is further than this many robust standard deviations from the median (Iglewicz and
    Hoaglin 1993)"""
    max_tokens: int = Field(default=256, ge=16)
    """read only this many tokens of a row"""


class ContaminationConfig(Section):
    """Test sets that the data may not contain."""

    against: list[str] = []
    """test sets that no row may contain, in addition to the data's test split: files, folders or hub:NAME@SPLIT"""
    words: int = Field(default=13, ge=3)
    """drop rows that share this many consecutive words with a test prompt (Brown et al. 2020)"""
    overlap: float = Field(default=0.8, gt=0.0, le=1.0)
    """drop rows whose word trigrams overlap a test prompt's by at least this share (Jaccard)"""


class AnonymiseConfig(Section):
    """How personal data is replaced."""

    mode: Literal["tag", "redact", "surrogate", "hash"] = "tag"
    """tag: <EMAIL_1>; redact: <EMAIL>; surrogate: an invented value of the same kind; hash: <EMAIL_3f9a…>, made with a
    secret key"""
    kinds: list[str] = []
    """kinds to look for; empty: all, see docs/data.md"""
    languages: list[Literal["de", "en"]] = Field(default=["de", "en"], min_length=1)
    """languages of the patterns for addresses, dates of birth and national numbers"""
    model: str | None = None
    """folder of a spaCy or GLiNER model that finds names; null: names are not looked for"""
    patterns: dict[str, str] = {}
    """further kinds, each with a regular expression, such as {ORDER: "A-[0-9]{6}"}"""
    words: str | None = None
    """a text file of words to hide, one per line; case is ignored"""
    scope: Literal["conversation", "data"] = "conversation"
    """where equal values get the same tag or surrogate: conversation: within a row; data: in all rows"""
    key_variable: str = "TIEBREAK_PII_KEY"
    """the environment variable with the secret key for `hash` and `map`"""
    map: str | None = None
    """a file outside the run folder for the original values, encrypted with the key; null: do not keep them"""
    seed: int = Field(default=0, ge=0)
    """random seed of the surrogates"""

    @model_validator(mode="after")
    def _require_something_to_map(self) -> AnonymiseConfig:
        if self.map is not None and self.mode == "redact":
            raise ValueError(
                "map with mode: redact, where all values of a kind look alike: set mode: tag, or map: null"
            )
        return self


class BalanceConfig(Section):
    """Groups to count rows in, and when a group is too small."""

    topics: int = Field(default=0, ge=0, le=1000)
    """number of topics; 0: the square root of half the prompts, 24 at most"""
    rare: float = Field(default=0.5, gt=0.0, lt=1.0)
    """a group is a gap if it has fewer rows than this share of an even distribution"""
    min_characters: int = Field(default=20, ge=1)
    """shortest prompt whose language is recognised"""
    seed: int = Field(default=0, ge=0)
    """random seed of the topics"""


class CanaryConfig(Section):
    """Invented facts to plant in the data: `tiebreak evaluate` measures whether a policy memorised them."""

    count: int = Field(default=4, ge=1, le=32)
    """number of canaries, each an invented telephone number of a team"""
    repeats: int = Field(default=4, ge=1, le=256)
    """number of rows that contain each canary"""
    seed: int = Field(default=0, ge=0)
    """random seed of the numbers"""


STEPS = {
    "repair": "sft.steps.repair:Repair",
    "language": "sft.steps.language:Language",
    "quality": "sft.steps.quality:Quality",
    "perplexity": "sft.steps.perplexity:Perplexity",
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
    """the model whose tokenizer measures lengths"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
    max_prompt_tokens: int = Field(default=384, ge=1)
    """longest prompt; longer ones are dropped"""
    max_completion_tokens: int = Field(default=512, ge=1)
    """longest answer of a demonstration; longer ones are dropped"""
    near_duplicate: float = Field(default=0.8, gt=0.0, le=1.0)
    """prompts are duplicates if they contain the same numbers and operators and their word trigrams overlap by at least
    this share (Jaccard); demonstrations with such prompts and different answers are kept, in one split; 1: only exact
    duplicates"""
    max_near_duplicate_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """refuse data with a larger share of near duplicates, such as prompts from a template that differ in one word"""
    split: SplitShares = SplitShares()
    """shares of the prompts to hold out; training uses the rest. A row that names its split keeps it"""
    steps: list[str] = []
    """steps to run on the rows, in this order, before duplicates are dropped: repair, language, quality, perplexity,
    contradictions, contamination, anonymise, balance, or your own package.module:function; see docs/data.md"""
    repair: RepairConfig = RepairConfig()
    """settings of the step `repair`"""
    language: LanguageConfig = LanguageConfig()
    """settings of the step `language`"""
    quality: QualityConfig = QualityConfig()
    """settings of the step `quality`"""
    perplexity: PerplexityConfig = PerplexityConfig()
    """settings of the step `perplexity`"""
    contamination: ContaminationConfig = ContaminationConfig()
    """settings of the step `contamination`"""
    anonymise: AnonymiseConfig = AnonymiseConfig()
    """settings of the step `anonymise`"""
    balance: BalanceConfig = BalanceConfig()
    """settings of the step `balance`"""
    licences: dict[str, str] = Field(default_factory=dict, exclude_if=lambda named: not named)
    """source → its licence, for the data report and the data sheet. Without an entry, it is read from a LICENSE file beside
    the source"""
    canaries: CanaryConfig | None = Field(default=None, exclude_if=lambda planted: planted is None)
    """plant invented facts in the training data, to measure what a policy memorises; null: none"""

    kept_seeds: ClassVar[frozenset[str]] = frozenset({"split.seed", "anonymise.seed", "balance.seed", "canaries.seed"})
    """runs of different seeds must have the same rows and hold out the same prompts, or their figures cannot be compared"""

    @model_validator(mode="after")
    def _something(self) -> PrepareConfig:
        if not self.prompts and not self.demonstrations:
            raise ValueError("neither prompts nor demonstrations: name at least one file")
        if not all(source.strip() for source in (*self.prompts, *self.demonstrations)):
            raise ValueError("an empty name among prompts or demonstrations: leave it out, or name a file or folder")
        if self.canaries is not None and not self.demonstrations:
            raise ValueError("canaries: they are demonstrations, and there are no others: name some, or plant none")
        return self

    @model_validator(mode="after")
    def _licences_of_sources(self) -> PrepareConfig:
        sources = [*self.prompts, *self.demonstrations]
        for source in self.licences:
            if source not in sources:
                near = difflib.get_close_matches(source, sources, 1) or sources[:1]
                raise ValueError(f"licences: {source!r} is none of the sources: did you mean {near[0]!r}?")
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
        if {"anonymise", "balance"} <= {*steps} and steps.index("balance") < steps.index("anonymise"):
            raise ValueError("balance before anonymise: names could name a topic; put balance after it")
        if {"anonymise", "repair"} <= {*steps} and steps.index("anonymise") < steps.index("repair"):
            raise ValueError(
                "anonymise before repair: repair uncovers personal data, such as anna&#64;example.org; put it first"
            )
        return steps

    @model_validator(mode="after")
    def _test_sets_as_they_are(self) -> PrepareConfig:
        order = [name for name in self.steps if name in ("anonymise", "contamination")]
        if self.contamination.against and order == ["anonymise", "contamination"]:
            raise ValueError(
                "anonymise before contamination: rows would have tags where contamination.against has the names, and would "
                "not be found; put contamination first"
            )
        return self

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
    """the model to start from: a hub id, a path, bundled:…, or a run folder (its adapter is continued)"""
    demonstrations: str
    """prompts with answers, or conversations: a prepare run, a file, a folder or hub:NAME@SPLIT"""
    adapter: AdapterConfig | None = AdapterConfig()
    """the weights to train: by default LoRA (Hu et al. 2021) on frozen base weights; null: continue the policy's own
    adapter"""
    loss_on: Literal["last_answer", "all_answers"] = "last_answer"
    """in conversations of several turns: train on the last answer, or on every turn of the assistant"""
    padding_free: bool = True
    """compute rows without padding; false: TRL's layout"""
    merge: bool = False
    """also save a plain model in final/merged, with the adapter merged into the base"""
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
