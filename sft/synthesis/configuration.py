"""The configuration of *synthesise*. It imports no model code, so that help and errors answer at once."""

from __future__ import annotations

import difflib
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.config import LoadingConfig, SamplingConfig, StageConfig, refuse_unread
from tiebreak.endpoint.configuration import AskingConfig, EndpointConfig
from tiebreak.runs.requirements import Requirement

PAPERS = {
    "self-instruct": "Wang et al. 2023, Self-Instruct",
    "evol-instruct": "Xu et al. 2024, WizardLM",
    "persona": "Ge et al. 2024, Scaling Synthetic Data Creation with 1,000,000,000 Personas",
    "back-translation": "Li et al. 2024, Self-Alignment with Instruction Backtranslation",
    "paraphrase": "Yu et al. 2024, MetaMath (rephrasing)",
    "gap-cards": "rare cases of the step balance",
    "typos": "Belinkov and Bisk 2018, Synthetic and Natural Noise",
    "templates": "written templates",
    "corruption": "written rules that make an answer worse",
}
"""The methods: name → source."""
WRITTEN = ("self-instruct", "evol-instruct", "persona", "back-translation", "paraphrase", "gap-cards")
"""methods whose texts a model writes"""
ANSWERED = ("back-translation", "paraphrase", "typos", "corruption")
"""methods that need demonstrations"""


class SynthesiseConfig(StageConfig):
    """`tiebreak synthesise`"""

    printed: ClassVar[frozenset[str]] = frozenset({"asking"})

    methods: dict[str, int] = Field(min_length=1)
    """number of rows that each method tries to make, such as {self-instruct: 50, paraphrase: 20}; see docs/data.md"""
    demonstrations: list[str] = []
    """real rows with answers, as examples and for comparison: prepare runs, files, folders or hub:NAME@SPLIT"""
    prompts: list[str] = []
    """real prompts, likewise; rows of the test split are only used for comparison"""
    against: list[str] = []
    """further test sets, whose prompts must not be generated"""
    require: list[Requirement] = Field(default_factory=list, exclude_if=lambda required: not required)
    """required processing of the real rows, which the writer is shown. anonymised: demonstrations, prompts and gaps may
    come only from prepare runs with the step anonymise"""
    gaps: str | None = None
    """gap-cards: a prepare run with the step balance, or its gaps.jsonl"""
    templates: str | None = None
    """templates: a JSON Lines file of {prompt, completion, values: {name: [texts]}}, with {name} in the texts"""
    personas: list[str] = [
        "a person who does this for the first time",
        "a person in a hurry",
        "an expert who checks the details",
        "a person who writes in a second language",
        "an elderly person",
        "a person who is disappointed",
    ]
    """persona: descriptions of the writers"""
    endpoint: EndpointConfig | None = None
    """the writer: a model behind an OpenAI-compatible API"""
    model: str | None = None
    """the writer: a local model, as a run folder, a path, a hub id or bundled:…"""
    answers: bool = True
    """the writer also answers new prompts; false: only prompts"""
    review: Literal["required", "none"] = "required"
    """required: training refuses rows that people have not reviewed (tiebreak label, task: review); none: training
    accepts them as they are, and reports say so"""
    near_duplicate: float = Field(default=0.7, gt=0.0, le=1.0)
    """drop prompts whose word trigrams overlap a real, test or earlier synthetic prompt's by at least this share
    (Jaccard)"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.9, max_new_tokens=256)
    """how the writer samples"""
    seed: int = Field(default=0, ge=0)
    """random seed for the examples shown to the writer, and for all sampling"""
    batch_size: int = Field(default=16, ge=1)
    """batch size of a local model"""
    training: LoadingConfig = LoadingConfig()
    """how a local model is loaded: precision, attention kernel and remote code"""
    asking: AskingConfig = AskingConfig()
    """rate and spend limits of an endpoint"""

    @field_validator("methods")
    @classmethod
    def _listed(cls, methods: dict[str, int]) -> dict[str, int]:
        for name, rows in methods.items():
            if name not in PAPERS:
                near = difflib.get_close_matches(name, PAPERS, 1)
                raise ValueError(
                    f"no method {name!r}"
                    + (f": did you mean {near[0]}?" if near else f"; there are {', '.join(PAPERS)}")
                )
            if rows < 1:
                raise ValueError(f"{name}: {rows} rows: must be at least 1")
        return methods

    @model_validator(mode="after")
    def _complete(self) -> SynthesiseConfig:
        self._require_one_writer()
        self._require_inputs_of_methods()
        return self

    def _require_one_writer(self) -> None:
        written = [name for name in self.methods if name in WRITTEN]
        if self.endpoint is not None and self.model is not None:
            raise ValueError("endpoint and model: set only one writer")
        if written and self.endpoint is None and self.model is None:
            raise ValueError(f"{written[0]}: needs a writer: endpoint or model")
        if not written and not ("templates" in self.methods and self.has_writer):
            refuse_unread(self, "no method needs a writer", "endpoint", "model", "sampling")
        if self.endpoint is None:
            refuse_unread(self, "only an endpoint is asked under limits", "asking")
        elif self.asking.max_cost is not None and self.endpoint.input_price is None:
            raise ValueError("asking.max_cost: needs endpoint.input_price and endpoint.output_price")

    def _require_inputs_of_methods(self) -> None:
        for method, key in (("gap-cards", "gaps"), ("templates", "templates")):
            if method in self.methods and getattr(self, key) is None:
                raise ValueError(f"methods: {method} needs {key}")
            if method not in self.methods:
                refuse_unread(self, f"only {method} reads it", key)
        if "persona" not in self.methods:
            refuse_unread(self, "only persona reads it", "personas")
        if (needy := [name for name in self.methods if name in ANSWERED]) and not self.demonstrations:
            raise ValueError(f"methods: {needy[0]} needs demonstrations")
        if not self.demonstrations and not self.prompts and {*self.methods} - {"gap-cards", "templates"}:
            raise ValueError("neither demonstrations nor prompts: name the real rows to learn from")

    @property
    def has_writer(self) -> bool:
        """Whether a model writes."""
        return self.endpoint is not None or self.model is not None
