"""Writers: a model behind an API, or one on this machine. A text is on disk before it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sft.synthesis.configuration import SynthesiseConfig
from tiebreak.endpoint.asking import Endpoint, Request
from tiebreak.extras import require_training_packages
from tiebreak.messages import Message, content_id
from tiebreak.runs.run import Run, in_batches


@dataclass(frozen=True)
class Written:
    """A writer's text."""

    text: str = ""
    fault: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Writer(Protocol):
    """A writer of texts."""

    name: str

    def write(self, run: Run, requests: Sequence[tuple[str, str]], what: str) -> list[Written]:
        """The text for each (identity, request), in order."""
        ...


class EndpointWriter:
    """A model behind an API."""

    def __init__(self, config: SynthesiseConfig) -> None:
        assert config.endpoint is not None
        self.config, self.name = config, config.endpoint.model
        self.endpoint = Endpoint(
            config.endpoint,
            config.asking,
            config.sampling,
            config.seed,
            needed_by=("a writer", "judge"),
            read_cut=lambda _: "cut off at sampling.max_new_tokens",
            advice=", or ask for fewer rows (methods)",
        )

    def write(self, run: Run, requests: Sequence[tuple[str, str]], what: str) -> list[Written]:
        assert self.config.endpoint is not None
        asked_of = (self.config.endpoint.url, self.name, self.config.sampling.model_dump(), self.config.seed)
        keyed = [Request(content_id("written", *asked_of, identity, text), text) for identity, text in requests]
        return [
            Written(
                str(row.get("text", "")),
                str(row.get("fault", "")),
                int(row["prompt_tokens"]),
                int(row["completion_tokens"]),
            )
            for row in self.endpoint.ask(run.folder, keyed, what)
        ]


class ModelWriter:
    """A model on this machine."""

    def __init__(self, config: SynthesiseConfig) -> None:
        require_training_packages("a writer by model")
        from tiebreak.models.find import find_model
        from tiebreak.models.tokenizers import load_chat

        self.config = config
        self.source = find_model(config.model or "", trust_remote_code=config.training.trust_remote_code)
        self.name = self.source.name
        self.chat = load_chat(self.source, trust_remote_code=config.training.trust_remote_code)
        self.loaded: Any = None

    def write(self, run: Run, requests: Sequence[tuple[str, str]], what: str) -> list[Written]:
        rows = in_batches(run, list(requests), self.config.batch_size, lambda batch, _: self._write(batch), what)
        return [Written(**row) for row in rows]

    def _write(self, batch: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        from tiebreak.models.load import load_frozen_policy
        from tiebreak.packed.generation import row_seed, sample_completions

        self.loaded = self.loaded or load_frozen_policy(self.source, self.config.training)
        prompts = [self.chat.encode_prompt((Message(role="user", content=text),)) for _, text in batch]
        sampled = sample_completions(
            self.loaded,
            prompts,
            [row_seed(self.config.seed, "synthesise", identity) for identity, _ in batch],
            self.config.sampling,
            stop_ids=self.chat.stop_ids,
            textless_ids=self.chat.textless_ids,
            pad_id=self.chat.pad_id,
            batch_size=len(batch),
        )
        return [
            {
                "text": self.chat.read(one.ids).text,
                "fault": "" if one.finished else "cut off at sampling.max_new_tokens",
                "prompt_tokens": len(prompt),
                "completion_tokens": len(one.ids),
            }
            for one, prompt in zip(sampled, prompts, strict=True)
        ]


def build_writer(config: SynthesiseConfig) -> Writer | None:
    """The configured writer. One that cannot work is refused before the first request."""
    if config.endpoint is not None:
        return EndpointWriter(config)
    return ModelWriter(config) if config.model is not None else None
