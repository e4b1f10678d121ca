"""Judges on this machine: a function, a reward model, a language model by letters or by a written verdict.

A function and a reward model measure each answer by itself, so the order does not matter; both orders are judged
nevertheless. Finished batches are on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from evaluation.judging.configuration import JudgeConfig
from evaluation.judging.questions import TOO_LONG, Instruction, Question, Reply, read_verdict, reply_of_probability
from tiebreak.errors import HandoffError, counted
from tiebreak.extras import require_training_packages
from tiebreak.measures.yardstick import Yardstick, find_yardstick, shortened
from tiebreak.messages import Message
from tiebreak.records import MAX_STRENGTH
from tiebreak.runs.run import Run, in_batches

if TYPE_CHECKING:
    from torch import nn

    from tiebreak.chat.chat import Chat

Rows = list[dict[str, Any]]


class FunctionJudge:
    """Prefers the answer with the larger value of a yardstick."""

    prompt_version = ""

    def __init__(self, config: JudgeConfig, _: Instruction) -> None:
        self.config = config
        self.yardstick: Yardstick = find_yardstick(config.function or "", config.config_folder, "function")
        self.model, self.model_id = self.yardstick.source, ""

    def ask(self, run: Run, questions: Sequence[Question], what: str) -> list[Reply]:
        """The replies, in order."""
        size = self.config.batch_size
        answers = in_batches(run, list(questions), size, lambda batch, _: [self._answer(one) for one in batch], what)
        return [Reply(answer) for answer in answers]

    def _answer(self, question: Question) -> int:
        asked = question.pair.messages[-1].text
        left, right = (
            self.yardstick.measure(asked, one.text, f"completion {one.id} ({shortened(one.text)!r})").value
            for one in (question.left, question.right)
        )
        return answer_of_difference(right - left, self.config.tie_threshold, self.config.strength_step)


def answer_of_difference(difference: float, tie_threshold: float, strength_step: float) -> int:
    """−3 … +3 from the right answer's value minus the left one's, a step per `strength_step`."""
    if abs(difference) <= tie_threshold:
        return 0
    strength = min(MAX_STRENGTH, max(1, round(abs(difference) / strength_step)))
    return strength if difference > 0 else -strength


class RewardModelJudge:
    """Prefers the answer with the higher score; σ(difference / temperature) is its confidence."""

    prompt_version = ""

    def __init__(self, config: JudgeConfig, _: Instruction) -> None:
        require_training_packages("a judge by reward_model")
        from tiebreak.models.find import find_model
        from tiebreak.models.scores import read_score_scale

        self.config = config
        self.source = find_model(config.reward_model or "", "reward", config.training.trust_remote_code)
        if self.source.folder is None and not self.source.is_whole:
            raise HandoffError(f"{config.reward_model} is a base model: give the folder of a finished reward run")
        self.model, self.model_id = self.source.name, self.source.id
        folder = self.source.folder or self.source.base_path
        self.temperature = read_score_scale(folder).temperature or 1.0

    def ask(self, run: Run, questions: Sequence[Question], what: str) -> list[Reply]:
        """The replies, in order."""
        import torch

        from tiebreak.models.load import load_trained_reward_model
        from tiebreak.models.tokenizers import load_chat
        from tiebreak.packed.logprobs import scores_in_batches

        chat = load_chat(self.source)
        texts = list(dict.fromkeys((q.pair.id, one.text) for q in questions for one in (q.left, q.right)))
        asked = {q.pair.id: chat.encode_prompt(q.pair.messages, q.pair.tools) for q in questions}
        finished = {(q.pair.id, one.text): one for q in questions for one in (q.left, q.right)}
        pairs = {q.pair.id: q.pair for q in questions}
        # loads at the first call: a resumed run whose batches are all on disk loads nothing
        loaded = cache(lambda: load_trained_reward_model(self.source, self.config.training))

        def sequence(key: tuple[str, str]) -> list[int]:
            one, pair = finished[key], pairs[key[0]]
            if one.ids is not None and one.tokenizer_sha256 == chat.tokenizer_sha256:
                return [*asked[key[0]], *one.ids]
            return [*asked[key[0]], *chat.encode_completion(pair.messages, one.text, one.finished, pair.tools)[1]]

        def score(batch: list[tuple[str, str]], _: object) -> list[float]:
            with torch.no_grad():
                return scores_in_batches(loaded(), [sequence(key) for key in batch], chat.pad_id, len(batch))

        scores = dict(zip(texts, in_batches(run, texts, self.config.batch_size, score, what), strict=True))
        if broken := sum(not math.isfinite(value) for value in scores.values()):
            raise HandoffError(f"{self.model} gives {broken} of {len(scores)} answers no finite score: train it again")
        return [
            reply_of_probability(
                sigmoid((scores[q.pair.id, q.right.text] - scores[q.pair.id, q.left.text]) / self.temperature),
                self.config.tie_confidence,
            )
            for q in questions
        ]


def sigmoid(x: float) -> float:
    """1/(1 + e^−x), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class ModelJudge:
    """A local language model, by the log-probabilities of A and B or by a written verdict."""

    def __init__(self, config: JudgeConfig, instruction: Instruction) -> None:
        require_training_packages("a judge by model")
        from tiebreak.models.find import find_model
        from tiebreak.models.tokenizers import load_chat

        self.config, self.instruction, self.prompt_version = config, instruction, instruction.version
        self.source = find_model(config.model or "", trust_remote_code=config.training.trust_remote_code)
        self.model, self.model_id = self.source.name, self.source.id
        self.chat: Chat = load_chat(self.source, trust_remote_code=config.training.trust_remote_code)
        self._loaded = cache(self._load)

    def _load(self) -> nn.Module:
        from tiebreak.models.load import load_frozen_policy

        return load_frozen_policy(self.source, self.config.training)

    def ask(self, run: Run, questions: Sequence[Question], what: str) -> list[Reply]:
        """The replies, in order. A question that is too long for the model gets a reply without an answer."""
        encoded = [
            self.chat.encode_prompt((Message(role="user", content=self.instruction.render(q)),)) for q in questions
        ]
        from tiebreak.packed.positions import position_limit

        limit = position_limit(self._loaded().config) or math.inf
        longest = self.config.sampling.max_new_tokens if self.config.writes else 1
        fits = [n for n, ids in enumerate(encoded) if len(ids) + longest <= limit]
        order = sorted(fits, key=lambda n: (len(encoded[n]), n))
        ask = self._write if self.config.writes else self._letters
        rows = in_batches(
            run,
            order,
            self.config.batch_size,
            lambda batch, _: ask(batch, [encoded[n] for n in batch], questions),
            what,
        )
        replies = {n: self._read(row) for n, row in zip(order, rows, strict=True)}
        return [
            replies.get(n) or Reply(None, fault=_too_long(len(encoded[n]), longest, limit))
            for n in range(len(questions))
        ]

    def _letters(self, batch: list[int], prompts: list[list[int]], _: Sequence[Question]) -> Rows:
        from tiebreak.packed.logprobs import completion_logps_in_batches

        letters = [self._letter("A"), self._letter("B")]
        examples = [(prompt, [letter]) for prompt in prompts for letter in letters]
        logps = completion_logps_in_batches(self._loaded(), examples, self.chat.pad_id, 2 * len(batch))
        pairs = zip(logps[0::2], logps[1::2], prompts, strict=True)
        return [{"a": a[0], "b": b[0], "prompt_tokens": len(prompt)} for a, b, prompt in pairs]

    def _letter(self, letter: str) -> int:
        ids = self.chat.tokenizer.encode(letter, add_special_tokens=False)
        if len(ids) != 1:
            raise HandoffError(
                f"{self.model} writes {letter!r} as {len(ids)} tokens, so letters cannot be compared: "
                "set answers_by: verdict"
            )
        return int(ids[0])

    def _write(self, batch: list[int], prompts: list[list[int]], questions: Sequence[Question]) -> Rows:
        from tiebreak.packed.generation import row_seed, sample_completions

        sampled = sample_completions(
            self._loaded(),
            prompts,
            [row_seed(self.config.seed, "judge", questions[n].id) for n in batch],
            self.config.sampling,
            stop_ids=self.chat.stop_ids,
            textless_ids=self.chat.textless_ids,
            pad_id=self.chat.pad_id,
            batch_size=len(batch),
        )
        return [
            {"text": self.chat.read(one.ids).text, "prompt_tokens": len(prompt), "completion_tokens": len(one.ids)}
            for one, prompt in zip(sampled, prompts, strict=True)
        ]

    def _read(self, row: dict[str, Any]) -> Reply:
        tokens = {"prompt_tokens": row["prompt_tokens"], "completion_tokens": row.get("completion_tokens", 0)}
        if "text" in row:
            reply = read_verdict(row["text"], self.config.aspects)
        elif not (math.isfinite(row["a"]) and math.isfinite(row["b"])):
            raise HandoffError(f"{self.model} gives A or B no finite log-probability: its weights are broken")
        else:
            reply = reply_of_probability(sigmoid(row["b"] - row["a"]), self.config.tie_confidence)
        return _with_tokens(reply, tokens)


def _too_long(prompt: int, answer: int, limit: float) -> str:
    return f"{TOO_LONG}: {prompt} tokens, and {counted(answer, 'token')} to answer, of {limit}"


def _with_tokens(reply: Reply, tokens: dict[str, int]) -> Reply:
    return Reply(**{**vars(reply), **tokens})
