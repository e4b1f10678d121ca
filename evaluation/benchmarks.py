"""lm-eval's tasks by name, through its own package, for every policy: before and after training.

    benchmarks: [hellaswag, mine]
    benchmark_tasks: tasks           # a folder of your own tasks, in lm-eval's form

The policies are those of the evaluation, as it loads them. Nothing is fetched unless HF_HUB_OFFLINE is 0: a task whose data
is not on this machine is an error.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

from evaluation.compare.reading import beside
from evaluation.configuration import EvaluateConfig
from tiebreak.errors import ConfigError, DataError, TiebreakError
from tiebreak.extras import require_package
from tiebreak.measures.statistics import Interval, difference_interval
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.runs.cache import cached_batches
from tiebreak.runs.run import Run

Figures = dict[str, float | Interval]
Benchmarks = dict[str, dict[str, Figures]]
"""policy → task → metric. Of a mean over questions, there are `METRIC_stderr` and, against the baseline on the same
questions, `METRIC_difference` and `METRIC_difference_interval`"""
ByQuestion = dict[str, dict[str, float]]
"""metric → question → its value; of the metrics that are means over questions"""


def find_tasks(config: EvaluateConfig) -> Any:
    """lm-eval's index of tasks, the user's among them; None if no benchmark is wanted.

    Raises:
        ConfigError: lm-eval is not installed, or has no such task.
    """
    if not config.benchmarks:
        return None
    tasks = require_package("lm_eval.tasks", "benchmarks", "bench")
    manager = tasks.TaskManager(include_path=config.benchmark_tasks)
    if unknown := [name for name in config.benchmarks if name not in manager.all_tasks]:
        raise ConfigError(
            f"benchmarks: lm-eval has no task {', '.join(unknown)}: 'lm-eval ls tasks' lists them; put your own into a "
            "folder, and name it in benchmark_tasks"
        )
    return manager


def require_data(config: EvaluateConfig, manager: Any) -> None:
    """Read the tasks' data, before hours of sampling.

    Raises:
        DataError: it is not on this machine, or a task is faulty.
    """
    with _reading(config):
        manager.load(list(config.benchmarks))


def run_benchmarks(config: EvaluateConfig, run: Run, manager: Any) -> Benchmarks:
    """The tasks' figures for every policy; finished policies are kept on disk.

    Raises:
        DataError: a task's data is not on this machine, or the task fails.
    """
    version = require_package("lm_eval", "benchmarks", "bench").__version__
    files = {name: one.id for name, one in run.inputs.items() if name.startswith("benchmark_")}
    settings = [config.benchmarks, config.benchmark_limit, config.benchmark_chat, version, files]

    def compute(batch: list[str], _: object) -> list[dict[str, Any]]:
        return [_evaluate(config, policy, manager) for policy in batch]

    def parts(batch: list[str]) -> object:
        ids = [run.inputs[f"policy_{policy}"].id for policy in batch]
        return ["benchmarks by question", settings, config.training.model_dump(mode="json"), ids]

    rows = cached_batches(run, list(config.policies), 1, compute, "benchmarks", parts)
    found = dict(zip(config.policies, rows, strict=True))
    return {policy: _with_errors(found, policy, config.baseline) for policy in found}


def _with_errors(found: Mapping[str, Any], policy: str, baseline: str) -> dict[str, Figures]:
    """A policy's figures by task, with their standard errors, and their differences from another policy's."""
    figures, questions = found[policy]["figures"], found[policy]["questions"]
    others = found[baseline]["questions"] if policy != baseline else {}
    return {
        task: figures[task] | _errors(questions[task]) | _against(questions[task], others.get(task, {}))
        for task in figures
    }


def _evaluate(config: EvaluateConfig, policy: str, manager: Any) -> dict[str, Any]:
    """The `figures` of its tasks, and their values at each of the `questions`."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    trust = config.training.trust_remote_code
    source = find_model(config.policies[policy], trust_remote_code=trust)
    model, chat = load_frozen_policy(source, config.training), load_chat(source, config.chat, trust)
    wrapped = HFLM(pretrained=model, tokenizer=chat.tokenizer, batch_size=config.batch_size)
    with _reading(config):
        results = simple_evaluate(
            wrapped,
            tasks=list(config.benchmarks),
            task_manager=manager,
            limit=config.benchmark_limit,
            apply_chat_template=config.benchmark_chat,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            bootstrap_iters=0,
            log_samples=True,
        )
    del wrapped, model
    gc.collect()
    figures = {task: _figures(values) for task, values in results["results"].items()}
    samples = results["samples"]
    return {
        "figures": figures,
        "questions": {task: _by_question(samples.get(task, ()), values) for task, values in figures.items()},
    }


