"""Models that read texts for yardsticks: a classifier of toxicity, and an encoder for BERTScore. The user names
them; they are found like any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tiebreak.config import LoadingConfig
from tiebreak.errors import ModelError
from tiebreak.models.find import find_base
from tiebreak.models.precision import resolve_precision

TOXIC_LABELS = ("toxic", "toxicity", "hate", "offensive", "abusive")


class Reader(Protocol):
    """Measures a text, beside reference texts if it needs any."""

    def measure(self, text: str, references: Sequence[str]) -> float: ...


def build_reader(name: str, argument: str, training: LoadingConfig) -> Reader:
    """The reader of a yardstick.

    Args:
        name: `toxicity` or `bertscore`.
        argument: the model, and after # its label or layer.
    """
    model, _, further = argument.partition("#")
    return Classifier(model, further, training) if name == "toxicity" else Encoder(model, further, training)


def _load(kind: str, name: str, training: LoadingConfig) -> tuple[Any, Any]:
    """(a model of one of transformers' classes, its tokenizer)."""
    import transformers

    path, trust = find_base(name, training.trust_remote_code), training.trust_remote_code
    try:
        model = getattr(transformers, kind).from_pretrained(
            path, dtype=resolve_precision(training), trust_remote_code=trust, use_safetensors=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} cannot be loaded as a {kind.removeprefix('AutoModel') or 'model'}: {error}"
        ) from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.eval().to(device or "cpu"), tokenizer


def _encode(model: Any, tokenizer: Any, text: str) -> dict[str, Tensor]:
    """A text as one row, cut to the model's positions."""
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**6)
    encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=int(longest))
    return {name: values.to(model.device) for name, values in encoded.items()}


class Classifier:
    """The probability of a text's being toxic.

    Args:
        label: of the classifier's; empty: the one that is named so.

    Raises:
        ModelError: no label is, or there is no classifier.
    """

    def __init__(self, name: str, label: str, training: LoadingConfig) -> None:
        self.model, self.tokenizer = _load("AutoModelForSequenceClassification", name, training)
        labels = {str(text).lower(): int(number) for number, text in self.model.config.id2label.items()}
        found = [label.lower()] if label else [one for one in TOXIC_LABELS if one in labels]
        if not found or found[0] not in labels:
            raise ModelError(
                f"toxicity:{name}: which label is toxic? Its labels are {', '.join(self.model.config.id2label.values())}: "
                f"name one, as toxicity:{name}#LABEL"
            )
        self.label = labels[found[0]]

    @torch.no_grad()
    def measure(self, text: str, references: Sequence[str]) -> float:
        """Softmax over the labels; sigmoid where several may apply, or there is only one."""
        logits = self.model(**_encode(self.model, self.tokenizer, text)).logits[0].float()
        several = self.model.config.problem_type == "multi_label_classification" or len(logits) == 1
        return float((logits.sigmoid() if several else logits.softmax(0))[self.label])


class Encoder:
    """BERTScore's F1, without weights or baseline (Zhang et al. 2020, Eq. 1): each token counts for its most similar one in
    the other text.

    Args:
        layer: whose outputs are compared; empty: the last one's.
    """

    def __init__(self, name: str, layer: str, training: LoadingConfig) -> None:
        self.model, self.tokenizer = _load("AutoModel", name, training)
        layers = self.model.config.num_hidden_layers
        if layer and not (layer.isdigit() and 0 <= int(layer) <= layers):
            raise ModelError(f"bertscore:{name}#{layer}: its layers are 0 (the embeddings) to {layers}")
        self.layer = int(layer) if layer else layers

    def measure(self, text: str, references: Sequence[str]) -> float:
        """The best F1 over the references."""
        own = self._vectors(text)
        return max(bertscore_f1(own, self._vectors(reference)) for reference in references)

    @torch.no_grad()
    def _vectors(self, text: str) -> Tensor:
        """Unit vectors of a text's tokens, shape (tokens, width), without the tokenizer's own marks."""
        encoded = _encode(self.model, self.tokenizer, text)
        states = self.model(**encoded, output_hidden_states=True).hidden_states[self.layer][0].float()
        marks = torch.tensor(self.tokenizer.all_special_ids, dtype=torch.long, device=states.device)
        return torch.nn.functional.normalize(states[~torch.isin(encoded["input_ids"][0], marks)], dim=-1)


def bertscore_f1(answer: Tensor, reference: Tensor) -> float:
    """F1 of greedy matching, from unit vectors of shapes (tokens, width) and (other tokens, width); 0 of an empty text.

    >>> round(bertscore_f1(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])), 6)  # P = 1, R = .8
    0.888889
    """
    if not len(answer) or not len(reference):
        return 0.0
    similar = answer @ reference.T
    precision, recall = float(similar.amax(1).mean()), float(similar.amax(0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
