"""Two answers per conversation turn: the models behind the labelling app's conversation mode.

    python -m preference.answer --policies RUN RUN

Reads one JSON object per line, `id` and `messages`, and writes one: `id` and two `completions`, or `error`. Nothing else
goes to standard output. Ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from preference.configuration import AnswerConfig
from tiebreak.chat.chat import Chat
from tiebreak.config import LoadingConfig, load_config
from tiebreak.errors import TiebreakError
from tiebreak.messages import Message, content_id
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.generation import row_seed, sample_completions
from tiebreak.packed.positions import position_limit
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import quiet_upstream, settle_process
from tiebreak.records import Completion, SamplingSettings

ATTEMPTS = 5
"""Attempts to sample others when answers are equal or empty, and so cannot be compared."""


@dataclass(frozen=True)
class Policy:
    """A model that answers."""

    id: str
    model: nn.Module
    chat: Chat


class UnansweredError(TiebreakError):
    """There is no answer; the message is for the rater."""


def load_policy(name: str, trust_remote_code: bool = False) -> Policy:
    """A policy by its run folder, path, hub id or bundled:…"""
    source = find_model(name, trust_remote_code=trust_remote_code)
    training, chat = LoadingConfig(), load_chat(source)
    return Policy(source.id, load_frozen_policy(source, training), chat)


def answer_twice(
    policies: Sequence[Policy], identity: str, messages: Sequence[Message], config: AnswerConfig
) -> list[Completion]:
    """Two different answers, one from each policy, or both from a single policy.

    Raises:
        UnansweredError: the conversation is too long, or no two answers differ.
    """
    answers: list[Completion] = []
    for number in range(2):
        policy = policies[number % len(policies)]
        texts = {one.text for one in answers}
        drawn = (_draw(policy, row_seed(identity, number, n), messages, config) for n in range(ATTEMPTS))
        found = next((one for one in drawn if one.text and one.text not in texts), None)
        if found is None:
            raise UnansweredError("both answers are the same, or one is empty: rephrase your message")
        answers.append(found)
    return answers


def _draw(policy: Policy, seed: int, messages: Sequence[Message], config: AnswerConfig) -> Completion:
    prompt = policy.chat.encode_prompt(messages)
    limit = position_limit(policy.model.config)
    fits = limit is None or len(prompt) + config.sampling.max_new_tokens <= limit
    if len(prompt) > config.max_prompt_tokens or not fits:
        raise UnansweredError(f"this conversation is too long ({len(prompt)} tokens): start another")
    (sampled,) = sample_completions(
        policy.model,
        [prompt],
        [seed],
        config.sampling,
        stop_ids=policy.chat.stop_ids,
        textless_ids=policy.chat.textless_ids,
        pad_id=policy.chat.pad_id,
        batch_size=1,
    )
    answer = policy.chat.read(sampled.ids)
    return Completion(
        id=content_id("completion", answer.text, policy.id, seed),
        text=answer.text,
        policy=policy.id,
        sampling=SamplingSettings.model_validate(config.sampling.model_dump()),
        seed=seed,
        finished=answer.finished,
        ids=tuple(sampled.ids),
        tokenizer_sha256=policy.chat.tokenizer_sha256,
    )


def serve(config: AnswerConfig) -> None:
    """Answer requests line by line."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries' output must not come between the replies
    policies = [load_policy(name, config.trust_remote_code) for name in dict.fromkeys(config.policies)]
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            print(json.dumps(_reply(policies, asked, config)), file=replies, flush=True)
        except BrokenPipeError:  # the client has gone; unwritten output must not be written at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), replies.fileno())
            return


def _reply(policies: Sequence[Policy], asked: dict[str, Any], config: AnswerConfig) -> dict[str, Any]:
    messages = [Message.model_validate(one) for one in asked["messages"]]
    try:
        answers = answer_twice(policies, asked["id"], messages, config)
    except UnansweredError as error:
        return {"id": asked["id"], "error": str(error)}
    return {"id": asked["id"], "completions": [one.model_dump(mode="json") for one in answers]}


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m preference.answer`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    settle_process()
    quiet_upstream()
    exit_with_message(lambda: serve(load_config(AnswerConfig, words, "answer")))


if __name__ == "__main__":
    main()
