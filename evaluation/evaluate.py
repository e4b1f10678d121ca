"""Policies on held-out prompts: the same prompts, seeds and sampling for each, and figures that can be compared.

    tiebreak evaluate --config configs/quickstart/evaluate.yaml

The yardstick is the written rubric, or a function of yours: no training stage has seen it, only the raters' judgments.
Every mean carries a 95% bootstrap interval over prompts, and the win rate is paired by prompt.
"""

from __future__ import annotations

import gc
import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from evaluation.configuration import EvaluateConfig
from tiebreak.chat import decode_completion, encode_prompt
from tiebreak.errors import ConfigError, DataError
from tiebreak.generation import BATCHES_A_CALL, row_seed, sample_completions
from tiebreak.launch import stage_main
from tiebreak.logprobs import completion_logps_in_batches, scores_in_batches
from tiebreak.models import (
    find_model,
    load_frozen_policy,
    load_tokenizer,
    load_trained_reward_model,
    require_same_tokenizer,
)
from tiebreak.records import Prompt, content_id, read_prompts, write_json, write_jsonl
from tiebreak.rubric import repeated_share, score_rubric
from tiebreak.runs import Run, clear_partial, in_batches, read_manifest, say, start_run
from tiebreak.statistics import bootstrap_interval
from tiebreak.tracking import track


@dataclass(frozen=True)
class Yardstick:
    """What an answer is measured by: a number, and the criteria behind it if there are any."""

    measure: Callable[[str, str], tuple[float, dict[str, bool]]]

    @classmethod
    def named(cls, name: str) -> Yardstick:
        """The rubric, or a user's function.

        Raises:
            ConfigError: there is no such function.
        """
        if name == "rubric":
            return cls(lambda prompt, answer: (score_rubric(answer).score, dict(vars(score_rubric(answer)))))
        module, _, function = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"yardstick: cannot import {name}: {error}") from error
        return cls(lambda prompt, answer: (float(found(prompt, answer)), {}))


def evaluate(config: EvaluateConfig) -> None:
    """The stage."""
    inputs = {"prompts": config.prompts, **{f"policy_{name}": source for name, source in config.policies.items()}}
    if config.reward_model:
        inputs["reward_model"] = config.reward_model
    run = start_run(config, "evaluate", inputs)
    if run.finished:
        say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
        return
    prompts = choose_prompts(config)
    require_readable(config)
    answers = {name: answer_prompts(config, run, name, prompts) for name in config.policies}
    add_baseline_logps(config, run, prompts, answers)
    add_scores(config, run, answers)
    rows = to_rows(config, prompts, answers)
    report = to_report(config, rows)
    write_jsonl(run.final / "completions.jsonl", rows)
    write_json(run.final / "report.json", report)
    run.facts |= {"metrics": report["policies"], "kinds": report["kinds"], "counts": {"prompts": len(prompts)}}
    track(run, run.finish(), [run.final / "completions.jsonl"])
    clear_partial(run)
    for name, figures in report["policies"].items():
        win = "" if figures["win_rate_vs_sft"] is None else f", win rate {figures['win_rate_vs_sft']:.2f}"
        say(f"{name}: {config.yardstick} {figures['rubric_mean']:.3f}{win}, {figures['length_tokens_mean']:.0f} tokens")


def choose_prompts(config: EvaluateConfig) -> list[Prompt]:
    """The held-out prompts, cut to `max_prompts` by a hash of their ids.

    Raises:
        DataError: there are none.
    """
    prompts = read_prompts(config.prompts, [config.split])
    if not prompts:
        raise DataError(f"{config.prompts} has no prompts of the {config.split} split")
    ranked = sorted({p.id: p for p in prompts}.values(), key=lambda p: content_id("rank", p.id))
    return ranked[: config.max_prompts]


def require_readable(config: EvaluateConfig) -> None:
    """Before anything is sampled: the reward model must read the policies' tokens as they meant them.

    Raises:
        HandoffError: it has another tokenizer or chat template than one of the policies.
    """
    if config.reward_model is None:
        return
    judge = load_tokenizer(find_model(config.reward_model, kind="reward"))
    for name, policy in config.policies.items():
        reader = load_tokenizer(find_model(policy), config.training.trust_remote_code)
        require_same_tokenizer(reader, judge, f"policy {name} and reward model {config.reward_model}")


