"""Sample several completions per prompt from a policy, and write them as pairs to judge.

    tiebreak sample --config configs/quickstart/sample.yaml

A row's seed comes from the run's seed, its prompt and its number, so the same command samples the same completions, also
after a crash. Identical completions of a prompt are merged; a prompt left with one completion gives no pair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from preference import probe
from preference.configuration import SampleConfig
from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import encode_each
from tiebreak.command.launch import stage_main
from tiebreak.config import SamplingConfig
from tiebreak.data.reading import DEFAULT, Rules, read_prompts
from tiebreak.data.synthetic import synthetic_marks
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.files import write_json, write_jsonl
from tiebreak.messages import content_id
from tiebreak.models.find import ModelSource, find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.generation import BATCHES_A_CALL, SampledCompletion, row_seed, sample_completions
from tiebreak.packed.positions import require_room
from tiebreak.records import Completion, Pair, Prompt, SamplingSettings
from tiebreak.runs.run import Run, clear_partial, in_batches, start_run, that_drops
from tiebreak.serving.completions import Server, checked
from tiebreak.terminal import is_main_process, say
from tiebreak.tracking.recorder import tracked


def sample(config: SampleConfig) -> None:
    """The stage."""
    with start_run(config, "sample") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        prompts = choose_prompts(config, Rules.of(run))
        source = find_model(config.policy, trust_remote_code=config.training.trust_remote_code)
        chat = load_chat(source, config.chat, config.training.trust_remote_code)
        encoded = encode_prompts(run, config, chat, prompts)
        prompts = [prompt for prompt in prompts if prompt.id in encoded]
        draw = sampler_of(config, chat, source, encoded)
        drawn = draw_completions(run, config, chat, source.id, draw, encoded)
        if not is_main_process():
            return
        pairs, left_out = to_pairs(prompts, drawn, config)
        if not pairs:
            raise DataError("no prompt has two different completions: raise sampling.temperature")
        write_jsonl(run.final / "pairs.jsonl", pairs)
        counts = {"prompts": len(prompts), "completions": len(drawn), "pairs": len(pairs), **left_out}
        counts |= count_drawn(chat, prompts, drawn)
        write_json(run.final / "report.json", {"counts": counts})
        run.facts["counts"] = counts
        run.finish()
        clear_partial(run)
        made = f"{counted(len(pairs), 'pair')} from {counted(len(prompts), 'prompt')}"
        say(f"{made} and {counted(len(drawn), 'completion')}{_remarks(counts)}")


_REMARKS = {
    "unfinished": "completions cut off at max_new_tokens",
    "identical_or_empty": "completions identical or empty",
    "prompts_without_pair": "prompts without a pair",
    "other_tokens_from_text": "completions whose text has other token ids than were drawn",
}


def _remarks(counts: Mapping[str, int]) -> str:
    remarks = [f"{counts[name]} {words}" for name, words in _REMARKS.items() if counts[name]]
    return f"; {', '.join(remarks)}" if remarks else ""


def encode_prompts(run: Run, config: SampleConfig, chat: Chat, prompts: list[Prompt]) -> dict[str, list[int]]:
    """Token ids by prompt id, for the prompts that the chat template accepts.

    Raises:
        DataError: prompts are too long, or cannot be rendered and dropping is off.
    """
    each = encode_each(
        prompts, lambda prompt: chat.encode_prompt(prompt.messages, prompt.tools), "prompts", that_drops(run)
    )
    encoded = {prompt.id: ids for prompt, ids in each}
    too_long = [f"{name}: {len(ids)} tokens" for name, ids in encoded.items() if len(ids) > config.max_prompt_tokens]
    if too_long:
        raise DataError(
            f"{counted(len(too_long), 'prompt')} longer than max_prompt_tokens ({config.max_prompt_tokens}): raise it, or "
            "drop them in prepare",
            too_long,
        )
    return encoded


Sampler = Callable[..., list[SampledCompletion]]
"""of prompts, seeds and settings, with `on_done`; see `sample_completions`"""


def sampler_of(config: SampleConfig, chat: Chat, source: ModelSource, encoded: Mapping[str, list[int]]) -> Sampler:
    """Our sampler, with the policy loaded; or a vLLM server that holds it."""
    ends: dict[str, Any] = {"stop_ids": chat.stop_ids, "textless_ids": chat.textless_ids}
    if config.vllm is not None:
        server = Server(config.vllm, source.name)
        ask = checked(server, lambda: load_frozen_policy(source, config.training), chat.pad_id, config.batch_size)
        return partial(ask, **ends)
    model = load_frozen_policy(source, config.training)
    require_room(model.config, encoded.values(), max(setting.max_new_tokens for setting in config.sampling))
    return partial(sample_completions, model, pad_id=chat.pad_id, batch_size=config.batch_size, **ends)


def draw_completions(
    run: Run,
    config: SampleConfig,
    chat: Chat,
    policy: str,
    sampler: Sampler,
    encoded: Mapping[str, list[int]],
) -> dict[tuple[str, int], Completion]:
    """The completions by prompt id and number, one setting after another; batches on disk are not sampled again.

    Args:
        policy: the id that completions carry.
        encoded: token ids by prompt id.
    """
    drawn: dict[tuple[str, int], Completion] = {}
    for number in range(min(len(config.sampling), config.completions_per_prompt)):
        setting = config.sampling[number]
        numbers = range(number, config.completions_per_prompt, len(config.sampling))
        keys = sorted(((p, n) for p in encoded for n in numbers), key=lambda key: (len(encoded[key[0]]), key))

        def draw(
            batch: list[tuple[str, int]], advance: Callable[[int], object], setting: SamplingConfig = setting
        ) -> list[dict[str, Any]]:
            sampled = sampler(
                [encoded[identity] for identity, _ in batch],
                [row_seed(config.seed, config.round, identity, n) for identity, n in batch],
                setting,
                on_done=advance,
            )
            return [to_row(chat, one) for one in sampled]

        rows = in_batches(
            run, keys, BATCHES_A_CALL * config.batch_size, draw, f"sampling {number + 1} of {len(config.sampling)}"
        )
        for (identity, n), row in zip(keys, rows, strict=True):
            drawn[identity, n] = to_completion(identity, n, row, policy, setting, config, chat)
    return drawn


def count_drawn(chat: Chat, prompts: list[Prompt], drawn: Mapping[tuple[str, int], Completion]) -> dict[str, int]:
    """Number of cut-off completions, and of those whose text has other token ids than were sampled."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return {
        "unfinished": sum(not completion.finished for completion in drawn.values()),
        "other_tokens_from_text": sum(
            not is_written_alike(chat, by_id[identity], completion) for (identity, _), completion in drawn.items()
        ),
    }


