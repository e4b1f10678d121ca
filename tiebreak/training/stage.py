"""Common parts of training stages: arguments, preflight, checkpoints, and a finish that verifies the saved model.

The trainers themselves are TRL's and transformers'; this module has everything around `trainer.train()`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from transformers import ProgressCallback

from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import check_encoded, coloured_mask, renderable
from tiebreak.config import AdapterConfig, LoadingConfig, OptimizerConfig, SamplingConfig, TrainingConfig
from tiebreak.errors import DataError, HandoffError, NoRowLeftError, TiebreakError
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import ModelKind, ModelSource
from tiebreak.models.full import whole_state
from tiebreak.models.headers import architecture_of
from tiebreak.models.precision import resolve_precision
from tiebreak.models.probe import probe_values, write_probe
from tiebreak.models.reload import FreshProcess
from tiebreak.models.save import save_adapter, save_whole
from tiebreak.models.sharded import hand_to_engine
from tiebreak.process.limit import leave_in_time
from tiebreak.process.stopping import StepStopped, Stopped, check, deferring
from tiebreak.records import Prompt
from tiebreak.runs.checkpoints import MARKER
from tiebreak.runs.placement import require_agreement, require_placed
from tiebreak.runs.reports import SAMPLES, Reports
from tiebreak.runs.run import Run, read_metrics
from tiebreak.stages import find_stage
from tiebreak.terminal import is_main_process, say
from tiebreak.terminal.progress import screen
from tiebreak.tracking.recorder import RunRecorder, track_again
from tiebreak.training.allocator import leave_training
from tiebreak.training.callbacks import (
    EncoderWeights,
    NothingToTrainError,
    ProgressBars,
    RunCallback,
    TokenCount,
    set_generators,
)
from tiebreak.upstream import load_generators, save_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer

Row = TypeVar("Row")

REPORT, MERGED = "report", "merged"
"""names of reports: sample completions, the stage's own page, and the merged copy"""
SAMPLED_PROMPTS = 4
OPTIMIZERS = {
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
"""transformers' names of those that are not its own default"""
PROBE_TOKENS = 96


def common_arguments(training: OptimizerConfig, run: Run) -> dict[str, Any]:
    """Arguments common to transformers' TrainingArguments and all of TRL's configurations."""
    dtype = resolve_precision(training)
    require_agreement(training, {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no"))
    by_epochs: dict[str, Any] = {}
    if isinstance(training, TrainingConfig):  # PPO counts in rollouts
        by_epochs = {"num_train_epochs": training.epochs, "logging_steps": training.logging_steps}
    return by_epochs | {
        "output_dir": str(run.checkpoints),
        "seed": training.seed,
        "data_seed": training.seed,
        "learning_rate": training.learning_rate,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.per_device_batch_size,
        "per_device_eval_batch_size": training.per_device_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "warmup_steps": training.warmup_share,  # transformers reads a value below 1 as a share of the steps
        "lr_scheduler_type": training.lr_scheduler,
        **({"optim": OPTIMIZERS[training.optimizer]} if training.optimizer in OPTIMIZERS else {}),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "activation_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing": None,  # the name transformers deprecates, and TRL switches on by default
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": not torch.cuda.is_available(),
        "logging_nan_inf_filter": False,  # a loss that is not a number must be visible, not smoothed over
        "eval_strategy": "steps" if training.eval_steps else "no",
        "eval_steps": training.eval_steps,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": None,  # tiebreak.runs.checkpoints.delete_old: transformers would count damaged ones
        "report_to": "none",  # W&B gets its data from tiebreak.tracking.recorder
        "disable_tqdm": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }


def _half_of(trainer: Trainer) -> torch.dtype | None:
    """The format of a training in 16 bits; None: it is in 32."""
    return torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None


def drop_too_long(rows: list[Any], lengths: Sequence[int], limit: int, what: str) -> list[Any]:
    """Rows within `max_length_tokens`. Longer ones are dropped, counted and reported, never truncated.

    Raises:
        NoRowLeftError: all of them are too long.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if rows and not kept:
        raise NoRowLeftError(
            f"every one of the {len(rows)} {what} is longer than training.max_length_tokens ({limit}; the shortest has "
            f"{min(lengths)} tokens): raise it, or shorten them"
        )
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} {what} are longer than {limit} tokens and were dropped")
    return kept


def evaluation_rows(rows: Sequence[Row], training: TrainingConfig) -> list[Row]:
    """The validation rows for evaluations: all, or `training.eval_rows` of them at even distances."""
    if training.eval_rows is None or len(rows) <= training.eval_rows:
        return list(rows)
    return [rows[number * len(rows) // training.eval_rows] for number in range(training.eval_rows)]


def preflight(examples: Sequence[EncodedSequence], chat: Chat, what: str) -> None:
    """Check every example, and show one with its loss mask before training.

    Raises:
        DataError: there are none.
        HandoffError: one has nothing to learn, or two end-of-sequence tokens.
    """
    if not examples:
        raise DataError(f"no {what} to train on: the inputs hold none for the train split")
    for number, example in enumerate(examples, start=1):
        check_encoded(example, chat, f"{what} {number}")
    trained = sum(map(sum, (e.loss_mask for e in examples)))
    total = sum(len(e.input_ids) for e in examples)
    say(
        f"{len(examples)} {what}: {total} tokens, {trained} of them trained on. The first, trained tokens marked:",
        coloured_mask(chat.tokenizer, examples[0]),
        "",
    )


def train(trainer: Trainer, run: Run, recorder: RunRecorder) -> None:
    """Train from the last complete checkpoint if there is one, then evaluate once at the end.

    Raises:
        HandoffError: the loss stopped being a number.
    """
    trainer.remove_callback(ProgressCallback)
    with screen() as bars:
        trainer.add_callback(ProgressBars(bars, find_stage(run.stage).metrics))
        _train(trainer, run, recorder)


def _train(trainer: Trainer, run: Run, recorder: RunRecorder) -> None:
    trainer.add_callback(TokenCount(trainer))
    trainer.add_callback(EncoderWeights(trainer))
    callback = RunCallback(recorder, trainer)
    trainer.add_callback(callback)
    require_placed(deepspeed=trainer.is_deepspeed_enabled, fsdp=trainer.is_fsdp_enabled)
    hand_to_engine(trainer.model, _half_of(trainer))
    checkpoint = run.checkpoint
    if checkpoint:
        say(f"resuming from {checkpoint}")
    with deferring():
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except NothingToTrainError:
            load_generators(trainer, checkpoint)
            trainer.is_in_train = False
            trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except StepStopped as stopped:
            _keep_last_step(trainer, callback, stopped)
    check()
    leave_in_time(0.0, f"step {trainer.state.global_step} of {trainer.state.max_steps} is in {run.checkpoints}")
    last = [row for row in read_metrics(run.folder) if "loss" in row]
    if last and last[-1]["loss"] is None:
        raise HandoffError(
            f"the loss stopped being a number at step {last[-1]['step']}: lower training.learning_rate or look at the "
            f"data; the checkpoints before it are in {run.checkpoints}"
        )
    step = trainer.state.global_step
    evaluated = any(row["step"] == step and "eval_loss" in row for row in read_metrics(run.folder))
    if trainer.eval_dataset is not None and not _agreed(trainer, evaluated):
        _evaluate_at_the_end(trainer)


def _evaluate_at_the_end(trainer: Trainer) -> None:
    """The last evaluation only reports, so its failure does not fail the run; several processes fail together."""
    try:
        trainer.evaluate()
    except Exception as error:
        if trainer.accelerator.num_processes > 1:
            raise
        reason = str(error) if isinstance(error, TiebreakError) else f"{type(error).__name__}: {error}"
        say(f"warning: the evaluation at the end failed ({reason}); the model is saved without its figures")


def _keep_last_step(trainer: Trainer, callback: RunCallback, stopped: StepStopped) -> NoReturn:
    """Write the checkpoint of the last whole step, whose weights are unchanged.

    Raises:
        Stopped: always.
    """
    state = trainer.state
    written = Path(trainer.args.output_dir) / f"checkpoint-{state.global_step}" / MARKER
    if state.global_step and not written.exists():
        set_generators(callback.generators)
        callback.stopped_by = stopped.number
        save_checkpoint(trainer)
        trainer.callback_handler.on_save(trainer.args, state, trainer.control)
    kept = f"step {state.global_step} of {state.max_steps} is in {written.parent}" if state.global_step else ""
    raise Stopped(stopped.number, kept)


def _agreed(trainer: Trainer, mine: bool) -> bool:
    """The main process's value, on every process."""
    from accelerate.utils import broadcast_object_list

    value = [mine]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(value, from_process=0)
    return value[0]


@dataclass(frozen=True)
class Products:
    """A stage's products besides the saved model."""

    prompts: Sequence[Prompt] = ()
    """the first few are answered, for the table of samples"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """sampling settings of those answers"""
    merged: bool = False
    """also save a plain model, base and adapter merged"""
    sequences: Sequence[list[int]] = ()
    """sequences for a reward model to score in the fresh process, for `on_verified`"""
    on_verified: Callable[[list[list[float]]], None] = lambda scores: None
    """writes further files of the result"""
    report: Callable[[FreshProcess], None] | None = None
    """makes the stage's own report of the finished run"""


def finish_adapter(
    trainer: Trainer,
    run: Run,
    recorder: RunRecorder,
    *,
    model: Any,
    chat: Chat,
    source: ModelSource,
    kind: ModelKind,
    adapter: AdapterConfig,
    probe_ids: list[int],
    metrics: dict[str, Any],
    facts: dict[str, Any],
    products: Products,
) -> None:
    """Save the adapter, reload it in a fresh process, compare, and finish the run. Only then make its reports.

    Under ZeRO every process must call it; the main one writes.

    Raises:
        HandoffError: the reloaded model's outputs differ.
    """
    whole = adapter.method == "full"
    state = whole_state(model) if whole else Adapter(model).state()
    ids = probe_ids[:PROBE_TOKENS]
    values = probe_values(model, ids)
    if not trainer.is_world_process_zero():
        _leave_launch(trainer)
        return
    save = save_whole if whole else save_adapter
    pinned = save(run.final, model, state, chat, source, kind, adapter)
    write_probe(run.final, ids, values, model)
    leave_training(trainer)
    say("loading the saved model in a fresh process, to compare")
    with FreshProcess(run.final, source.trust_remote_code) as process:
        difference, scores = process.verify(products.sequences)
        say(f"reloaded in a fresh process: the largest difference is {difference:.1e}")
        products.on_verified(scores)
        run.facts |= {
            "model": pinned,
            "base_model": architecture_of(source.base_path),
            "saved_parameters": sum(one.numel() for one in state.values()),
            "probe_difference": difference,
            "metrics": metrics,
            **facts,
        }
        reports = Reports(run)
        reports.plan(
            {
                **({SAMPLES: samples_request(products, chat)} if products.prompts else {}),
                **({REPORT: {}} if products.report else {}),
                **({MERGED: {}} if products.merged and not whole else {}),
            }
        )
        run.finish()
        _leave_launch(trainer)
        make_reports(run, reports, process, recorder, products.report)
    recorder.finish()


def _leave_launch(trainer: Trainer) -> None:
    """The last collective operation: afterwards the main process continues alone."""
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def samples_request(products: Products, chat: Chat) -> dict[str, Any]:
    """Input of the table of samples."""
    first = itertools.islice(renderable(products.prompts, chat), SAMPLED_PROMPTS)
    shown = [prompt.model_dump(include={"messages"}) | {"tools": prompt.tools} for prompt, _ in first]
    return {"prompts": shown, "sampling": products.sampling.model_dump()}


def make_reports(
    run: Run,
    reports: Reports,
    process: FreshProcess,
    recorder: RunRecorder,
    report: Callable[[FreshProcess], None] | None = None,
) -> None:
    """The planned reports that a finished run lacks."""

    def sample(request: dict[str, Any]) -> None:
        answers = process.samples(request["prompts"], request["sampling"])
        asked = [prompt["messages"][-1]["content"] for prompt in request["prompts"]]
        recorder.table("samples", ["prompt", "completion"], list(zip(asked, answers, strict=True)))

    def merge() -> None:
        folder = run.final / "merged"
        process.merge(folder)
        run.amend({}, made=[path for path in sorted(folder.rglob("*")) if path.is_file()])

    reports.make(SAMPLES, sample)
    if report is not None:
        reports.make(REPORT, lambda _: report(process))
    reports.make(MERGED, lambda _: merge())


def last_metrics(run: Run, up_to: float = math.inf) -> dict[str, Any]:
    """The newest value of each of the stage's metrics up to a step, that of the kept policy."""
    found: dict[str, Any] = {}
    for row in read_metrics(run.folder):
        if row["step"] <= up_to:
            found |= {key: row[key] for key in find_stage(run.stage).metrics if row.get(key) is not None}
    return found


def describe(run: Run, report: Callable[[FreshProcess], None] | None = None) -> bool:
    """Print what happens next; True if there is nothing to train: then a finished run's missing reports are made."""
    if not run.finished:
        say(f"{run.stage}: writing {run.folder}" + (f" (resuming from {run.checkpoint})" if run.checkpoint else ""))
        return False
    reports = Reports(run)
    if not reports.names or not is_main_process():
        track_again(run)
        say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
        return True
    say(f"{run.folder} is finished; making what it lacks: {', '.join(reports.names)}")
    training: LoadingConfig = getattr(run.config, "training")  # noqa: B009 - of every stage that trains
    recorder = RunRecorder(run)
    with FreshProcess(run.final, training.trust_remote_code) as process:
        make_reports(run, reports, process, recorder, report)
    recorder.finish()
    return True
