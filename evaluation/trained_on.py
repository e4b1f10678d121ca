"""No policy may have been trained on the prompts that measure it, whichever file they were read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from evaluation.configuration import EvaluateConfig
from tiebreak.data.reading import FINAL_NAMES, Rules, is_run, read, read_edits, read_own, read_prompts
from tiebreak.data.splits import VALIDATION_SHARE, assign
from tiebreak.errors import DataError, TiebreakError
from tiebreak.messages import split_key
from tiebreak.models.find import ModelSource, find_model
from tiebreak.records import Demonstration, LabelledAnswer, Preference, Prompt, RecordKind
from tiebreak.runs.chain import InputFinder, manifest_chain
from tiebreak.runs.run import RUN_FILE, Run, read_run_file
from tiebreak.stages import find_stage
from tiebreak.terminal import say

Record = Mapping[str, Any]
"""a manifest, or what run.json says"""


def leave_out_trained_on(config: EvaluateConfig, run: Run, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that no policy was trained on.

    Raises:
        DataError: some were trained on, and none may be dropped; or none is left.
    """
    if config.split == "train":
        return list(prompts)
    learned: dict[str, str] = {}
    for name, policy in config.policies.items():
        found = find_model(policy, trust_remote_code=config.training.trust_remote_code)
        for where, record in made_by(found):
            _refuse_the_same_file(config, run, prompts, name, where, record)
            for key in _trained_prompts(run, where, record):
                learned.setdefault(key, f"{where}, from which policy {name} comes")
    fresh = [prompt for prompt in prompts if split_key(prompt.messages, prompt.tools) not in learned]
    if len(fresh) == len(prompts):
        return fresh
    first = next(prompt for prompt in prompts if split_key(prompt.messages, prompt.tools) in learned)
    summary = (
        f"{len(prompts) - len(fresh)} of {len(prompts)} of {config.prompts} were trained on by "
        f"{learned[split_key(first.messages, first.tools)]}, such as {first.messages[-1].text[:60]!r}"
    )
    if config.on_bad_row == "refuse" or not fresh:
        remedy = "give others" if not fresh else "give others, or leave them out with on_bad_row: drop"
        raise DataError(f"prompts: {summary}: {remedy}")
    run.facts["prompts_trained_on"] = len(prompts) - len(fresh)
    say(f"{summary}: left out (on_bad_row: drop)")
    return fresh


def made_by(policy: ModelSource) -> list[tuple[str, Record]]:
    """(folder, record) of the runs that a policy comes from, of those that still exist."""
    if policy.folder is None:
        return []
    if policy.stage is not None:  # a run that was copied alone can be evaluated too
        return list(manifest_chain(policy.folder.parent, as_far_as_known=True))
    run = policy.folder.parent.parent
    is_checkpoint = policy.folder.parent.name == "checkpoints" and (run / RUN_FILE).is_file()
    return [(str(run), read_run_file(run))] if is_checkpoint else []


def _refuse_the_same_file(
    config: EvaluateConfig, run: Run, prompts: Sequence[Prompt], name: str, where: str, record: Record
) -> None:
    """A training file of one of the policy's runs, given to evaluation: only its held-out prompts can be used.

    Raises:
        DataError: some of the prompts are of its train split.
    """
    if is_run(config.prompts) or run.inputs["prompts"].id not in [one["id"] for one in record["inputs"].values()]:
        return
    share = record["config"].get("validation_share", VALIDATION_SHARE)
    source, held_out = config.prompts, f"--split validation --validation-share {share:g}"
    if record["stage"] == "prepare":
        source, held_out = where, f"--prompts {where}"
    asked = {split_key(prompt.messages, prompt.tools) for prompt in prompts}
    rules = dataclasses.replace(Rules.of(run), validation_share=share)
    trained = read_prompts(source, ["train"], rules)
    learned = asked & {split_key(prompt.messages, prompt.tools) for prompt in trained}
    if learned:
        raise DataError(
            f"prompts: {len(learned)} of {len(asked)} of {config.prompts} are in the train split of {where}, from which "
            f"policy {name} comes: {held_out} takes those that it held out"
        )


def _trained_prompts(run: Run, where: str, record: Record) -> Iterator[str]:
    """`split_key` of each prompt that a run trained a policy on, of the inputs that still exist."""
    if find_stage(record["stage"]).makes != "policy":
        return
    for name, recorded in record["inputs"].items():
        if name not in FINAL_NAMES or recorded["kind"] not in ("run", "file", "data"):
            continue
        if recorded["id"] == run.inputs["prompts"].id:  # its own splits hold
            continue
        place = InputFinder().find(where, record, recorded).place
        if place is not None:
            yield from _train_split(place, _kind_of(name, record["config"]), record["config"])


def _kind_of(name: str, config: Mapping[str, Any]) -> RecordKind:
    """What a stage reads an input as. KTO's preferences are answers, also of prompts without a preferred one."""
    return "answers" if name == "preferences" and config.get("algorithm") == "kto" else cast(RecordKind, name)


def _train_split(source: str, wanted: RecordKind, config: Mapping[str, Any]) -> Iterator[str]:
    share = config.get("validation_share", VALIDATION_SHARE)
    try:
        if Path(source).is_dir() and is_run(source):
            edits = read_edits(source) if config.get("use_edits") else []
            keyed = [(split_key(*_asked(one)), _split(one)) for one in (*read_own(source, wanted), *edits)]
        else:
            drafts = read(source, wanted, Rules(config.get("columns") or {}, "drop", share)).drafts
            keyed = [(draft.prompt, draft.split) for draft in drafts]
        splits = assign([("", key, split) for key, split in keyed], share)
    except TiebreakError as error:
        say(f"{source} cannot be read again, so it is not known what was trained on: {str(error).splitlines()[0]}")
        return
    yield from (key for (key, _), split in zip(keyed, splits, strict=True) if split == "train")


def _asked(record: Prompt | Demonstration | Preference | LabelledAnswer) -> tuple[Any, Any]:
    if isinstance(record, (Preference, LabelledAnswer)):
        return record.prompt, record.tools
    prompt = record.prompt if isinstance(record, Demonstration) else record
    return prompt.messages, prompt.tools


def _split(record: Prompt | Demonstration | Preference | LabelledAnswer) -> Any:
    return record.prompt.split if isinstance(record, Demonstration) else record.split
