"""A judge behind an OpenAI-compatible API (tiebreak.endpoint asks it)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from evaluation.judging.configuration import JudgeConfig
from evaluation.judging.questions import Instruction, Question, Reply, read_verdict
from tiebreak.endpoint.asking import ANSWERS, AnswerFile, Endpoint, Request
from tiebreak.errors import HandoffError
from tiebreak.messages import content_id
from tiebreak.runs.run import Run, read_manifest


class EndpointJudge:
    """A model behind an API."""

    def __init__(self, config: JudgeConfig, instruction: Instruction) -> None:
        assert config.endpoint is not None
        self.config, self.endpoint = config, config.endpoint
        self.instruction, self.prompt_version = instruction, instruction.version
        self.model, self.model_id = config.endpoint.model, ""
        self.took_over = False
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
            HandoffError: there are no answers to take over.
        """
        requests = [Request(self._key(question), self.instruction.render(question)) for question in questions]
        if self.config.answers is not None and not self.took_over:
            self._take_over(run.folder, self.config.answers, {request.key for request in requests})
        return [self._read(row) for row in self.asked_of.ask(run.folder, requests, what)]

    def _take_over(self, folder: Path, source: str, keys: Set[str]) -> None:
        """Copy the answers of another run.

        Raises:
            HandoffError: it is no judge run by an endpoint, or has no answer to these questions.
        """
        file = Path(source) / ANSWERS
        if (stage := read_manifest(source)["stage"]) != "judge" or not file.is_file():
            raise HandoffError(
                f"answers: {source} is a finished '{stage}' run without an endpoint's answers: give a judge run by endpoint"
            )
        store = AnswerFile(folder / ANSWERS)
        store.take_over(file)
        if not keys & store.rows.keys():
            raise HandoffError(
                f"answers: {source} has no answer to these questions: its pairs, model, guidelines, aspects, sampling or "
                "seed are others. Leave the key out to ask, and pay for, all questions"
            )
        self.took_over = True

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
