"""Policies on held-out prompts: the same prompts, seeds and sampling for each, and figures that can be compared.

    tiebreak evaluate --config configs/quickstart/evaluate.yaml

The yardstick is the written rubric, or a function of yours (see tiebreak.measures.yardstick): no training stage has
seen it, only the raters' judgments. There may be several (see tiebreak.measures.yardsticks.registry). Every mean carries
a 95% bootstrap interval over prompts, and the win rate is paired by prompt.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.benchmarks import find_tasks, require_data, run_benchmarks
from evaluation.canaries import find_canaries, measure_canaries
from evaluation.configuration import EvaluateConfig
from evaluation.gate import read_gate, require_gate
from evaluation.slices import figures_by_slice
from evaluation.trained_on import leave_out_trained_on
from evaluation.yardstick_figures import figures_of, gaps_of
from evaluation.yardstick_scores import (
    add_yardsticks,
    facts,
    find_measures,
    leave_out_unmeasured,
    pairs_to_judge,
    read_references,
)
from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import encode_each
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import DEFAULT, Rules, read_prompts
from tiebreak.errors import DataError, HandoffError
from tiebreak.files import write_json, write_jsonl
from tiebreak.measures.statistics import bootstrap_interval, count_outcomes, mean_interval, ratio_interval
from tiebreak.measures.yardstick import Measurement, Yardstick, find_yardstick, shortened
from tiebreak.measures.yardsticks.registry import Measure
from tiebreak.measures.yardsticks.wording import repeated_share
from tiebreak.messages import content_id
from tiebreak.models.find import ModelKind, ModelSource, find_model
from tiebreak.models.load import load_frozen_policy, load_trained_reward_model
from tiebreak.models.tokenizers import chat_facts, load_chat, require_same_chat
from tiebreak.packed.generation import BATCHES_A_CALL, SampledCompletion, row_seed, sample_completions
from tiebreak.packed.logprobs import completion_logps_in_batches, scores_in_batches
from tiebreak.packed.positions import require_room
from tiebreak.records import Prompt
from tiebreak.runs.cache import cached_batches
from tiebreak.runs.run import Run, clear_partial, in_batches, read_manifest, start_run, that_drops
from tiebreak.serving.completions import Server, checked
from tiebreak.terminal import has_colours, is_main_process, say, titled_table
from tiebreak.tracking.recorder import tracked


def evaluate(config: EvaluateConfig) -> None:
    """The stage: measure the policies, and check the gate.

    Raises:
        GateError: a requirement of the gate is not met; the run is finished.
    """
    if config.gate is not None:
        read_gate(config.gate, list(config.policies))
    folder = measure_policies(config)
    if config.gate is not None and is_main_process():
        require_gate(config.gate, str(folder))


def measure_policies(config: EvaluateConfig) -> Path:
    """Sample and measure every policy; returns the finished run's folder."""
    measures, tasks = find_measures(config), find_tasks(config)
    yardstick = None if measures else find_yardstick(config.yardstick, config.config_folder)
    with start_run(config, "evaluate") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return run.folder
        prompts = leave_out_trained_on(config, run, choose_prompts(config, Rules.of(run)))
        require_readable(config)
        prompts = drop_unrendered(config, run, prompts)
        references = read_references(config, run, prompts)
        if tasks is not None:
            require_data(config, tasks)
        drawn = [prompt for prompt in prompts for _ in range(config.samples_per_prompt)]
        answers: dict[str, list[Answer]] = {}
        for name in config.policies:
            answers[name] = answer_prompts(config, run, name, drawn, yardstick)
            require_numbers({name: [sum(answer["logps"]) for answer in answers[name]]}, config.policies[name])
            if yardstick:
                add_measurements(config, run, name, drawn, answers[name], yardstick)
        add_baseline_logps(config, run, drawn, answers)
        add_scores(config, run, answers)
        further: Further = {}
        if measures:
            failures = add_yardsticks(config, run, measures, drawn, answers, references)
            drawn = leave_out_unmeasured(measures, drawn, answers, failures, config.baseline)
            prompts = list({prompt.id: prompt for prompt in drawn}.values())
            further = {
                "yardsticks": facts(measures, failures),
                "figures": figures_of(measures, drawn, answers, config.baseline, config.seed),
                "gaps": gaps_of(measures, drawn, answers, config.seed),
            }
        if tasks is not None:
            further["benchmarks"] = run_benchmarks(config, run, tasks)
        values = {name: measured_by_prompt(drawn, own) for name, own in answers.items()}
        further["slices"] = figures_by_slice(drawn, values, config.baseline, config.seed)
        if canaries := find_canaries(list(config.policies.values())):
            further["canaries"] = measure_canaries(config, run, canaries)
        if not is_main_process():
            return run.folder
        first = yardstick or measures[0]
        rows = to_rows(config, drawn, answers)
        report = to_report(config, first, rows, further)
        write_jsonl(run.final / "completions.jsonl", rows)
        write_jsonl(run.final / "pairs.jsonl", pairs_to_judge(config, run, drawn, answers))
        write_json(run.final / "report.json", report)
        run.facts |= {"metrics": to_metrics(report), "kinds": report["kinds"], "counts": {"prompts": len(prompts)}}
        run.finish()
        clear_partial(run)
        say("", *results_table(report, report["yardstick_name"], has_colours(sys.stderr)), "")
        if len(measures) > 1:
            say(*yardsticks_table(report, has_colours(sys.stderr)), "")
        return run.folder


