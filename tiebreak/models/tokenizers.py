"""The tokenizer and chat template of a model, and the facts that pin them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.config import ChatSettings
from tiebreak.errors import HandoffError, ModelError
from tiebreak.hashing import hash_text
from tiebreak.models.chat import Chat, build_chat, check_tokenizer, written_end
from tiebreak.models.find import TRUST, ModelSource
from tiebreak.models.probe import PROBE_TEXT
from tiebreak.models.turns import find_template, model_end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_chat(source: ModelSource, asked: ChatSettings | None = None, trust_remote_code: bool = False) -> Chat:
    """The tokenizer of a model with its chat template, and what ends a turn.

    Args:
        asked: the settings that a stage asks for; None: the model's own.

    Raises:
        HandoffError: what `load_tokenizer` and `build_chat` raise; or a trained policy is asked for with other settings
            than it was trained with.
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
        vocabulary=_vocabulary_of(source.base_path),
    )


def _vocabulary_of(folder: Path) -> int | None:
    """For how many tokens a model has weights, as its configuration says; None where it does not."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a broken one is reported where the model is loaded
        return None
    size = values.get("vocab_size") or (values.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _settled_chat(source: ModelSource, asked: ChatSettings | None) -> ChatSettings:
    """What was asked for, on top of what the policy was trained with."""
    if source.folder is None and not source.pinned:
        return asked or ChatSettings()
    pinned = ChatSettings.model_validate(source.pinned.get("chat") or {})
    if asked is None:
        return pinned
    for key in ("template_arguments", "end_of_turn"):
        now, then = getattr(asked, key), getattr(pinned, key)
        if now and now != then:
            raise HandoffError(
                f"{source.name} was trained with {key}: {then or 'its default'}, and {now} is asked for here, so it would "
                f"read other text than it learned from: leave {key} out"
            )
    return pinned.model_copy(update={"thinking": asked.thinking} if "thinking" in asked.model_fields_set else {})


def load_tokenizer(
    source: ModelSource, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token of its own.

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
    elif isinstance(tokenizer.chat_template, dict):  # several: transformers renders this one where none is named
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    _separate_pad_from_eos(tokenizer, model_end_tokens(source.base_path))
    check_tokenizer(tokenizer, source.name)
    for key, found in tokenizer_facts(tokenizer).items():
        if source.pinned.get(key, found) != found:
            raise HandoffError(f"{source.name}: its {key.removesuffix('_sha256')} is not the one it was trained with")
    return tokenizer


def load_error(source: ModelSource, what: str, error: Exception) -> ModelError:
    """What a loader's error means to the user."""
    if "trust_remote_code" in str(error):
        return ModelError(f"{source.base}: {what} needs Python code of its own ({source.base_path}): {TRUST}")
    if "Unrecognized configuration class" in str(error):
        return ModelError(f"{source.base}: there is no class for {what}: transformers has none for this architecture")
    return ModelError(f"{source.base}: {what} cannot be loaded: {error}")


def _separate_pad_from_eos(tokenizer: PreTrainedTokenizerBase, model_ends: Sequence[int]) -> None:
    """Give a tokenizer whose padding is missing, or is its end-of-sequence token, another special token to pad with.

    Masks come from lengths, so any token can pad that ends no answer.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    ends = {tokenizer.eos_token_id, *model_ends, written_end(tokenizer)}
    special = [token for token, number in tokenizer.added_tokens_encoder.items() if number not in ends]
    by_name = [token for token in special if "pad" in token.lower()] or [
        token for token in special if any(word in token.lower() for word in ("endoftext", "reserved", "unk", "extra"))
    ]
    if by_name or special:
        tokenizer.pad_token = (by_name or special)[0]


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Hashes that pin what text becomes which ids."""
    state = _tokenizer_state(tokenizer)
    ids = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id]
    return {
        "tokenizer_sha256": hash_text(json.dumps([state, ids], sort_keys=True)),
        "chat_template_sha256": hash_text(str(tokenizer.chat_template)),
    }


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that a tokenizer's ids rest on; of one without a fast backend, its vocabulary and what it makes of a text."""
    if hasattr(tokenizer, "backend_tokenizer"):
        state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
        return state
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
    """What decides which ids a conversation becomes."""
    return tokenizer_facts(chat.tokenizer) | {
        "template_arguments": chat.settings.template_arguments,
        "end": chat.end_id,
    }


def require_same_chat(one: Chat, other: Chat, what: str) -> None:
    """Refuse two models that would read one conversation as different ids.

    Raises:
        HandoffError: naming which of tokenizer and chat template differs.
    """
    first, second = chat_facts(one), chat_facts(other)
    differing = [key.removesuffix("_sha256").replace("_", " ") for key in first if first[key] != second[key]]
    if differing:
        raise HandoffError(f"{what}: their {' and '.join(differing)} differ, so one would misread what the other wrote")
