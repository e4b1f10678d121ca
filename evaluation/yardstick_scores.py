"""The yardsticks of `yardsticks:`, measured on every policy's answers.

A yardstick that fails on a row is reported, and the row has no value. A row on which the first yardstick (that of the
verdicts) fails is left out for every policy, so that its figures are all of the same prompts.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from evaluation.configuration import EvaluateConfig
from tiebreak.chat.chat import Chat
from tiebreak.data.judgments import of_people, read_judgments
from tiebreak.data.reading import Rules, read_demonstrations
from tiebreak.errors import DataError, HandoffError, TiebreakError, counted
from tiebreak.hashing import hash_file
from tiebreak.measures.compared import answer_id, pairs_of, share_against, share_unasked, shares_won
from tiebreak.measures.functions import where_raised
from tiebreak.measures.yardstick import KEPT, shortened
from tiebreak.measures.yardsticks.inputs import Values, YardstickInput
from tiebreak.measures.yardsticks.registry import Measure, build_measure
from tiebreak.messages import split_key
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.readers import Reader, build_reader
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.logprobs import completion_logps_in_batches
from tiebreak.records import Judgment, Pair, Prompt
from tiebreak.runs.cache import cached_batches
from tiebreak.runs.run import Run
from tiebreak.shipped import find_shipped
from tiebreak.terminal import say

Answer = dict[str, Any]
References = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Failure:
    """A yardstick that failed on the answers of a policy to a prompt."""

    yardstick: str
    policy: str
    prompt_id: str
    message: str


def find_measures(config: EvaluateConfig) -> list[Measure]:
    """The yardsticks of the configuration, in its order, with their files read; [] if it has the one `yardstick`."""
    found = [build_measure(named, config.config_folder) for named in config.named_yardsticks]
    return [replace(one, title=_judged_title(one)) if one.named.entry.of == "pairs" else one for one in found]


def read_references(config: EvaluateConfig, run: Run, prompts: Sequence[Prompt]) -> References:
    """The reference answers by `split_key` of their prompt.

    Raises:
        DataError: none is of an evaluated prompt.
    """
    if config.references is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for one in read_demonstrations(config.references, Rules.of(run)):
        key = split_key(one.prompt.messages, one.prompt.tools)
        found[key] = (*found.get(key, ()), one.answer.text)
    covered = sum(split_key(prompt.messages, prompt.tools) in found for prompt in prompts)
    if not covered:
        raise DataError(
            f"references: {config.references} has no answer to any of the {len(prompts)} evaluated prompts: give "
            "demonstrations of the same prompts"
        )
    if covered < len(prompts):
        say(f"{counted(len(prompts) - covered, 'prompt')} of {len(prompts)} without a reference")
    return found


def add_yardsticks(
    config: EvaluateConfig,
    run: Run,
    measures: Sequence[Measure],
    drawn: Sequence[Prompt],
    answers: Mapping[str, list[Answer]],
    references: References,
) -> list[Failure]:
    """Give every answer its values, as `yardsticks`: name → value or None.

    Args:
        drawn: the prompt of each answer.
    """
    failures: list[Failure] = []
    for answer in chain.from_iterable(answers.values()):
        answer["yardsticks"] = {}
    for (name, own), measure in product(answers.items(), measures):
        if measure.function is not None:
            failures += _measure_texts(config, run, measure, name, drawn, own, references)
        elif measure.named.entry.of == "reward":
            _take_scores(measure, own)
    for measure in measures:
        if measure.named.entry.of == "model":
            failures += _measure_by_model(config, run, measure, drawn, answers, references)
        elif measure.named.entry.of == "pairs":
            compare_answers(run, measure, drawn, answers, config)
    for model in dict.fromkeys(one.named.argument for one in measures if one.named.entry.of == "logps"):
        failures += _measure_logps(config, run, measures, model, drawn, answers)
    say_failures(measures, failures)
    return failures


def _take_scores(measure: Measure, answers: Sequence[Answer]) -> None:
    """The reward model's scores, which the answers have already."""
    for answer in answers:
        answer["yardsticks"][measure.source] = answer["score"]


def say_failures(measures: Sequence[Measure], failures: Sequence[Failure]) -> None:
    """Print a line for each yardstick that failed somewhere."""
    for measure in measures:
        own = [one for one in failures if one.yardstick == measure.source]
        if own:
            say(
                f"the yardstick {measure.source} failed on {counted(len(own), 'row')}, which have no value; the first: "
                f"{own[0].message}"
            )