def results_table(report: Mapping[str, Any], yardstick: str, colours: bool) -> list[str]:
    """Each policy's mean on the yardstick, its win rate and the length of its answers."""
    head = ("policy", yardstick, f"win rate vs {report['baseline']}", "tokens")
    rows = []
    for name, figures in report["policies"].items():
        rate = figures["win_rate_vs_baseline"]
        win = "-" if rate is None else f"{rate:.2f}"
        rows.append([name, f"{figures['yardstick_mean']:.3f}", win, f"{figures['length_tokens_mean']:.0f}"])
    return titled_table(head, rows, colours=colours)


def yardsticks_table(report: Mapping[str, Any], colours: bool) -> list[str]:
    """The mean of each policy on each yardstick, and the verdict against the baseline."""
    words = {"better": "better", "worse": "worse", "higher": "higher", "lower": "lower"}
    rows = []
    for one in report["yardsticks"]:
        cells = [one["source"]]
        for figures in report["policies"].values():
            own = figures["yardsticks"][one["source"]]
            verdict = words.get(own.get("verdict", ""), "")
            cells.append("-" if own["mean"] is None else f"{own['mean']:.3g} {verdict}".rstrip())
        rows.append(cells)
    return titled_table(("yardstick", *report["policies"]), rows, colours=colours)


def choose_prompts(config: EvaluateConfig, rules: Rules = DEFAULT) -> list[Prompt]:
    """The held-out prompts, cut to `max_prompts` by a hash of their ids.

    Raises:
        DataError: there are none.
    """
    prompts = read_prompts(config.prompts, [config.split], rules)
    if not prompts:
        raise DataError(f"{config.prompts} has no prompts of the {config.split} split")
    ranked = sorted({p.id: p for p in prompts}.values(), key=lambda p: content_id("rank", p.id))
    return ranked[: config.max_prompts]


def require_readable(config: EvaluateConfig) -> None:
    """Before anything is sampled, check that the reward model reads the policies' tokens as the same text.

    Raises:
        HandoffError: it has another tokenizer or chat template than one of the policies.
    """
    if config.reward_model is None:
        return
    judge = load_chat(find_model(config.reward_model, "reward", config.training.trust_remote_code))
    for name, policy in config.policies.items():
        reader = load_chat(
            find_model(policy, trust_remote_code=config.training.trust_remote_code),
            config.chat,
            config.training.trust_remote_code,
        )
        require_same_chat(reader, judge, f"policy {name} and reward model {config.reward_model}")


