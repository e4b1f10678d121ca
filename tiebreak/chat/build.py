"""Builds a Chat from a tokenizer: its template's and its model's ends of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiebreak.chat.chat import Chat
from tiebreak.chat.templates import in_parts, render_messages
from tiebreak.chat.turns import Turn, end_of_turn, marks_of, named_end_tokens, probe_turn, with_fixed_date
from tiebreak.config import ChatSettings
from tiebreak.errors import HandoffError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_chat(
    tokenizer: PreTrainedTokenizerBase,
    settings: ChatSettings | None = None,
    model_end_ids: Sequence[int] = (),
    tokenizer_sha256: str = "",
    name: str = "the model",
    vocabulary: int | None = None,
) -> Chat:
    """A tokenizer with its template's and its model's ends of turns.

    Args:
        model_end_ids: the end tokens that the model names for its own generation.
        vocabulary: number of tokens that the model has weights for.

    Raises:
        HandoffError: the tokenizer has no template or end, the template writes no answers, or it ends them with a token
            that is not among `end_of_turn`.
    """
    settings = settings or ChatSettings()
    check_tokenizer(tokenizer, name)
    template = with_fixed_date(str(tokenizer.chat_template))
    turn, parts = _probe(tokenizer, template, settings.template_arguments)
    model_ends = {int(tokenizer.eos_token_id), *model_end_ids}
    written = end_of_turn(tokenizer, turn, tuple(model_ends))
    if settings.end_of_turn:
        stops = named_end_tokens(tokenizer, settings.end_of_turn)
        if written is not None and written not in stops:
            raise HandoffError(
                f"{name}: its chat template ends an answer with {tokenizer.decode([written])!r}, and sampling would not "
                f"stop at it: add it to end_of_turn ({', '.join(settings.end_of_turn)})"
            )
        end = stops[0] if written is None else written
        stop_ids = tuple(sorted(set(stops)))
    else:
        end = int(tokenizer.eos_token_id) if written is None else written
        stop_ids = tuple(sorted({end, *model_ends}))
    marks = marks_of(tokenizer, turn, stop_ids)
    return Chat(tokenizer, stop_ids, end, template, turn, settings, tokenizer_sha256, parts, vocabulary, marks)


def written_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which a tokenizer's template ends an answer; None if there is none, or no template."""
    if not tokenizer.chat_template:
        return None
    try:
        turn, _ = _probe(tokenizer, with_fixed_date(str(tokenizer.chat_template)), {})
    except HandoffError:
        return None
    return end_of_turn(tokenizer, turn, ())


def _probe(tokenizer: PreTrainedTokenizerBase, template: str, arguments: Mapping[str, Any]) -> tuple[Turn, bool]:
    """An assistant's turn, and whether the template accepts content only as a list of parts."""

    def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        return render_messages(tokenizer, template, messages, add_generation_prompt, arguments)

    try:
        return probe_turn(render), False
    except HandoffError:  # templates of models that see images
        return probe_turn(lambda messages, prompt: render([in_parts(message) for message in messages], prompt)), True


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that would silently train on the wrong tokens.

    Raises:
        HandoffError: no chat template, no end-of-sequence token, or padding that looks like the end of a sequence.
    """
    if not tokenizer.chat_template:
        raise HandoffError(
            f"{name}: the tokenizer has no chat template; use an instruction-tuned model, or give one with chat_template"
        )
    if tokenizer.eos_token_id is None:
        raise HandoffError(f"{name}: the tokenizer has no end-of-sequence token, so no answer would ever be finished")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise HandoffError(
            f"{name}: padding and end-of-sequence are one token ({tokenizer.eos_token!r}), so the real end would be "
            "taken for padding; set another pad_token in tokenizer_config.json"
        )