# --- from texts ---


def _measure_texts(
    config: EvaluateConfig,
    run: Run,
    measure: Measure,
    policy: str,
    drawn: Sequence[Prompt],
    own: Sequence[Answer],
    references: References,
) -> list[Failure]:
    """All answers to a prompt together."""
    each = config.samples_per_prompt
    groups = [list(range(at, at + each)) for at in range(0, len(drawn), each)]
    asked = [
        YardstickInput(prompt, references.get(split_key(prompt.messages, prompt.tools), ()))
        for prompt in (drawn[group[0]] for group in groups)
    ]
    identity = _identity(measure)

    def texts(group: int) -> list[str]:
        return [own[n]["text"] for n in groups[group]]

    def compute(batch: list[int], _: object) -> list[dict[str, Any]]:
        return [_try(measure, asked[group], texts(group)) for group in batch]

    def parts(batch: list[int]) -> object:
        inputs = [[asked[g].prompt.model_dump(mode="json"), asked[g].references, texts(g)] for g in batch]
        return ["yardstick", measure.source, identity, inputs]

    what = _file_name(f"{measure.source} of {policy} {identity[:8]}")
    title = f"{measure.source} of {policy}"
    found = cached_batches(run, list(range(len(groups))), config.batch_size, compute, what, parts, title)
    failures = []
    for group, result in zip(groups, found, strict=True):
        for n, value in zip(group, result["values"], strict=True):
            own[n]["yardsticks"][measure.source] = value
        if result["failure"]:
            failures.append(Failure(measure.source, policy, drawn[group[0]].id, result["failure"]))
    return failures


def _try(measure: Measure, asked: YardstickInput, answers: list[str]) -> dict[str, Any]:
    assert measure.function is not None
    try:
        values: Values = measure.function(asked, answers)
    except TiebreakError as error:
        return {"values": [None] * len(answers), "failure": str(error).removesuffix(f". {KEPT}")}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's function raises
        message = f"{type(error).__name__}: {error} ({where_raised(measure.function, error)})"
        return {"values": [None] * len(answers), "failure": f"{message} on prompt {asked.prompt.id}"}
    return {"values": [value if value is None else float(value) for value in values], "failure": ""}


def _identity(measure: Measure) -> str:
    """Further input of a yardstick's values: the content of its file."""
    file = measure.users.function.file if measure.users else measure.named.file
    path = find_shipped(Path(file)) if file else None
    return hash_file(path) if path is not None and path.is_file() else ""


def _file_name(words: str) -> str:
    return "".join(letter if letter.isalnum() or letter in " ._-" else "." for letter in words)[:120]


# --- from a model that reads texts ---


def _measure_by_model(
    config: EvaluateConfig,
    run: Run,
    measure: Measure,
    drawn: Sequence[Prompt],
    answers: Mapping[str, list[Answer]],
    references: References,
) -> list[Failure]:
    """Every text once; None where the yardstick needs references and there are none."""
    named = measure.named
    texts: dict[tuple[str, tuple[str, ...]], float | None] = {}
    rows: list[tuple[Answer, tuple[str, tuple[str, ...]]]] = []
    for own in answers.values():
        for prompt, answer in zip(drawn, own, strict=True):
            wanted = references.get(split_key(prompt.messages, prompt.tools), ()) if named.entry.needs else ()
            rows.append((answer, (answer["text"], wanted)))
            if wanted or not named.entry.needs:
                texts.setdefault((answer["text"], wanted), None)
    reader: list[Reader] = []

    def compute(batch: list[Any], _: object) -> list[float]:
        if not reader:
            reader.append(build_reader(named.name, named.argument, config.training))
        return [reader[0].measure(text, wanted) for text, wanted in batch]

    identity = [named.source.partition("#")[2], run.inputs[f"yardstick_model_{named.model}"].id]

    def parts(batch: list[Any]) -> object:
        return [named.name, identity, config.training.model_dump(mode="json"), batch]

    keys = sorted(texts)
    found = cached_batches(run, keys, config.batch_size, compute, _file_name(named.source), parts) if keys else []
    texts.update(zip(keys, found, strict=True))
    for answer, key in rows:
        answer["yardsticks"][measure.source] = texts.get(key)
    return []


# --- from judgments of pairs ---


