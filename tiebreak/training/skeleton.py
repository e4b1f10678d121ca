"""The common skeleton of training stages: load, encode, preflight, build, train, finish.

class Stage(TrainedStage[MyConfig, Preference, Row]):       # one module,
    name = "mine"                                           # and one entry in tiebreak.stages
    def read(self): …        the rows of its data, those that train and those held out
    def encode(self, …): …   as token ids
    def example(self, …): …  one of them with its loss mask
    def build(self, …): …    its trainer

def main(arguments=None):
    stage_main("mine", MyConfig, lambda config: train_stage(Stage, config), arguments)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from transformers import Trainer

from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.data.reading import Rules
from tiebreak.errors import DataError, HandoffError, NoRowLeftError
from tiebreak.models.find import ModelKind, ModelSource, find_model
from tiebreak.models.load import adapter_of, require_possible, saved_adapter
from tiebreak.models.merging import is_merged, start_of, write_merged
from tiebreak.models.reload import FreshProcess
from tiebreak.models.shardable import require_shardable
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.products import use_products
from tiebreak.records import Prompt
from tiebreak.runs.checkpoints import step_of
from tiebreak.runs.placement import loads_in_shards, of_process
from tiebreak.runs.run import Run, start_run, that_drops
from tiebreak.stages import find_stage
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.answers import CompletionsTable, HeldOutAnswers
from tiebreak.training.configuration import TrainedConfig
from tiebreak.training.finite import NotFiniteLossError, name_rows
from tiebreak.training.monitors import Monitor, find_monitors
from tiebreak.training.preflight import show_page
from tiebreak.training.stage import Products, describe, finish_adapter, last_metrics, preflight, train

ROWS_MEASURED = 1000
"""rows whose mean length the plan takes"""

C = TypeVar("C", bound=TrainedConfig)
Raw = TypeVar("Raw")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """Rows of a stage's data, by what they are for."""

    train: list[Row]
    validation: list[Row]
    """held out: evaluated, never trained on"""


