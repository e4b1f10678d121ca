"""Tiebreak from Python: policies that answer, reward models that score, preferences, label stores.

    from tiebreak import load_policy, load_reward_model, sample, score

    policy = load_policy("runs/quickstart/dpo")
    judge = load_reward_model("runs/quickstart/reward")
    questions = ["Why are my basil leaves pale?", "How warm may the nutrient solution be?"]
    answers = sample(policy, questions, temperature=0.7, seed=1)
    for question, answer, value in zip(questions, answers, score(judge, questions, answers)):
        print(f"{value:+.2f}  {question}  {answer.text}")

`import tiebreak` loads no torch: each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tiebreak.chat.chat import Chat
from tiebreak.config import LoadingConfig, SamplingConfig
from tiebreak.errors import DataError, HandoffError
from tiebreak.messages import Message, assistant
from tiebreak.models.find import ModelSource, find_model
from tiebreak.models.load import load_frozen_policy, load_trained_reward_model
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.generation import row_seed, sample_completions
from tiebreak.packed.logprobs import scores_in_batches
from tiebreak.packed.positions import require_positions, require_room

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Prompt = str | Sequence[Message | Mapping[str, Any]]
"""A question, or a conversation that ends before the turn to write, in OpenAI's and TRL's format."""


@dataclass(frozen=True)
class Policy:
    """A finished policy in evaluation mode, its adapter merged where that is possible."""

    source: ModelSource
    model: nn.Module
    chat: Chat


@dataclass(frozen=True)
class RewardModel:
    """A finished reward model, in evaluation mode."""

    source: ModelSource
    model: nn.Module
    chat: Chat


@dataclass(frozen=True)
class Answer:
    """What a policy wrote."""

    text: str
    finished: bool
    """False: cut off at max_new_tokens"""
    ids: tuple[int, ...]
    """the token ids that were drawn, with the end token"""
    tokenizer_sha256: str
    """hash of the tokenizer that the ids belong to"""


def load_policy(name: str, *, precision: Precision = "auto", trust_remote_code: bool = False) -> Policy:
    """A policy by its run folder, a checkpoint, a path, a hub id or bundled:NAME. Its hashes are checked.

    Args:
        precision: auto is bfloat16 where the GPU has it, float32 elsewhere.
        trust_remote_code: run the model's own Python code.

    Raises:
        RunError, ModelError, HandoffError: there is no such policy, or its files have changed.
    """
    source = find_model(name, trust_remote_code=trust_remote_code)
    loading = LoadingConfig(precision=precision, trust_remote_code=trust_remote_code)
    return Policy(source, load_frozen_policy(source, loading), load_chat(source, None, trust_remote_code))


def load_reward_model(name: str, *, precision: Precision = "auto", trust_remote_code: bool = False) -> RewardModel:
    """The reward model of a finished reward run.

    Raises:
        HandoffError: the folder holds no reward model.
        RunError, ModelError: there is no such folder, or its files have changed.
    """
    source = find_model(name, "reward", trust_remote_code)
    if source.probed is None:
        raise HandoffError(f"{name} is a base model: give the folder of a finished reward run")
    loading = LoadingConfig(precision=precision, trust_remote_code=trust_remote_code)
    return RewardModel(source, load_trained_reward_model(source, loading), load_chat(source, None, trust_remote_code))


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Answer]:
    """One answer per prompt, in order. An answer depends on its prompt's index and the seed, not on the batch.

    Args:
        temperature: 0 is greedy.
        batch_size: answers written at once; memory grows with it.

    Raises:
        ConfigError: prompt and answer together are longer than the model's positions.
        DataError: the chat template refuses a prompt.
        pydantic.ValidationError: a value is out of range, or a message is invalid.
    """
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
    chat = policy.chat
    encoded = [chat.encode_prompt(_conversation(prompt)) for prompt in prompts]
    if not encoded:
        return []
    require_room(policy.model.config, encoded, max_new_tokens)
    drawn = sample_completions(
        policy.model,
        encoded,
        [row_seed(seed, "library", number) for number in range(len(encoded))],
        sampling,
        stop_ids=chat.stop_ids,
        textless_ids=chat.textless_ids,
        pad_id=chat.pad_id,
        batch_size=batch_size,
    )
    return [
        Answer(read.text, read.finished, tuple(one.ids), chat.tokenizer_sha256)
        for one in drawn
        for read in [chat.read(one.ids)]
    ]


def score(
    model: RewardModel, prompts: Sequence[Prompt], answers: Sequence[str | Answer], *, batch_size: int = 16
) -> list[float]:
    """A score for each prompt and its answer; for an ensemble, the mean over its members.

    Scores have no unit: compare only answers to the same prompt, scored by the same model.

    Raises:
        DataError: the numbers of prompts and answers differ, or the chat template refuses a conversation.
        ConfigError: a conversation is longer than the model's positions.
    """
    if len(prompts) != len(answers):
        raise DataError(f"{len(answers)} answers to {len(prompts)} prompts: give one for each")
    sequences = [_sequence(model.chat, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    if not sequences:
        return []
    require_positions(model.model.config, max(map(len, sequences)), "the longest conversation")
    return list(scores_in_batches(model.model, sequences, model.chat.pad_id, batch_size))


def _sequence(chat: Chat, prompt: Prompt, answer: str | Answer) -> list[int]:
    if isinstance(answer, str):
        written = chat.encode_side(_conversation(prompt), assistant(answer))
    else:
        written = chat.encode_side(
            _conversation(prompt),
            assistant(answer.text),
            answer.finished,
            ids=answer.ids or None,
            tokenizer_sha256=answer.tokenizer_sha256,
        )
    return written.prompt + written.completion


def _conversation(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return [Message.model_validate(one) for one in prompt]


__all__ = ["Answer", "Policy", "RewardModel", "load_policy", "load_reward_model", "sample", "score"]
