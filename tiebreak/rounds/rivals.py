"""The pool of a round whose pairs may come from two policies, as one run folder: the newest policy's pairs, and its
completions beside those of its rivals to the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.data.reading import read_records
from tiebreak.files import write_jsonl
from tiebreak.messages import content_id
from tiebreak.records import Pair
from tiebreak.rounds.configuration import Rival
from tiebreak.rounds.joining import clear_other_run
from tiebreak.runs.run import start_run

STAGE = "pool"
COMPLETIONS = 2
"""completions sampled from each rival per prompt"""


class PoolConfig(StageConfig):
    """What is pooled."""

    samples: list[str]
    """sample runs on the same prompts: the newest policy's, then its rivals'"""


def rivals_of(wanted: Sequence[Rival], current: str, previous: str | None, first: str) -> dict[str, str]:
    """The rivals of a round by name, each policy once, without the newest one itself.

    Args:
        previous: the policy before the newest; None in the first round.
        first: the first round's policy.
    """
    places = {"previous": previous, "sft": first, "base": base_of(first) if "base" in wanted else None}
    found: dict[str, str] = {}
    for name in wanted:
        policy = places[name]
        if policy is not None and policy != current and policy not in found.values():
            found[name] = policy
    return found


def base_of(policy: str) -> str:
    """The base model that a policy is trained on."""
    from tiebreak.models.find import find_model  # here, so that help and configuration errors answer at once

    return find_model(policy).base


def write_pool(output: Path, samples: Sequence[str], replace: bool = False) -> str:
    """Write the pool, unless it is there; returns the run's folder.

    Args:
        replace: move a folder that holds another pool aside.

    Raises:
        RunError: the folder holds another pool.
    """
    config = PoolConfig(output=str(output), samples=list(samples), tracking=TrackingConfig(mode="disabled"))
    inputs = {f"samples.{n}": source for n, source in enumerate(samples)}
    clear_other_run(config, STAGE, inputs, replace)
    with start_run(config, STAGE, inputs) as run:
        if not run.finished:
            own, *rivals = (read_records(Path(source) / "final" / "pairs.jsonl", Pair) for source in samples)
            pairs = [*own, *(pair for rival in rivals for pair in across(own, rival))]
            write_jsonl(run.final / "pairs.jsonl", pairs)
            run.facts["counts"] = {"pairs": len(pairs), "of_two_policies": len(pairs) - len(own)}
            run.finish()
    return str(run.folder)


def across(own: Sequence[Pair], rival: Sequence[Pair]) -> Iterator[Pair]:
    """Pairs of a completion by the newest policy and one by a rival to the same prompt, unless their texts are equal."""
    by_prompt: Mapping[str, Pair] = {pair.prompt_id: pair for pair in rival}
    for pair in own:
        other = by_prompt.get(pair.prompt_id)
        for both in product(pair.completions, other.completions if other is not None else ()):
            if both[0].text.strip() != both[1].text.strip():
                identity = content_id("pair", pair.prompt_id, sorted(one.id for one in both), pair.round)
                yield pair.model_copy(update={"id": identity, "completions": both})
