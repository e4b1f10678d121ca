"""What strategies measure: a reward model's scores, judges' verdicts, a policy's hidden states.

Finished batches are on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preference.selection.configuration import SelectConfig
from preference.selection.pool import Candidate
from preference.selection.strategies import Floats, disagreement, gap, judges_uncertainty
from tiebreak.data.reading import read_records
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.extras import require_training_packages
from tiebreak.measures.judges import Comparison, comparison_of
from tiebreak.records import Completion, ExportedJudgment, Judgment
from tiebreak.runs.run import Run, in_batches, read_manifest
from tiebreak.terminal import say

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat

Answer = tuple[str, str]
"""a pair's id, and a completion's"""


def scores_of(config: SelectConfig, run: Run, candidates: Sequence[Candidate]) -> Floats | None:
    """The strategy's score of every candidate, shape (candidates,); the largest is taken first. None: it has none."""
    if config.strategy == "judge_unsure":
        return by_judges(config.judges, candidates)
    if config.strategy not in ("disagreement", "margin", "largest_gap"):
        return None
    first, second = by_reward_model(config, run, candidates)
    if config.strategy == "disagreement":
        return disagreement(first, second)
    return gap(first, second) * (-1 if config.strategy == "margin" else 1)


def by_judges(sources: Sequence[str], candidates: Sequence[Candidate]) -> Floats:
    """The judges' uncertainty. Says how many candidates they did not judge: these count as the least sure.

    Raises:
        HandoffError: a source is no judge run.
        DataError: judges judged none of the candidates.
    """
    verdicts: dict[Comparison, list[Judgment]] = {}
    for source in sources:
        if (stage := read_manifest(source)["stage"]) != "judge":
            raise HandoffError(f"judges: {source} is a finished '{stage}' run: give the folder of a judge run")
        for judgment in read_records(Path(source) / "final" / "judgments.jsonl", ExportedJudgment):
            verdicts.setdefault(comparison_of(judgment), []).append(judgment)
    keys = [(one.pool_id, one.first.id, one.second.id) for one in candidates]
    if not verdicts.keys() & set(keys):
        raise DataError(f"judges: no judgment in {', '.join(sources)} is of these pairs: judge the same pool")
    if unjudged := sum(key not in verdicts for key in keys):
        say(
            f"{unjudged} of {counted(len(keys), 'pair')} are judged in none of {', '.join(sources)}: they count as those "
            "of which the judges are least sure, and are taken first"
        )
    return np.array([judges_uncertainty(verdicts.get(key, [])) for key in keys])


def by_reward_model(config: SelectConfig, run: Run, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
    """Scores of the first and the second completion by every member, each of shape (candidates, members).

    Raises:
        HandoffError: it is not a reward model, has one member where disagreement is asked for, or gives no finite score.
    """
    require_training_packages(f"strategy {config.strategy}")
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_trained_reward_model
    from tiebreak.models.tokenizers import load_chat
    from tiebreak.packed.logprobs import member_scores_in_batches

    source = find_model(config.reward_model or "", "reward", config.training.trust_remote_code)
    chat = load_chat(source)
    answers = _answers(candidates)
    # loads at the first call: a resumed run whose batches are all on disk loads nothing
    model = cache(lambda: load_trained_reward_model(source, config.training))

    def score(batch: list[Answer], _: object) -> list[list[float]]:
        sequences = [_sequence(chat, *answers[key]) for key in batch]
        scored: list[list[float]] = member_scores_in_batches(model(), sequences, chat.pad_id, len(batch))
        return scored

    rows = in_batches(run, list(answers), config.batch_size, score, "scores")
    scores = dict(zip(answers, rows, strict=True))
    if broken := sum(not all(map(math.isfinite, members)) for members in rows):
        raise HandoffError(f"{source.name} gives {broken} of {len(rows)} answers no finite score: train it again")
    if config.strategy == "disagreement" and len(rows[0]) < 2:
        raise HandoffError(
            f"strategy disagreement: {source.name} has one member, which cannot disagree: train it with members: 4, or use "
            "strategy: margin"
        )
    first, second = (np.array([scores[one.pair.id, side(one).id] for one in candidates]) for side in (_first, _second))
    return first, second


def hidden_vectors(config: SelectConfig, run: Run, candidates: Sequence[Candidate]) -> Floats:
    """The policy's representation of every candidate: its last hidden states, the mean over an answer's tokens and over
    both answers, scaled to length 1; shape (candidates, hidden)."""
    require_training_packages("diverse")
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_frozen_policy
    from tiebreak.models.tokenizers import load_chat

    source = find_model(config.policy or "", trust_remote_code=config.training.trust_remote_code)
    chat = load_chat(source, trust_remote_code=config.training.trust_remote_code)
    answers = _answers(candidates)
    model = cache(lambda: load_frozen_policy(source, config.training))

    def embed(batch: list[Answer], _: object) -> list[list[float]]:
        prompts = [chat.encode_prompt(answers[key][0].pair.messages, answers[key][0].pair.tools) for key in batch]
        return mean_states(
            model(), [_sequence(chat, *answers[key]) for key in batch], list(map(len, prompts)), chat.pad_id
        )

    rows = in_batches(run, list(answers), config.batch_size, embed, "hidden states")
    states = dict(zip(answers, map(np.asarray, rows), strict=True))
    means = np.array([states[one.pair.id, one.first.id] + states[one.pair.id, one.second.id] for one in candidates])
    vectors: Floats = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return vectors


def mean_states(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int
) -> list[list[float]]:
    """The mean of a model's last hidden states over each sequence's tokens from `starts` on, rounded for the disk."""
    import torch

    from tiebreak.packed.logprobs import pad_right
    from tiebreak.packed.parts import layers_of, whole_model

    device = next(model.parameters()).device
    ids, mask = pad_right(sequences, pad_id, device)
    with torch.no_grad():
        states = layers_of(whole_model(model))(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    steps = torch.arange(ids.shape[1], device=device)
    answered = mask.bool() & (steps >= torch.tensor(starts, device=device)[:, None])
    sums = (states.float() * answered[..., None]).sum(1) / answered.sum(1, keepdim=True).clamp(min=1)
    return [[round(value, 6) for value in row] for row in sums.tolist()]


def _answers(candidates: Iterable[Candidate]) -> dict[Answer, tuple[Candidate, Completion]]:
    """Every answer of the candidates, once per pair."""
    return {(one.pair.id, side.id): (one, side) for one in candidates for side in (one.first, one.second)}


def _first(candidate: Candidate) -> Completion:
    return candidate.first


def _second(candidate: Candidate) -> Completion:
    return candidate.second


def _sequence(chat: Chat, candidate: Candidate, completion: Completion) -> list[int]:
    """Token ids of prompt and answer: those that were drawn, if this is their tokenizer."""
    pair = candidate.pair
    if completion.ids is not None and completion.tokenizer_sha256 == chat.tokenizer_sha256:
        return [*chat.encode_prompt(pair.messages, pair.tools), *completion.ids]
    prompt, answer = chat.encode_completion(pair.messages, completion.text, completion.finished, pair.tools)
    return [*prompt, *answer]