class TrainedStage(ABC, Generic[C, Raw, Row]):
    """A running stage: its run is open, its policy found, its chat template loaded."""

    name: ClassVar[str]
    """its entry in tiebreak.stages"""
    rows_name: ClassVar[str] = "preferences"
    """name of its rows in messages"""
    rows_key: ClassVar[str] = ""
    """the configuration's key of their source, where that has another name"""

    def __init__(self, config: C, run: Run) -> None:
        self.config, self.run = config, run
        training = config.training
        merges = is_merged(config.adapter)
        self.found = find_model(config.policy, trust_remote_code=training.trust_remote_code, merges=merges)
        self.source: ModelSource = start_of(self.found, config.adapter)
        algorithm = getattr(config, "algorithm", self.name)
        require_possible(self.source, config.adapter, training, algorithm)
        if loads_in_shards():
            require_shardable(
                adapter_of(self.source, config.adapter),
                algorithm,
                brought=None if self.source.folder is None else saved_adapter(self.source),
                guarded=getattr(config, "guard", None) is not None,
            )
        use_products(training.matrix_products)
        self.check()
        self.chat: Chat = load_chat(self.found, config.chat, training.trust_remote_code)

    # --- per stage

    @abstractmethod
    def read(self) -> tuple[list[Raw], list[Raw]]:
        """The rows of its data: training and held out."""

    @abstractmethod
    def encode(self, rows: list[Raw], *, held_out: bool) -> list[Row]:
        """Rows as token ids, without dropped ones."""

    @abstractmethod
    def example(self, row: Row) -> EncodedSequence:
        """A row for the preflight and for the saved model's probe."""

    @abstractmethod
    def build(self, rows: Rows[Row], recorder: RunRecorder) -> Trainer:
        """Its complete trainer: nothing is set from outside afterwards."""

    def check(self) -> None:
        """Checks after the policy is found, before anything is loaded."""

    def preflight(self, rows: list[Row]) -> None:
        """Check the training rows, and show the first one."""
        preflight([self.example(row) for row in rows], self.chat, self.rows_name)

    def model_of(self, trainer: Trainer) -> Any:
        """The model to save."""
        return trainer.model

    def probe_ids(self, rows: list[Row]) -> list[int]:
        """Token ids on which the reloaded model must agree with this one."""
        return self.example(rows[0]).input_ids

    def save_beside(self, trainer: Trainer) -> None:
        """Write further files to final/, right after training."""

    def first_ids(self, rows: Rows[Row]) -> list[list[int]]:
        """Token ids of training rows, where a new adapter starts from them."""
        adapter = self.config.adapter
        if adapter is None or adapter.init != "eva":
            return []
        return [self.example(row).input_ids for row in rows.train[:ROWS_MEASURED]]

    def counts(self, rows: Rows[Row], trainer: Trainer) -> dict[str, int]:
        """The number of rows it learned from, for the manifest."""
        return {"train": len(rows.train), "validation": len(rows.validation)}

    def facts(self, rows: Rows[Row], trainer: Trainer) -> dict[str, Any]:
        """Further entries of its manifest."""
        return {}

    def products(self, rows: Rows[Row]) -> Products:
        """Its products besides the saved model."""
        return Products()

    def report(self, process: FreshProcess) -> None:
        """Make its own report for a finished run that lacks it; `products` says whether there is one."""

    def held_out_prompts(self) -> list[Prompt]:
        """The prompts that monitors let the policy answer."""
        return []

    # --- common

    def _watch(self, trainer: Trainer, recorder: RunRecorder) -> Monitor | None:
        """Add the monitors, and the table of completions at every evaluation, before the run's own callback, which marks
        checkpoints complete."""
        configs = getattr(self.config, "monitors", [])
        shown = self._completions_shown()
        if not configs and not shown:
            return None
        answers = HeldOutAnswers(
            trainer=trainer,
            model=lambda: self.model_of(trainer),
            chat=self.chat,
            prompts=self.held_out_prompts(),
            sampling=cast("Any", self.config).sampling,
            max_tokens=cast("Any", self.config).training.max_length_tokens,
            most=max([shown, *(config.prompts for config in configs)]),
        )
        if shown and answers.asked:
            trainer.add_callback(CompletionsTable(answers, recorder, shown))
        if not configs:
            return None
        measures = find_monitors(configs, self.config.config_folder)
        monitor = Monitor(configs, measures, answers=answers, recorder=recorder)
        trainer.add_callback(monitor)
        return monitor

    def _completions_shown(self) -> int:
        """Prompts that a policy answers at every evaluation. FSDP's sharded weights do not allow it."""
        samples = getattr(self.config, "sampling", None) is not None and find_stage(self.name).makes == "policy"
        if not samples or not self.config.training.eval_steps or of_process().distributed == "fsdp":
            return 0
        return self.config.tracking.completions

    def refused_step(self, error: NotFiniteLossError, rows: Rows[Row]) -> HandoffError:
        """The message for a loss that is not a number."""
        trained_on = [self.example(row).input_ids for row in rows.train]
        named = name_rows(error.sequences, trained_on, self.chat.tokenizer)
        source = getattr(self.config, self.rows_key or self.rows_name, self.rows_name)
        kept = f"the checkpoints before it are in {self.run.checkpoints}" if error.step > 1 else "nothing was trained"
        return HandoffError(
            "\n".join(
                [
                    f"{error}, so it was not taken; {kept}. Lower training.learning_rate, or look at the "
                    f"{self.rows_name} of its batch, from {source}:",
                    *(f"  {one}" for one in named),
                ]
            )
        )

    def show_preflight(self, rows: Rows[Row]) -> None:
        """The page of checks; see tiebreak.training.preflight."""
        lengths = [len(self.example(row).input_ids) for row in rows.train[:ROWS_MEASURED]]
        mean = sum(lengths) / max(len(lengths), 1)
        show_page(self.config, self.run, self.source, (len(rows.train), len(rows.validation)), mean)

    @property
    def dropping(self) -> Run | None:
        """The run, if unusable rows are dropped."""
        return that_drops(self.run)

    @property
    def rules(self) -> Rules:
        """How its data is read."""
        return Rules.of(self.run)

    @cached_property
    def data(self) -> Rows[Raw]:
        """The rows as read.

        Raises:
            DataError: there are none to train on.
        """
        training, validation = self.read()
        if not training:
            raise DataError(f"no {self.rows_name} to train on: the inputs hold none for the train split")
        return Rows(training, validation)

    def _held_out(self) -> list[Row]:
        """The validation rows as token ids. Without them a training is as it was; only its figures are fewer."""
        try:
            return self.encode(self.data.validation, held_out=True)
        except NoRowLeftError as error:
            say(f"nothing is held out for validation: {error}")
            self.data = Rows(self.data.train, [])
            return self.encode([], held_out=True)

    def work(self) -> None:
        """From the data to the finished run."""
        find_monitors(getattr(self.config, "monitors", []), self.config.config_folder)
        rows = Rows(self.encode(self.data.train, held_out=False), self._held_out())
        self.preflight(rows.train)
        self.show_preflight(rows)
        if self.config.preflight_only:
            return
        if is_merged(self.config.adapter):
            self.source = write_merged(self.found, self.run.folder)
        recorder = RunRecorder(self.run)
        recorder.keep_up_to(step_of(Path(self.run.checkpoint)) if self.run.checkpoint else 0)
        trainer = self.build(rows, recorder)
        monitor = self._watch(trainer, recorder)
        try:
            train(trainer, self.run, recorder)
        except NotFiniteLossError as error:
            raise self.refused_step(error, rows) from error
        self.save_beside(trainer)
        finish_adapter(
            trainer,
            self.run,
            recorder,
            model=self.model_of(trainer),
            chat=self.chat,
            source=self.source,
            kind=cast("ModelKind", find_stage(self.name).makes),
            adapter=adapter_of(self.source, self.config.adapter),
            probe_ids=self.probe_ids(rows.train),
            metrics=last_metrics(self.run, up_to=trainer.state.global_step),
            facts={
                **trainer.path_facts(),
                "counts": self.counts(rows, trainer),
                **self.facts(rows, trainer),
                **(monitor.facts() if monitor else {}),
            },
            products=self.products(rows),
        )


def train_stage(kind: type[TrainedStage[C, Any, Any]], config: C) -> None:
    """Run a stage: from its inputs to a finished run, or what a finished run lacks."""
    with start_run(config, kind.name) as run:
        if run.finished and config.preflight_only:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to check")
        elif not describe(run, report=lambda process: kind(config, run).report(process)):
            kind(config, run).work()
