"""The configurations of *evaluate* and *compare*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from tiebreak.config import (
    SERVER_URL,
    LoadingConfig,
    RenderingConfig,
    SamplingConfig,
    Section,
    SplittingConfig,
    StageConfig,
)
from tiebreak.measures.yardsticks.registry import Named, parse
from tiebreak.records import Split
from tiebreak.shipped import find_shipped

Folders = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class EvaluateConfig(SplittingConfig, RenderingConfig):
    """`tiebreak evaluate`"""

    policies: dict[str, str]
    """name → policy (a run folder, a path, a hub id or bundled:…), in the order of the report"""
    baseline: str = "sft"
    """the policy that win rates and KL are measured against"""
    prompts: str
    """a prepare run, a file, a folder or hub:NAME@SPLIT"""
    split: Split = "test"
    """split to evaluate on. If no prompt names a split, test means all prompts, and validation those that training
    holds out"""
    max_prompts: int | None = Field(default=None, ge=1)
    """answer at most this many prompts, always the same ones; null: all"""
    reward_model: str | None = None
    """a finished reward run to score every answer; null: no scores"""
    yardstick: str = "rubric"
    """rubric, or module:function of (prompt, answer), which returns a number (higher is better). The module is beside
    the configuration file, in the current folder, or installed"""
    yardsticks: list[str] = Field(default_factory=list, exclude_if=lambda names: not names)
    """several yardsticks, instead of `yardstick`; verdicts and win rates use the first. Names: rubric, reward,
    judge:FOLDER, people:FOLDER, rouge, bleu, chrf, meteor, exact_match, token_f1, bertscore:MODEL, ifeval:FILE,
    ifeval_loose:FILE, instructions:FILE, refusal, over_refusal, compliance, keywords:FILE, toxicity:MODEL, toxic_words,
    bbq:FILE, bbq_bias:FILE, pii, language:CODE, tone, length, repetition, distinct_n, self_bleu, perplexity,
    bits_per_byte, or module:function"""
    benchmarks: list[str] = Field(default_factory=list, exclude_if=lambda names: not names)
    """lm-eval's tasks to run on every policy, by name (pip install 'tiebreak[bench]'); their data must be on this
    machine"""
    benchmark_tasks: str | None = Field(default=None, exclude_if=lambda folder: folder is None)
    """a folder of your own tasks for `benchmarks`, in lm-eval's form"""
    benchmark_limit: int | None = Field(default=None, ge=1, exclude_if=lambda limit: limit is None)
    """use at most this many documents of each benchmark, the first ones; null: all"""
    benchmark_chat: bool = Field(default=False, exclude_if=lambda applied: not applied)
    """render benchmarks with the chat template"""
    references: str | None = Field(default=None, exclude_if=lambda source: source is None)
    """demonstrations of the same prompts, whose answers are the references of rouge, bleu, chrf, meteor, exact_match,
    token_f1 and bertscore: a prepare run, a file, a folder or hub:NAME@SPLIT"""
    samples_per_prompt: int = Field(default=1, ge=1, exclude_if=lambda count: count == 1)
    """answers per policy and prompt; intervals and tests are over prompts"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, max_new_tokens=96)
    """how answers are drawn; the same for every policy"""
    seed: int = Field(default=0, ge=0)
    """random seed, combined with the prompt; the same for every policy"""
    batch_size: int = Field(default=32, ge=1)
    """answers sampled at once"""
    vllm: dict[str, str] = Field(default_factory=dict, exclude_if=lambda urls: not urls)
    """policy's name → URL of the vLLM server that draws its answers, for every policy or none: `vllm serve FOLDER`, where
    FOLDER is made by `tiebreak export POLICY --to vllm --output FOLDER`. Never run on a GPU"""
    training: LoadingConfig = LoadingConfig()
    """how the policies are loaded: precision, attention kernel and remote code"""
    gate: str | None = None
    """a file of requirements for policies; if a policy fails, the exit status is 3; null: none.
    configs/gates/quickstart.yaml is an example"""

    printed: ClassVar[frozenset[str]] = frozenset({"gate"})
    revisable: ClassVar[frozenset[str]] = frozenset({"yardstick"})

    @property
    def checks_when_finished(self) -> bool:
        return self.gate is not None

    @property
    def named_yardsticks(self) -> list[Named]:
        """Those of `yardsticks`."""
        return [parse(source) for source in self.yardsticks]

    @property
    def primary(self) -> str:
        """The yardstick that verdicts go by."""
        return self.yardsticks[0] if self.yardsticks else self.yardstick

    def further_inputs(self) -> dict[str, str]:
        """Files and models that yardsticks read."""
        named = self.named_yardsticks
        files = {f"yardstick_{one.source}": str(find_shipped(Path(one.file))) for one in named if one.file}
        models = [one.model for one in named if one.model]
        folders = {f"judgments_{one.argument}": one.argument for one in named if one.entry.of == "pairs"}
        tasks = {f"benchmark_{path.name}": str(path) for path in self.benchmark_files()}
        return files | folders | tasks | {f"yardstick_model_{model}": model for model in models}

    def benchmark_files(self) -> list[Path]:
        """The files of `benchmark_tasks`."""
        folder = Path(self.benchmark_tasks) if self.benchmark_tasks else None
        return [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder else []

    def function_names(self) -> dict[str, str]:
        if not self.yardsticks:
            return {} if self.yardstick == "rubric" else {"yardstick": self.yardstick}
        named = enumerate(self.named_yardsticks)
        return {f"yardstick_{n}" if n else "yardstick": one.source for n, one in named if not one.name}

    @model_validator(mode="after")
    def _possible(self) -> EvaluateConfig:
        if self.baseline not in self.policies:
            raise ValueError(f"baseline: {self.baseline!r} is not among the policies ({', '.join(self.policies)})")
        if self.samples_per_prompt > 1 and not self.sampling.temperature:
            raise ValueError("samples_per_prompt: at temperature 0, all answers to a prompt are the same")
        for fault in chain(self._benchmark_faults(), self._yardstick_faults(), self._server_faults()):
            raise ValueError(fault)
        if self.yardstick != "rubric" and ":" not in self.yardstick:
            raise ValueError(f"yardstick: rubric, or package.module:function, not {self.yardstick!r}")
        return self

    def _server_faults(self) -> Iterator[str]:
        if self.vllm and self.vllm.keys() != self.policies.keys():
            apart = ", ".join(sorted(self.vllm.keys() ^ self.policies.keys()))
            yield f"vllm: give a server for every policy and no other name ({apart}): policies are drawn alike"
        for name, url in self.vllm.items():
            if not re.search(SERVER_URL, url):
                yield f"vllm.{name}: http://HOST:PORT, without a path, not {url!r}"

    def _benchmark_faults(self) -> Iterator[str]:
        if self.benchmark_tasks and not any(path.suffix in (".yaml", ".yml") for path in self.benchmark_files()):
            yield f"benchmark_tasks: {self.benchmark_tasks} has no task: a YAML file in lm-eval's form"
        if not self.benchmarks and (self.benchmark_tasks or self.benchmark_limit or self.benchmark_chat):
            yield "benchmarks: none is named, so benchmark_tasks, benchmark_limit and benchmark_chat are not read"

    def _yardstick_faults(self) -> Iterator[str]:
        if not self.yardsticks:
            if self.references:
                yield "references: no yardstick reads them: add rouge, chrf or another to yardsticks"
            return
        if self.yardstick != "rubric":
            yield "yardstick: leave it out, and make it the first of yardsticks"
        if double := [one for n, one in enumerate(self.yardsticks) if one in self.yardsticks[:n]]:
            yield f"yardsticks: {double[0]} is given twice"
        yield from self._faults_of(self.named_yardsticks)

    def _faults_of(self, named: Sequence[Named]) -> Iterator[str]:
        for one in named:
            if one.entry.of == "reward" and not self.reward_model:
                yield "yardsticks: reward needs reward_model"
            if one.entry.needs == "references" and not self.references:
                yield f"yardsticks: {one.source} needs references"
            if one.entry.needs == "samples" and self.samples_per_prompt < 2:
                yield f"yardsticks: {one.source} needs samples_per_prompt of at least 2"
        if named[0].entry.better != "higher":
            yield f"yardsticks: verdicts go by the first, and of {named[0].source} more is not better: put another first"


class CompareConfig(StageConfig):
    """`tiebreak compare`"""

    printed: ClassVar[frozenset[str]] = frozenset({"next_step", "gate"})

    output: str = "runs/quickstart/compare"
    """the folder that the report is written to"""
    evaluation: str
    """the folder of a finished evaluate run"""
    runs: Folders = Field(default=[])
    """further run folders to show the curves of, besides those that the evaluation was made from; of a reward report with
    influence_pairs, the judgments that pull against the rest"""
    against: Folders = Field(default=[])
    """folders of further evaluate runs on the same prompts, such as another seed's"""
    title: str = "Tiebreak: comparison of policies"
    """title of the report"""
    samples: int = Field(default=60, ge=0)
    """prompts whose answers are shown side by side"""
    next_step: str = ""
    """the command to print last; empty: the command to judge the sampled pairs by hand"""
    gate: str | None = None
    """a file of requirements for the evaluation; if it fails, the report is written and the exit status is 3; null:
    none"""

    @property
    def checks_when_finished(self) -> bool:
        return self.gate is not None


class OverviewArguments(Section):
    """`tiebreak compare overview`. RUNS are run folders of any stage, or folders of them; `tiebreak compare RUNS…` is
    the same."""

    output: str = "runs/overview"
    """the folder for report.html and report.json, which are overwritten"""
    title: str = "Tiebreak: comparison of runs"
    """title of the page"""
    samples: int = Field(default=200, ge=0)
    """prompts whose answers are shown side by side"""
    serve: bool = False
    """serve the page on 127.0.0.1 and update it while runs continue; Ctrl-C ends it"""
    port: int = Field(default=8765, ge=0, le=65535)
    """port for --serve; 0: any free port"""