def pairs_to_judge(
    config: EvaluateConfig, run: Run, drawn: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]
) -> list[Pair]:
    """The pairs of every policy's answers and the baseline's, in an order that does not show the policy."""
    ids, texts = _policy_ids(config, run), {name: [one["text"] for one in own] for name, own in answers.items()}
    baseline = config.baseline
    found = {
        pair.id: pair
        for name in answers
        if name != baseline
        for pair in pairs_of(drawn, texts[name], texts[baseline], (ids[name], ids[baseline]))
    }
    return [found[identity] for identity in sorted(found)]


def _policy_ids(config: EvaluateConfig, run: Run) -> dict[str, str]:
    return {name: run.inputs[f"policy_{name}"].id for name in config.policies}


def compare_answers(
    run: Run,
    measure: Measure,
    drawn: Sequence[Prompt],
    answers: Mapping[str, list[Answer]],
    config: EvaluateConfig,
) -> None:
    """Give every answer the share of its judged comparisons that it won; a policy's against the baseline is also under
    `won`, from which its win rate comes. Equal answers are a tie, and an empty one loses to any other; neither is judged.

    Raises:
        DataError: the folder has no judgment of these answers.
    """
    folder, ids, source = measure.named.argument, _policy_ids(config, run), measure.source
    won = shares_won(_judgments(measure))
    base, found = answers[config.baseline], 0
    against: list[list[float]] = [[] for _ in base]
    for name, own in answers.items():
        if name == config.baseline:
            continue
        for n, (prompt, mine, theirs) in enumerate(zip(drawn, own, base, strict=True)):
            keys = [
                answer_id(prompt, ids[which], one["text"]) for which, one in ((name, mine), (config.baseline, theirs))
            ]
            share = share_against(won, *keys)
            found += share is not None
            if share is None:
                share = share_unasked(mine["text"], theirs["text"])
            mine["yardsticks"][source] = share
            mine.setdefault("won", {})[source] = share
            against[n] += [] if share is None else [1 - share]
    for answer, shares in zip(base, against, strict=True):
        answer["yardsticks"][source] = statistics.fmean(shares) if shares else None
    if not found:
        models = measure.named.name == "judge"
        who = "a model judge's" if models else "people's"
        raise DataError(
            f"yardsticks: {source}: {folder} has no {who} judgment of these answers: judge the pairs that this evaluation "
            f"writes without that yardstick (tiebreak {'judge' if models else 'label'} --pairs RUN), and give their folder"
        )


def _judgments(measure: Measure) -> list[Judgment]:
    """The folder's judgments of a model judge; or of people, and of simulated raters only where no person judged."""
    folder = measure.named.argument
    found = read_judgments(folder) if (Path(folder) / "final" / "judgments.jsonl").is_file() else []
    models = [one for one in found if one.kind == "model"]
    return [one.judgment for one in (models if measure.named.name == "judge" else of_people(found))]


def _judged_title(measure: Measure) -> str:
    """The title, which names simulated raters where they judged instead of people."""
    simulated = any(one.kind == "simulated" for one in _judgments(measure))
    return measure.title.replace("people", "simulated raters", 1) if simulated else measure.title


# --- from a model's log-probabilities ---


def _measure_logps(
    config: EvaluateConfig,
    run: Run,
    measures: Sequence[Measure],
    model: str,
    drawn: Sequence[Prompt],
    answers: Mapping[str, list[Answer]],
) -> list[Failure]:
    """Perplexity and bits per byte of the answers under one model, as its own template renders them."""
    named = model or config.policies[config.baseline]
    trust = config.training.trust_remote_code
    source = find_model(named, trust_remote_code=trust)
    chat = load_chat(source, config.chat, trust)
    wanted = [one for one in measures if one.named.entry.of == "logps" and one.named.argument == model]
    examples, failures = _encode_all(chat, wanted, drawn, answers)
    loaded: list[Any] = []

    def compute(batch: list[int], _: object) -> list[list[float]]:
        if not loaded:
            loaded.append(load_frozen_policy(source, config.training))
        chosen = [examples[n][1] for n in batch]
        logps: list[list[float]] = completion_logps_in_batches(loaded[0], chosen, chat.pad_id, config.batch_size)
        return logps

    identity = run.inputs[f"yardstick_model_{model}" if model else f"policy_{config.baseline}"].id

    def parts(batch: list[int]) -> object:
        return ["logps", identity, config.training.model_dump(mode="json"), [examples[n][1] for n in batch]]

    order = sorted(range(len(examples)), key=lambda n: (examples[n][1], n))
    what = _file_name(f"log-probabilities under {named}")
    for n, logps in zip(
        order, cached_batches(run, order, config.batch_size, compute, what, parts) if order else [], strict=True
    ):
        answer = examples[n][0]
        for one in wanted:
            answer["yardsticks"][one.source] = _of_logps(one.named.name, logps, answer["text"])
    loaded.clear()
    gc.collect()
    return failures