def choose_prompts(config: SampleConfig, rules: Rules = DEFAULT) -> list[Prompt]:
    """The prompts of the wanted splits, ordered by a hash of their ids, with the splits evenly interleaved, limited to
    `max_prompts`.

    Raises:
        DataError: there are none, or the test split is requested.
    """
    if "test" in config.splits:
        raise DataError("splits: test prompts are for the final figures; sample from train and validation")
    prompts = read_prompts(config.prompts, config.splits, rules)
    if not prompts:
        raise DataError(f"{config.prompts} has no prompts in {' or '.join(config.splits)}")
    places: list[tuple[float, str, Prompt]] = []
    for split in dict.fromkeys(config.splits):
        inside = {content_id("sample", config.seed, p.id): p for p in prompts if p.split == split}
        places += [((n + 0.5) / len(inside), rank, inside[rank]) for n, rank in enumerate(sorted(inside))]
    return [prompt for _, _, prompt in sorted(places, key=lambda place: place[:2])][: config.max_prompts]


def to_row(chat: Chat, sampled: SampledCompletion) -> dict[str, Any]:
    """A sampled row for the disk: the answer without its thought, and all ids unless thoughts are dropped."""
    answer = chat.read(sampled.ids)
    dropped = chat.settings.thinking == "drop" and answer.reasoning is not None
    return {"text": answer.text, "finished": answer.finished, "ids": None if dropped else sampled.ids}


def is_written_alike(chat: Chat, prompt: Prompt, completion: Completion) -> bool:
    """Whether an answer's text encodes to the sampled ids: otherwise only the ids can be trained on."""
    if completion.ids is None:
        return True
    try:
        written = chat.encode_completion(prompt.messages, completion.text, completion.finished, prompt.tools)
    except HandoffError:
        return False
    return written[1] == list(completion.ids)


def to_completion(
    identity: str,
    number: int,
    row: dict[str, Any],
    policy: str,
    setting: SamplingConfig,
    config: SampleConfig,
    chat: Chat,
) -> Completion:
    """A sampled row as a record."""
    seed = row_seed(config.seed, config.round, identity, number)
    return Completion(
        id=content_id("completion", identity, row["text"], policy, seed),
        text=row["text"],
        policy=policy,
        sampling=SamplingSettings.model_validate(setting.model_dump()),
        seed=seed,
        finished=row["finished"],
        ids=tuple(row["ids"]) if row["ids"] else None,
        tokenizer_sha256=chat.tokenizer_sha256 if row["ids"] else None,
    )


def to_pairs(
    prompts: list[Prompt], drawn: dict[tuple[str, int], Completion], config: SampleConfig
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs of different completions, and counts of what was left out: identical or empty completions, single prompts."""
    pairs, counts = [], {"identical_or_empty": 0, "prompts_without_pair": 0}
    for prompt in prompts:
        different: dict[str, Completion] = {}
        for number in range(config.completions_per_prompt):
            completion = drawn[prompt.id, number]
            if completion.text.strip() and completion.text.strip() not in different:
                different[completion.text.strip()] = completion
            else:
                counts["identical_or_empty"] += 1
        if len(different) < 2:
            counts["prompts_without_pair"] += 1
            continue
        completions = tuple(different.values())
        pairs.append(
            Pair(
                id=content_id("pair", prompt.id, sorted(c.id for c in completions), config.round),
                prompt_id=prompt.id,
                messages=prompt.messages,
                completions=completions,
                tools=prompt.tools,
                round=config.round,
                split=prompt.split,
                tags=synthetic_marks(prompt.tags),
            )
        )
    return pairs, counts


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak sample`, or `python -m preference.sample`; `--probe RUN` is preference.probe."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["probe"], ["--probe"]):
        probe.main(words[1:])
        return
    stage_main("sample", SampleConfig, sample, arguments)


if __name__ == "__main__":
    main()
