"""Whether a model's weights are those of its configuration.

transformers fills a weight that a folder lacks with random numbers and says so in a warning. Such a model would train,
and answer, with partly random weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tiebreak.errors import ModelError, counted
from tiebreak.models.find import ModelKind, ModelSource
from tiebreak.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 3


def require_whole(model: PreTrainedModel, loading: Mapping[str, Any], source: ModelSource, kind: ModelKind) -> None:
    """Refuse a model with weights that its folder lacks or has in another size; report those that it has no place for.

    Args:
        loading: what transformers reports of loading it (`output_loading_info`).
        kind: what it was loaded as: the score head of a reward model comes with its adapter.

    Raises:
        ModelError: names the weights.
    """
    below = f"{model.base_model_prefix}." if kind == "reward" else ""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = {name for name in loading["missing_keys"] if name in parameters and name.startswith(below)}
    filled = {parameters[name].data_ptr() for name in parameters.keys() - loading["missing_keys"]}
    if missing := {name for name in missing if parameters[name].data_ptr() not in filled or parameters[name].is_meta}:
        raise ModelError(
            f"{source.base}: its weights lack {_named(missing)}, which its config.json asks for, and random numbers would "
            f"take their place: restore the missing files in {source.base_path}, or correct config.json"
        )
    if sizes := sorted(entry for entry in loading["mismatched_keys"] if entry[0].startswith(below)):
        name, there, wanted = sizes[0]
        more = f", and {counted(len(sizes) - 1, 'other weight')} differ too" if len(sizes) > 1 else ""
        raise ModelError(
            f"{source.base}: {name} has the size {_size(there)} in its weights and {_size(wanted)} by its config.json"
            f"{more}: correct {source.base_path / 'config.json'}"
        )
    if unread := [name for name in loading["unexpected_keys"] if name.startswith(below)]:
        say(f"{source.base}: {type(model).__name__} has no place for {_named(unread)}, which are not loaded")


def _named(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{counted(len(names), 'weight')} ({shown}, …)"


def _size(shape: Any) -> str:
    return " × ".join(map(str, shape))