def _encode_all(
    chat: Chat, wanted: Sequence[Measure], drawn: Sequence[Prompt], answers: Mapping[str, list[Answer]]
) -> tuple[list[tuple[Answer, tuple[list[int], list[int]]]], list[Failure]]:
    """(the answers with text, as the model reads them; those that its template refuses). All start without a value."""
    failures: list[Failure] = []
    examples = []
    for policy, own in answers.items():
        for prompt, answer in zip(drawn, own, strict=True):
            answer["yardsticks"] |= {one.source: None for one in wanted}
            try:
                encoded = _encode(chat, prompt, answer)
            except TiebreakError as error:
                failures += [Failure(one.source, policy, prompt.id, str(error)) for one in wanted]
                continue
            if encoded[1] and answer["text"]:
                examples.append((answer, encoded))
    return examples, failures


def _encode(chat: Chat, prompt: Prompt, answer: Answer) -> tuple[list[int], list[int]]:
    """Prompt and answer as a model reads them: the ids that were drawn, if it reads them as the same texts."""
    drawn = answer["prompt_ids"], answer["ids"]
    same_prompt = chat.encode_prompt(prompt.messages, prompt.tools) == drawn[0]
    if same_prompt and chat.decode_completion(drawn[1]) == answer["text"]:
        return drawn
    return chat.encode_completion(prompt.messages, answer["text"], answer["finished"], prompt.tools)


def _of_logps(name: str, logps: Sequence[float], text: str) -> float:
    """Perplexity a token, e^(−mean), or bits a byte of UTF-8; the end of the answer counts as a token.

    >>> round(_of_logps("perplexity", [math.log(0.5), math.log(0.125)], "ab"), 6)
    4.0
    >>> _of_logps("bits_per_byte", [math.log(0.5), math.log(0.125)], "ab")
    2.0
    """
    total = math.fsum(logps)
    if name == "perplexity":
        return math.exp(min(-total / len(logps), 700.0))
    return -total / math.log(2) / len(text.encode())


# --- the first yardstick ---


def leave_out_unmeasured(
    measures: Sequence[Measure],
    drawn: Sequence[Prompt],
    answers: dict[str, list[Answer]],
    failures: Sequence[Failure],
    baseline: str,
) -> list[Prompt]:
    """The prompts, as `drawn`, that the first yardstick measured for every policy; answers to others are removed.

    Every answer gets `measured`, as of a single yardstick. Where that is the share of judgments against the baseline, the
    baseline's own is one half: what an answer would get against itself.

    Raises:
        HandoffError: none is left.
    """
    first = measures[0]
    compares = first.named.entry.of == "pairs"
    for answer in answers[baseline] if compares else ():
        answer["yardsticks"][first.source] = 0.5
    missing = {
        prompt.id
        for own in answers.values()
        for prompt, answer in zip(drawn, own, strict=True)
        if answer["yardsticks"].get(first.source) is None
    }
    kept = [n for n, prompt in enumerate(drawn) if prompt.id not in missing]
    if not kept:
        unasked = "no prompt has a judgment of each" if compares else "it applies to none of them"
        why = next((one.message for one in failures if one.yardstick == first.source), unasked)
        raise HandoffError(f"the first yardstick, {first.source}, measured no prompt for all policies: {why}")
    if missing:
        say(f"{counted(len(missing), 'prompt')} left out: the first yardstick, {first.source}, has no value for them")
    for name, own in answers.items():
        answers[name] = [own[n] for n in kept]
        for n, answer in zip(kept, answers[name], strict=True):
            question = drawn[n].messages[-1].text
            criteria = first.users.criteria_of(question, answer["text"]) if first.users else {}
            answer["measured"] = {"value": answer["yardsticks"][first.source], "criteria": criteria}
    return [drawn[n] for n in kept]


def facts(measures: Sequence[Measure], failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """The yardsticks' part of report.json."""
    rows = []
    for one in measures:
        own = [failure for failure in failures if failure.yardstick == one.source]
        row: dict[str, Any] = {"source": one.source, "title": one.title, "better": one.better, "scale": one.scale}
        if own:
            row |= {"failed": len(own), "first_failure": shortened(own[0].message, 400)}
        rows.append(row)
    return rows
