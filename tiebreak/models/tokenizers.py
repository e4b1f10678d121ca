"""A model's tokenizer and chat template, and the facts that pin them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tiebreak.chat.build import build_chat, check_tokenizer, written_end
from tiebreak.chat.chat import Chat
from tiebreak.chat.turns import find_template, model_end_tokens
from tiebreak.config import ChatSettings
from tiebreak.errors import HandoffError, ModelError
from tiebreak.hashing import hash_text
from tiebreak.models.adapters.peft_files import grown_vocabulary
from tiebreak.models.find import TRUST, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_TEXT = (
    " Two  spaces,\tTabs\nand lines; naïve CAFÉ's 1234567.89 — 日本語, العربية, emoji 🙂, [INST] <|im_start|>.  "
)
"""for tokenizers whose rules are unknown: whitespace, case, digits, scripts, special tokens"""


def load_chat(source: ModelSource, asked: ChatSettings | None = None, trust_remote_code: bool = False) -> Chat:
    """A model's tokenizer with its chat template and ends of turns.

    Args:
        asked: the stage's settings; None: the model's own.

    Raises:
        HandoffError: as `load_tokenizer` and `build_chat` raise; or the settings differ from those a trained policy was
            trained with.
        ConfigError: no such template or token.
    """
    settings = _settled_chat(source, asked)
    tokenizer = load_tokenizer(source, trust_remote_code, asked.chat_template if asked else None)
    facts = tokenizer_facts(tokenizer)
    return build_chat(
        tokenizer,
        settings,
        model_end_tokens(source.base_path),
        facts["tokenizer_sha256"],
        name=source.name,
        vocabulary=_vocabulary_of(source),
    )


def _vocabulary_of(source: ModelSource) -> int | None:
    """Number of tokens with weights, from what an adapter brings or the model's configuration; None if it lacks it."""
    if source.folder is not None and (grown := grown_vocabulary(source.folder)):
        return grown
    file = source.base_path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a broken one is reported where the model is loaded
        return None
    size = values.get("vocab_size") or (values.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _settled_chat(source: ModelSource, asked: ChatSettings | None) -> ChatSettings:
    """The stage's settings, completed by those that the policy was trained with."""
    if source.folder is None and not source.pinned:
        return asked or ChatSettings()
    pinned = ChatSettings.model_validate(source.pinned.get("chat") or {})
    if asked is None:
        return pinned
    for key in ("template_arguments", "end_of_turn"):
        now, then = getattr(asked, key), getattr(pinned, key)
        if now and now != then:
            raise HandoffError(
                f"{source.name} was trained with {key}: {then or 'its default'}, but {now} is requested here, so it would "
                f"read other text than it learned from: leave {key} out"
            )
    return pinned.model_copy(update={"thinking": asked.thinking} if "thinking" in asked.model_fields_set else {})


def load_tokenizer(
    source: ModelSource, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """A model's tokenizer, with a separate padding token.

    Args:
        chat_template: a file or a name, see `find_template`; None: the model's own.

    Raises:
        HandoffError: no chat template or end-of-sequence token, no token to pad with, or not the pinned tokenizer.
    """
    from transformers import AutoTokenizer

    trusted = trust_remote_code or source.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_path, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise load_error(source, "its tokenizer", error) from error
    if chat_template is not None:
        tokenizer.chat_template = find_template(chat_template, tokenizer)
    elif isinstance(tokenizer.chat_template, dict):  # several: transformers uses this one by default
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    _separate_pad_from_eos(tokenizer, model_end_tokens(source.base_path))
    check_tokenizer(tokenizer, source.name)
    for key, found in tokenizer_facts(tokenizer).items():
        if source.pinned.get(key, found) != found:
            raise HandoffError(f"{source.name}: its {key.removesuffix('_sha256')} is not the one it was trained with")
    return tokenizer


def load_error(source: ModelSource, what: str, error: Exception) -> ModelError:
    """A loader's error, explained for users."""
    if "trust_remote_code" in str(error):
        return ModelError(f"{source.base}: {what} needs its own Python code ({source.base_path}): {TRUST}")
    if "Unrecognized configuration class" in str(error):
        return ModelError(f"{source.base}: cannot load {what}: transformers has no class for its architecture")
    return ModelError(f"{source.base}: cannot load {what}: {error}")


def _separate_pad_from_eos(tokenizer: PreTrainedTokenizerBase, model_ends: Sequence[int]) -> None:
    """Give a tokenizer without its own padding token another special token to pad with.

    Masks come from lengths, so any token works that ends no answer and that no text holds. An added token that is not
    special (`<tool_call>`, `<think>`) is text like any other.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    ends = {tokenizer.eos_token_id, *model_ends, written_end(tokenizer)}
    special = [
        token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if number not in ends and (token.special or token.content in tokenizer.all_special_tokens)
    ]
    by_name = [token for token in special if "pad" in token.lower()] or [
        token for token in special if any(word in token.lower() for word in ("endoftext", "reserved", "unk", "extra"))
    ]
    if by_name or special:
        tokenizer.pad_token = (by_name or special)[0]


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Hashes that pin the mapping from text to ids."""
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    if hasattr(tokenizer, "backend_tokenizer"):
        mapping = _hash_of_fast(tokenizer.backend_tokenizer.to_str(), ids)
    else:
        mapping = _hash_of_state(_slow_state(tokenizer), ids)
    return {"tokenizer_sha256": mapping, "chat_template_sha256": hash_text(str(tokenizer.chat_template))}


@lru_cache(maxsize=4)
def _hash_of_fast(written: str, ids: tuple[int | None, ...]) -> str:
    """The hash of a fast tokenizer as it is written to a file. A stage asks for it a dozen times, and it takes 0.1 s."""
    state: dict[str, Any] = json.loads(written)
    state.pop("padding", None)
    state.pop("truncation", None)
    return _hash_of_state(state, ids)


def _hash_of_state(state: dict[str, Any], ids: tuple[int | None, ...]) -> str:
    return hash_text(json.dumps([state, ids], sort_keys=True))


def _slow_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the ids of a tokenizer without a fast backend depend on: its vocabulary, and its ids of a test text."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    read = list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:
        raise HandoffError(
            f"{type(tokenizer).__name__} cannot list its vocabulary, so no run could pin it: use a tokenizer with a fast "
            "backend (tokenizer.json)"
        ) from None
    return {"class": type(tokenizer).__name__, "vocabulary": vocabulary, "added": added, "read": read}


def chat_facts(chat: Chat) -> dict[str, Any]:
    """Everything that decides a conversation's ids."""
    return tokenizer_facts(chat.tokenizer) | {
        "template_arguments": chat.settings.template_arguments,
        "end": chat.end_id,
    }


def require_same_chat(one: Chat, other: Chat, what: str) -> None:
    """Refuse two models that would encode the same conversation differently.

    Raises:
        HandoffError: names what differs, tokenizer or chat template.
    """
    first, second = chat_facts(one), chat_facts(other)
    differing = [key.removesuffix("_sha256").replace("_", " ") for key in first if first[key] != second[key]]
    if differing:
        raise HandoffError(f"{what}: their {' and '.join(differing)} differ, so one would misread what the other wrote")