def _by_question(samples: Sequence[Mapping[str, Any]], figures: Mapping[str, float]) -> ByQuestion:
    """The values of each metric that is their mean: not those of a whole corpus, such as BLEU, nor of a group of tasks.

    >>> rows = [{"doc_id": 0, "filter": "none", "metrics": ["acc"], "acc": 1.0},
    ...         {"doc_id": 1, "filter": "none", "metrics": ["acc"], "acc": 0.0}]
    >>> _by_question(rows, {"acc": 0.5}), _by_question(rows, {"acc": 0.7})
    ({'acc': {'0': 1.0, '1': 0.0}}, {})
    """
    found: ByQuestion = {}
    for row in samples:
        for metric in row["metrics"]:
            if isinstance(value := row[metric], Real):
                name = f"{metric},{row['filter']}".removesuffix(",none")
                found.setdefault(name, {})[str(row["doc_id"])] = float(value)
    return {
        name: values
        for name, values in found.items()
        if name in figures
        and math.isclose(statistics.fmean(values.values()), figures[name], rel_tol=1e-9, abs_tol=1e-12)
    }


def _errors(questions: ByQuestion) -> Figures:
    """The standard errors of means over questions."""
    return {
        beside(metric, "stderr"): statistics.stdev(values.values()) / math.sqrt(len(values))
        for metric, values in questions.items()
        if len(values) > 1
    }


def _against(own: ByQuestion, baseline: ByQuestion) -> Figures:
    """Differences from the baseline, question by question, and their mean's 95% interval.

    >>> _against({"acc": dict.fromkeys("abcd", 1.0)}, {"acc": dict.fromkeys("abcd", 0.0)})["acc_difference"]
    1.0
    """
    found: Figures = {}
    for metric, values in own.items():
        others = baseline.get(metric, {})
        differences = [value - others[question] for question, value in values.items() if question in others]
        if (interval := difference_interval(differences)) is not None:
            found[beside(metric, "difference")] = statistics.fmean(differences)
            found[beside(metric, "difference_interval")] = interval
    return found


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's `acc,none` as `acc`; what is not a number, such as the task's alias, is left out.

    >>> _figures({"alias": "mine", "acc,none": 0.5, "acc_stderr,none": "N/A", "f1,strict": 1.0})
    {'acc': 0.5, 'f1,strict': 1.0}
    """
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len"
    }


def _reason(error: Exception, config: EvaluateConfig) -> str:
    """Why a task cannot be run, in one line."""
    names, text = ", ".join(config.benchmarks), " ".join(str(error).split())[:300]
    absent = (
        "ConnectionError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "DatasetNotFoundError",
        "HfHubHTTPError",
    )
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(cause)
    if any(type(one).__name__ in absent for one in chain):
        return (
            f"benchmarks: the data of one of {names} is not on this machine ({text}): run once with HF_HUB_OFFLINE=0 where "
            "there is a network, or give a task of your own whose data_files are local (benchmark_tasks)"
        )
    return f"benchmarks: lm-eval failed on {names}: {type(error).__name__}: {text}"


@contextmanager
def _reading(config: EvaluateConfig) -> Iterator[None]:
    """lm-eval's failures become ours; no request is made to the hub, unless HF_HUB_OFFLINE=0 allows it."""
    try:
        with _offline():
            yield
    except TiebreakError:
        raise
    except Exception as error:
        raise DataError(_reason(error, config)) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Make no request to the hub, unless HF_HUB_OFFLINE=0 allows it."""
    if os.environ.get("HF_HUB_OFFLINE") == "0":
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
