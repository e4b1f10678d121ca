"""The model to export, and its outputs before it was saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tiebreak.chat.chat import Chat
from tiebreak.errors import HandoffError
from tiebreak.models.bundled import PREFIX
from tiebreak.models.find import MODEL_FILE, ModelKind, ModelSource, find_model, format_of
from tiebreak.models.precision import WeightFormat
from tiebreak.models.scorers import scorer_class
from tiebreak.models.tokenizers import load_chat


@dataclass(frozen=True)
class Probe:
    """A model's outputs before it was saved."""

    ids: list[int]
    values: list[float]
    """log-probabilities of the ids after the first, or a score by each member of a reward model"""
    dtype: str
    """the format in which they were computed"""
    tolerance: float
    """largest difference that the run's own formats cause"""


@dataclass(frozen=True)
class ModelToExport:
    """The model to export."""

    source: ModelSource
    chat: Chat
    template: str
    """the chat template with the run's template_arguments as its defaults"""

    @property
    def kind(self) -> ModelKind:
        """A policy or a reward model."""
        return self.source.kind

    @property
    def weights(self) -> WeightFormat | None:
        """The format in which its base weights were held, where it is not their own."""
        return format_of(self.source, None)

    @property
    def quantized(self) -> bool:
        """Whether they were held in fewer bits."""
        return self.weights is not None

    @property
    def ends(self) -> list[int]:
        """The tokens at which it stops, that of its own template first."""
        return [self.chat.end_id, *(one for one in self.chat.stop_ids if one != self.chat.end_id)]

    @property
    def end_texts(self) -> list[str]:
        """The same as text."""
        return [str(self.chat.tokenizer.decode([one], skip_special_tokens=False)) for one in self.ends]


def find_model_to_export(name: str, trust_remote_code: bool = False) -> ModelToExport:
    """A run folder, checkpoint, path, hub id or bundled model, with its chat template.

    Raises:
        RunError, ModelError, HandoffError: there is none, or its files have changed.
    """
    source = find_model(name, kind_of(name), trust_remote_code)
    if source.kind == "reward":
        _require_own_classifier(source)
    chat = load_chat(source, None, trust_remote_code)
    return ModelToExport(source, chat, _with_defaults(chat))


def kind_of(name: str) -> ModelKind:
    """Whether a run folder holds a policy or a reward model; all else is a policy."""
    path = Path(name)
    for file in (path / "final" / MODEL_FILE, path / MODEL_FILE):
        if file.is_file():
            return "reward" if json.loads(file.read_text(encoding="utf-8")).get("kind") == "reward" else "policy"
    return "policy"


def _require_own_classifier(source: ModelSource) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.base_path, trust_remote_code=source.trust_remote_code)
    if not getattr(config, "auto_map", None) and scorer_class(config) is not None:
        raise HandoffError(
            f"{source.name}: transformers has no AutoModelForSequenceClassification with a score head for "
            f"{config.model_type}, so nothing but Tiebreak could load it: score with 'from tiebreak import "
            "load_reward_model'"
        )


def _with_defaults(chat: Chat) -> str:
    """The template, in which the arguments that the run was trained with are defaults: others call it without them."""
    lines = []
    for name, value in chat.settings.template_arguments.items():
        literal = json.dumps(value, ensure_ascii=False)
        if value is None or "null" in literal:
            raise HandoffError(
                f"template_arguments: {name} is or holds null, which a template cannot be given as default"
            )
        lines.append(f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}")
    return "".join(lines) + str(chat.tokenizer.chat_template)


def base_for_others(source: ModelSource) -> str:
    """The base's name where others find it: on the hub, or else its folder on this machine."""
    is_local = source.base.startswith(PREFIX) or Path(source.base).is_dir()
    return str(source.base_path.resolve()) if is_local else source.base