Answer = dict[str, Any]
"""ids, text, finished, logps; later baseline_logps and score"""


def answer_prompts(config: EvaluateConfig, run: Run, name: str, prompts: list[Prompt]) -> list[Answer]:
    """One completion a prompt; every policy draws with the same seeds."""
    source = find_model(config.policies[name])
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    encoded = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    model = cache(lambda: load_frozen_policy(source, config.training))

    def answer(batch: list[int], advance: Callable[[int], object]) -> list[Answer]:
        sampled = sample_completions(
            model(),
            [encoded[n] for n in batch],
            [row_seed(config.seed, "evaluate", prompts[n].id) for n in batch],
            config.sampling,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            batch_size=config.batch_size,
            on_done=advance,
        )
        return [
            {
                "prompt_ids": encoded[n],
                "ids": one.ids,
                "text": decode_completion(tokenizer, one.ids),
                "finished": one.finished,
                "logps": one.logps,
            }
            for n, one in zip(batch, sampled, strict=True)
        ]

    order = by_length([len(ids) for ids in encoded])
    answers: list[Answer] = in_batches(run, order, BATCHES_A_CALL * config.batch_size, answer, f"answers of {name}")
    model.cache_clear()
    gc.collect()
    return in_order(order, answers)


def add_baseline_logps(
    config: EvaluateConfig, run: Run, prompts: list[Prompt], answers: dict[str, list[Answer]]
) -> None:
    """What the baseline thinks of every policy's answers, for the KL. Policies of another tokenizer have none."""
    source = find_model(config.policies[config.baseline])
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    model = cache(lambda: load_frozen_policy(source, config.training))

    def logps(batch: list[Answer]) -> list[list[float]]:
        examples = [(answer["prompt_ids"], answer["ids"]) for answer in batch]
        temperature = config.sampling.temperature or 1.0
        pad, size = tokenizer.pad_token_id, config.batch_size
        found: list[list[float]] = completion_logps_in_batches(model(), examples, pad, size, temperature)
        return found

    compared: list[Answer] = []
    for name, own in answers.items():
        comparable = all(
            encode_prompt(tokenizer, prompt.messages) == answer["prompt_ids"]
            for prompt, answer in zip(prompts, own, strict=True)
        )
        if name != config.baseline and comparable:
            compared += own
            continue
        for answer in own:
            answer["baseline_logps"] = answer["logps"] if name == config.baseline else None
    _add(config, run, compared, "baseline_logps", logps, f"KL to {config.baseline}")
    model.cache_clear()
    gc.collect()


def add_scores(config: EvaluateConfig, run: Run, answers: dict[str, list[Answer]]) -> None:
    """The reward model's score of every answer."""
    if config.reward_model is None:
        for own in answers.values():
            for answer in own:
                answer["score"] = None
        return
    source = find_model(config.reward_model, kind="reward")
    tokenizer = load_tokenizer(source)
    model = cache(lambda: load_trained_reward_model(source, config.training))

    def scores(batch: list[Answer]) -> list[float]:
        sequences = [answer["prompt_ids"] + answer["ids"] for answer in batch]
        found: list[float] = scores_in_batches(model(), sequences, tokenizer.pad_token_id, config.batch_size)
        return found

    _add(config, run, [answer for own in answers.values() for answer in own], "score", scores, "scores")
    model.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _add(
    config: EvaluateConfig,
    run: Run,
    answers: list[Answer],
    key: str,
    measure: Callable[[list[Answer]], list[Any]],
    what: str,
) -> None:
    """Measure every answer, in batches that a crash does not undo, and keep the value under `key`.

    What all policies answered to a prompt stands together, so that the prompt is computed once for them.
    """
    order = sorted(range(len(answers)), key=lambda n: (answers[n]["prompt_ids"], n))
    values = in_batches(run, order, config.batch_size, lambda batch, _: measure([answers[n] for n in batch]), what)
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
    """A row for each completion, with all that was measured of it."""
    yardstick = Yardstick.named(config.yardstick)
    rows = []
    for name, own in answers.items():
        for prompt, answer in zip(prompts, own, strict=True):
            measured, criteria = yardstick.measure(prompt.messages[-1].content, answer["text"])
            baseline = answer["baseline_logps"]
            rows.append(
                {
                    "prompt_id": prompt.id,
                    "messages": [message.model_dump() for message in prompt.messages],
                    "policy": name,
                    "text": answer["text"],
                    "finished": answer["finished"],
                    "rubric": criteria,
                    "rubric_score": measured,
                    "score": answer["score"],
                    "kl": None if baseline is None else sum(answer["logps"]) - sum(baseline),
                    "length_tokens": len(answer["ids"]),
                    "repetition": repeated_share(answer["text"]),
                }
            )
    return rows