def drop_unrendered(config: EvaluateConfig, run: Run, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts that every policy's chat template accepts: figures compare answers to the same prompts.

    Raises:
        DataError: a template refuses some, and dropping is off; or none is left.
    """
    trust = config.training.trust_remote_code
    for name, policy in config.policies.items():
        chat = load_chat(find_model(policy, trust_remote_code=trust), config.chat, trust)

        def encode(prompt: Prompt, chat: Chat = chat) -> list[int]:
            return chat.encode_prompt(prompt.messages, prompt.tools)

        what = f"prompts, as policy {name} reads them,"
        prompts = [prompt for prompt, _ in encode_each(prompts, encode, what, that_drops(run))]
    return prompts


Answer = dict[str, Any]
"""prompt_ids, ids, text, finished, logps; later measured, baseline_logps and score"""


def answer_prompts(
    config: EvaluateConfig, run: Run, name: str, prompts: list[Prompt], yardstick: Yardstick | None
) -> list[Answer]:
    """A completion for each of `prompts`; every policy draws with the same seeds. A single yardstick is tried on the
    first answer."""
    source = find_model(config.policies[name], trust_remote_code=config.training.trust_remote_code)
    chat = load_chat(source, config.chat, config.training.trust_remote_code)
    encoded = [chat.encode_prompt(prompt.messages, prompt.tools) for prompt in prompts]
    seeds = [seed_of(config, prompt, n % config.samples_per_prompt) for n, prompt in enumerate(prompts)]

    @cache
    def model() -> nn.Module:
        loaded = load_frozen_policy(source, config.training)
        require_room(loaded.config, encoded, config.sampling.max_new_tokens)
        return loaded

    sampler = sampler_of(config, name, source, chat, model)

    def answer(batch: list[int], advance: Callable[[int], object]) -> list[Answer]:
        try:
            sampled = sampler([encoded[n] for n in batch], [seeds[n] for n in batch], config.sampling, on_done=advance)
        except HandoffError as error:
            raise HandoffError(f"{source.name}, policy {name!r}: {error}") from error
        return [
            {
                "prompt_ids": encoded[n],
                "ids": one.ids,
                "text": answered.text,
                "finished": answered.finished,
                "logps": one.logps,
            }
            for n, one in zip(batch, sampled, strict=True)
            for answered in [chat.read(one.ids)]
        ]

    order = by_length([len(ids) for ids in encoded])
    size, what = BATCHES_A_CALL * config.batch_size, f"answers of {name}"

    def parts(batch: list[int]) -> object:
        settings = [config.sampling.model_dump(), config.training.model_dump(mode="json"), config.batch_size]
        settings += ["vllm"] if config.vllm else []
        drawn = [[encoded[n], seeds[n]] for n in batch]
        return ["answers", run.inputs[f"policy_{name}"].id, chat_facts(chat), settings, drawn]

    if yardstick:
        first = cached_batches(run, order[:size], size, answer, what, parts)[0]
        measure_answer(yardstick, prompts[order[0]], first, name)
    answers: list[Answer] = cached_batches(run, order, size, answer, what, parts)
    model.cache_clear()
    gc.collect()
    return in_order(order, answers)


def sampler_of(
    config: EvaluateConfig, name: str, source: ModelSource, chat: Chat, model: Callable[[], nn.Module]
) -> Callable[..., list[SampledCompletion]]:
    """Our sampler; or a vLLM server that holds the policy, whose completions our own pass gives log-probabilities, by which
    the KL is measured."""
    ends: dict[str, Any] = {"stop_ids": chat.stop_ids, "textless_ids": chat.textless_ids}
    if name not in config.vllm:

        def ours(*arguments: Any, **options: Any) -> list[SampledCompletion]:
            batch = {"pad_id": chat.pad_id, "batch_size": config.batch_size}
            drawn: list[SampledCompletion] = sample_completions(model(), *arguments, **batch, **ends, **options)
            return drawn

        return ours
    ask = checked(Server(config.vllm[name], source.name), model, chat.pad_id, config.batch_size)

    def theirs(prompts: Sequence[list[int]], *arguments: Any, **options: Any) -> list[SampledCompletion]:
        drawn = ask(prompts, *arguments, **ends, **options)
        examples = [(prompt, one.ids) for prompt, one in zip(prompts, drawn, strict=True)]
        temperature = config.sampling.temperature or 1.0
        logps = completion_logps_in_batches(model(), examples, chat.pad_id, config.batch_size, temperature)
        return [replace(one, logps=values) for one, values in zip(drawn, logps, strict=True)]

    return theirs


def seed_of(config: EvaluateConfig, prompt: Prompt, sample: int) -> int:
    """The seed of one answer. The first answer's is the same with and without further samples."""
    return row_seed(config.seed, "evaluate", prompt.id, *([sample] if sample else []))


def add_measurements(
    config: EvaluateConfig, run: Run, name: str, prompts: list[Prompt], answers: list[Answer], yardstick: Yardstick
) -> None:
    """The yardstick's value of every answer; values are stored, and used again as long as the function is the same."""

    def measure(batch: list[int], _: object) -> list[dict[str, Any]]:
        return [asdict(measure_answer(yardstick, prompts[n], answers[n], name)) for n in batch]

    identity = run.inputs["yardstick"].id[:8] if yardstick.file else ""
    what = " ".join(filter(None, ["measurements of", name, yardstick.source.replace(":", "."), identity]))
    title = f"{yardstick.source} of {name}"
    values = in_batches(run, list(range(len(prompts))), config.batch_size, measure, what, title)
    for answer, value in zip(answers, values, strict=True):
        answer["measured"] = value


def measure_answer(yardstick: Yardstick, prompt: Prompt, answer: Answer, policy: str) -> Measurement:
    """The yardstick's value of one answer to the prompt's last message."""
    question = prompt.messages[-1].text
    whose = f"the answer of policy {policy!r} to prompt {prompt.id} ({shortened(question)!r})"
    return yardstick.measure(question, answer["text"], whose)


def add_baseline_logps(
    config: EvaluateConfig, run: Run, prompts: list[Prompt], answers: dict[str, list[Answer]]
) -> None:
    """The baseline's log-probabilities of all answers, for the KL. None for a policy whose ids the baseline reads as
    other text."""
    source = find_model(config.policies[config.baseline], trust_remote_code=config.training.trust_remote_code)
    chat = load_chat(source, config.chat, config.training.trust_remote_code)
    model = cache(lambda: load_frozen_policy(source, config.training))

    def logps(batch: list[Answer]) -> list[list[float]]:
        examples = [(answer["prompt_ids"], answer["ids"]) for answer in batch]
        temperature = config.sampling.temperature or 1.0
        pad, size = chat.pad_id, config.batch_size
        found: list[list[float]] = completion_logps_in_batches(model(), examples, pad, size, temperature)
        return found

    compared: list[Answer] = []
    for name, own in answers.items():
        comparable = all(
            chat.encode_prompt(prompt.messages, prompt.tools) == answer["prompt_ids"]
            and chat.decode_completion(answer["ids"]) == answer["text"]
            for prompt, answer in zip(prompts, own, strict=True)
        )
        if name != config.baseline and comparable:
            compared += own
            continue
        for answer in own:
            answer["baseline_logps"] = answer["logps"] if name == config.baseline else None
    loading = config.training.model_dump(mode="json")
    settings = [run.inputs[f"policy_{config.baseline}"].id, config.sampling.temperature, loading]
    _add(config, run, compared, "baseline_logps", logps, f"KL to {config.baseline}", settings)
    model.cache_clear()
    gc.collect()


def add_scores(config: EvaluateConfig, run: Run, answers: dict[str, list[Answer]]) -> None:
    """The reward model's score of every answer."""
    if config.reward_model is None:
        for own in answers.values():
            for answer in own:
                answer["score"] = None
        return
    source = find_model(config.reward_model, "reward", config.training.trust_remote_code)
    chat = load_chat(source)
    model = cache(lambda: load_trained_reward_model(source, config.training))

    def scores(batch: list[Answer]) -> list[float]:
        sequences = [answer["prompt_ids"] + answer["ids"] for answer in batch]
        found: list[float] = scores_in_batches(model(), sequences, chat.pad_id, config.batch_size)
        return found

    settings = [run.inputs["reward_model"].id, config.training.model_dump(mode="json")]
    _add(config, run, [answer for own in answers.values() for answer in own], "score", scores, "scores", settings)
    require_numbers({name: [answer["score"] for answer in own] for name, own in answers.items()}, config.reward_model)
    model.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_numbers(values: Mapping[str, Sequence[float]], model: str) -> None:
    """Refuse values of a broken model: their mean would mean nothing.

    Args:
        values: by the policy whose answers they are of.

    Raises:
        HandoffError: some are not finite numbers.
    """
    for name, own in values.items():
        broken = sum(not math.isfinite(value) for value in own)
        if broken:
            raise HandoffError(
                f"{model} gives {broken} of {len(own)} answers of policy {name!r} a value that is not a finite number: "
                "its weights are broken, or its precision too coarse (training.precision)"
            )


def _add(
    config: EvaluateConfig,
    run: Run,
    answers: list[Answer],
    key: str,
    measure: Callable[[list[Answer]], list[Any]],
    what: str,
    settings: object,
) -> None:
    """Measure every answer, in batches that survive a crash, and keep the value under `key`.

    All policies' answers to a prompt are neighbours, so that the prompt is computed once.

    Args:
        settings: what decides the values besides the answers' ids.
    """
    order = sorted(range(len(answers)), key=lambda n: (answers[n]["prompt_ids"], n))

    def compute(batch: list[int], _: object) -> list[Any]:
        return measure([answers[n] for n in batch])

    def parts(batch: list[int]) -> object:
        ids = [[answers[n]["prompt_ids"], answers[n]["ids"]] for n in batch]
        return [key, settings, config.batch_size, ids]

    values = cached_batches(run, order, config.batch_size, compute, what, parts)
    for answer, value in zip(answers, in_order(order, values), strict=True):
        answer[key] = value


def by_length(lengths: Sequence[int]) -> list[int]:
    """Row numbers, shortest first: batches of near-equal length waste little on padding."""
    return sorted(range(len(lengths)), key=lambda n: (lengths[n], n))


def in_order(order: list[int], values: list[Any]) -> list[Any]:
    """Undo `by_length`."""
    placed = dict(zip(order, values, strict=True))
    return [placed[n] for n in range(len(order))]


def to_rows(config: EvaluateConfig, prompts: list[Prompt], answers: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """A row for each completion, with all of its values."""
    rows = []
    for name, own in answers.items():
        for n, (prompt, answer) in enumerate(zip(prompts, own, strict=True)):
            measured, baseline = answer["measured"], answer["baseline_logps"]
            sample = {"sample": n % config.samples_per_prompt} if config.samples_per_prompt > 1 else {}
            named = {"yardsticks": answer["yardsticks"]} if "yardsticks" in answer else {}
            rows.append(
                {
                    "prompt_id": prompt.id,
                    "messages": [message.model_dump() for message in prompt.messages],
                    "policy": name,
                    "text": answer["text"],
                    "finished": answer["finished"],
                    "rubric": measured["criteria"],
                    "rubric_score": measured["value"],
                    "yardstick_score": measured["value"],
                    "score": answer["score"],
                    "kl": None if baseline is None else sum(answer["logps"]) - sum(baseline),
                    "length_tokens": len(answer["ids"]),
                    "repetition": repeated_share(answer["text"]),
                    **sample,
                    **named,
                }
            )
    return rows


Further = dict[str, Any]
"""of several yardsticks: their facts, the policies' figures, and the gaps between counterfactual prompts; the figures of
slices, of benchmarks and of canaries"""


def to_report(
    config: EvaluateConfig, yardstick: Yardstick | Measure, rows: list[dict[str, Any]], further: Further
) -> dict[str, Any]:
    """Figures by policy; see evaluation.compare, which prints them."""
    by_policy: dict[str, list[dict[str, Any]]] = {name: [] for name in config.policies}
    for row in rows:
        by_policy[row["policy"]].append(row)
    baseline = list(means_by_prompt(by_policy[config.baseline], "yardstick_score").values())
    policies = {
        name: policy_figures(own, None if name == config.baseline else baseline, config.seed)
        | named_source(config.policies[name], config.training.trust_remote_code)
        | ({"yardsticks": further["figures"][name]} if "figures" in further else {})
        | ({"benchmarks": further["benchmarks"][name]} if "benchmarks" in further else {})
        | ({"canaries": further["canaries"][name]} if "canaries" in further else {})
        | ({"slices": further["slices"][name]} if further.get("slices", {}).get(name) else {})
        for name, own in by_policy.items()
    }
    named = {key: further[key] for key in ("yardsticks", "gaps") if further.get(key)}
    samples = {"samples_per_prompt": config.samples_per_prompt} if config.samples_per_prompt > 1 else {}
    return {
        **named,
        **samples,
        "policies": policies,
        "baseline": config.baseline,
        "yardstick": config.primary,
        "yardstick_name": yardstick.name if isinstance(yardstick, Yardstick) else yardstick.title,
        "yardstick_scale": yardstick.scale,
        "sampling": config.sampling.model_dump(),
        "split": config.split,
        "kinds": kinds_behind(config),
    }


OLDER_NAMES = ("rubric_mean", "rubric_interval", "win_rate_vs_sft")
"""former names of figures, which only report.json still has"""


def to_metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The figures by policy as the manifest and W&B have them, each under one name."""
    return {
        policy: {name: value for name, value in figures.items() if name not in OLDER_NAMES}
        for policy, figures in report["policies"].items()
    }


def named_source(policy: str, trust_remote_code: bool) -> dict[str, str]:
    """A policy's description without its path: the stage that made it, or the base model's name."""
    found = find_model(policy, trust_remote_code=trust_remote_code)
    made_by = found.stage or (found.base if found.folder is None else f"adapter on {found.base}")
    return {"source": made_by, "id": found.id}


def means_by_prompt(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """The mean over the answers to each prompt, in the order of the rows."""
    found: dict[str, list[float]] = {}
    for n, row in enumerate(rows):
        found.setdefault(row.get("prompt_id", str(n)), []).append(row[key])
    return {prompt: statistics.fmean(values) if len(values) > 1 else values[0] for prompt, values in found.items()}


def measured_by_prompt(drawn: Sequence[Prompt], own: Sequence[Answer]) -> dict[str, float]:
    """The yardstick's mean over a policy's answers to each prompt."""
    rows = [{"prompt_id": one.id, "value": answer["measured"]["value"]} for one, answer in zip(drawn, own, strict=True)]
    return means_by_prompt(rows, "value")


def policy_figures(rows: list[dict[str, Any]], baseline: list[float] | None, seed: int) -> dict[str, Any]:
    """The figures of one policy; several answers to a prompt count as their mean.

    Args:
        baseline: the baseline's measure by prompt, in the same order.
    """
    measured = list(means_by_prompt(rows, "yardstick_score").values())
    tokens = sum(row["length_tokens"] for row in rows)
    scores = list(means_by_prompt([row for row in rows if row["score"] is not None], "score").values())
    mean, interval = statistics.fmean(measured), mean_interval(measured, seed)
    return {
        "yardstick_mean": mean,
        "yardstick_interval": interval,
        "rubric_mean": mean,  # the names of older reports, whatever the yardstick
        "rubric_interval": interval,
        "criteria": _shares_met([row["rubric"] for row in rows]),
        **win_figures(measured, baseline),
        "score_mean": statistics.fmean(scores) if scores else None,
        "score_interval": mean_interval(scores, seed),
        **kl_figures(rows, None if baseline is None else seed),
        "length_tokens_mean": tokens / len(rows),
        "unfinished_share": statistics.fmean(not row["finished"] for row in rows),
        "repetition_mean": statistics.fmean(row["repetition"] for row in rows),
        "n_prompts": len(measured),
    }


def kl_figures(rows: Sequence[Mapping[str, Any]], seed: int | None) -> dict[str, Any]:
    """The KL from the baseline per answer and per token, estimated by the mean log-ratio of the answers (k1; Schulman
    2020), with intervals over prompts.

    Args:
        seed: of the intervals; None for the baseline, whose KL is exactly 0.
    """
    own = [row for row in rows if row["kl"] is not None]
    if not own:
        return {"kl_per_sequence": None, "kl_per_token": None}
    kl, tokens = [row["kl"] for row in own], sum(row["length_tokens"] for row in rows)
    found: dict[str, Any] = {"kl_per_sequence": statistics.fmean(kl), "kl_per_token": sum(kl) / tokens}
    by_prompt = [list(means_by_prompt(own, key).values()) for key in ("kl", "length_tokens")]
    if seed is not None and len(by_prompt[0]) > 1:
        found["kl_per_sequence_interval"] = bootstrap_interval(by_prompt[0], seed)
        found["kl_per_token_interval"] = ratio_interval(by_prompt[0], by_prompt[1], seed)
    return found


def win_figures(measured: list[float], baseline: list[float] | None) -> dict[str, Any]:
    """How often a policy beats the baseline on the same prompts, a tie being half a win."""
    if baseline is None:
        return {"win_rate_vs_baseline": None, "win_rate_vs_sft": None, "win_rate_interval": None, "outcomes": None}
    outcomes = count_outcomes(measured, baseline)
    return {
        "win_rate_vs_baseline": outcomes.win_rate,
        "win_rate_vs_sft": outcomes.win_rate,  # its older name, whatever the baseline
        "win_rate_interval": outcomes.interval,
        "outcomes": {"wins": outcomes.wins, "ties": outcomes.ties, "losses": outcomes.losses},
    }


def kinds_behind(config: EvaluateConfig) -> list[str]:
    """The kinds of judgments that any of the policies learned from."""
    kinds: set[str] = set()
    for source in [*config.policies.values(), *([config.reward_model] if config.reward_model else [])]:
        kind: ModelKind = "reward" if source == config.reward_model else "policy"
        found = find_model(source, kind, config.training.trust_remote_code)
        if found.folder is not None and found.stage is not None:
            kinds.update(read_manifest(found.folder.parent).get("kinds", []))
    return sorted(kinds)


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak evaluate`, or `python -m evaluation.evaluate`."""
    stage_main("evaluate", EvaluateConfig, evaluate, arguments)


def _shares_met(answers: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """The share of answers that meet each criterion, among those that it applies to."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    return {name: statistics.fmean(answer[name] for answer in answers if name in answer) for name in names}


if __name__ == "__main__":
    main()
