"""A judge behind an OpenAI-compatible API (tiebreak.endpoint asks it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.judging.configuration import JudgeConfig
from evaluation.judging.questions import Instruction, Question, Reply, read_verdict
from tiebreak.endpoint.asking import Endpoint, Request
from tiebreak.messages import content_id
from tiebreak.runs.run import Run


class EndpointJudge:
    """A model behind an API."""

    def __init__(self, config: JudgeConfig, instruction: Instruction) -> None:
        assert config.endpoint is not None
        self.config, self.endpoint = config, config.endpoint
        self.instruction, self.prompt_version = instruction, instruction.version
        self.model, self.model_id = config.endpoint.model, ""
        self.asked_of = Endpoint(
            config.endpoint,
            config.asking,
            config.sampling,
            config.seed,
            needed_by=("a judge", "judge"),
            read_cut=_read_cut,
            advice=", or finish on less with a smaller max_pairs",
        )

    def ask(self, run: Run, questions: Sequence[Question], what: str) -> list[Reply]:
        """The replies, in order.

        Raises:
            RunError: the spend limit is reached, or questions have no answer after all tries; the rest is on disk.
            ConfigError: the endpoint refuses the key, or has no such model.
        """
        requests = [Request(self._key(question), self.instruction.render(question)) for question in questions]
        return [self._read(row) for row in self.asked_of.ask(run.folder, requests, what)]

    def _key(self, question: Question) -> str:
        """Identity of a question to this judge: a stored answer is used again only for the same question."""
        sampling = self.config.sampling.model_dump()
        return content_id(
            "asked", self.endpoint.url, self.model, self.prompt_version, self.config.seed, sampling, question.id
        )

    def _read(self, row: dict[str, Any]) -> Reply:
        tokens = {name: int(row[name]) for name in ("prompt_tokens", "completion_tokens")}
        reply = Reply(None, fault=row["fault"]) if row.get("fault") else read_verdict(row["text"], self.config.aspects)
        return Reply(**{**vars(reply), **tokens, "cost": self.endpoint.cost_of(**tokens)})


def _read_cut(text: str) -> str:
    return "" if read_verdict(text).answer is not None else "cut off at sampling.max_new_tokens before a verdict"