def to_report(config: EvaluateConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures by policy; see evaluation.compare, which prints them."""
    by_policy: dict[str, list[dict[str, Any]]] = {name: [] for name in config.policies}
    for row in rows:
        by_policy[row["policy"]].append(row)
    baseline = [row["rubric_score"] for row in by_policy[config.baseline]]
    policies = {
        name: policy_figures(own, None if name == config.baseline else baseline, config.seed)
        | named_source(config.policies[name])
        for name, own in by_policy.items()
    }
    return {
        "policies": policies,
        "baseline": config.baseline,
        "yardstick": config.yardstick,
        "sampling": config.sampling.model_dump(),
        "split": config.split,
        "kinds": kinds_behind(config),
    }


def named_source(policy: str) -> dict[str, str]:
    """What a policy is, without its path, which says nothing of it: the stage that made it, or the base's name."""
    found = find_model(policy)
    made_by = found.base if found.folder is None else str(read_manifest(found.folder.parent)["stage"])
    return {"source": made_by, "id": found.id}


def policy_figures(rows: list[dict[str, Any]], baseline: list[float] | None, seed: int) -> dict[str, Any]:
    """The figures of one policy. `baseline` holds the baseline's measure on the same prompts, in the same order."""
    measured = [row["rubric_score"] for row in rows]
    tokens = sum(row["length_tokens"] for row in rows)
    scores = [row["score"] for row in rows if row["score"] is not None]
    kl = [row["kl"] for row in rows if row["kl"] is not None]
    wins = None
    if baseline is not None:
        wins = [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(measured, baseline, strict=True)]
    criteria = rows[0]["rubric"]
    return {
        "rubric_mean": statistics.fmean(measured),
        "rubric_interval": bootstrap_interval(measured, seed),
        "criteria": {name: statistics.fmean(row["rubric"][name] for row in rows) for name in criteria},
        "win_rate_vs_sft": statistics.fmean(wins) if wins else None,
        "win_rate_interval": bootstrap_interval(wins, seed) if wins else None,
        "score_mean": statistics.fmean(scores) if scores else None,
        "score_interval": bootstrap_interval(scores, seed) if scores else None,
        "kl_per_sequence": statistics.fmean(kl) if kl else None,
        "kl_per_token": sum(kl) / tokens if kl else None,
        "length_tokens_mean": tokens / len(rows),
        "unfinished_share": statistics.fmean(not row["finished"] for row in rows),
        "repetition_mean": statistics.fmean(row["repetition"] for row in rows),
        "n_prompts": len(rows),
    }


def kinds_behind(config: EvaluateConfig) -> list[str]:
    """The kinds of judgments that any of the policies learned from."""
    kinds: set[str] = set()
    for source in [*config.policies.values(), *([config.reward_model] if config.reward_model else [])]:
        found = find_model(source, kind="reward" if source == config.reward_model else "policy")
        if found.folder is not None:
            kinds.update(read_manifest(found.folder.parent).get("kinds", []))
    return sorted(kinds)


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak evaluate`, or `python -m evaluation.evaluate`."""
    stage_main("evaluate", EvaluateConfig, evaluate, arguments)


if __name__ == "__main__":
    main()
