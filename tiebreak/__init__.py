"""Tiebreak: from raw prompts to an aligned language model, through the judgments of expert raters.

The library (tiebreak.library) is imported when one of its names is: `import tiebreak` loads no torch.
"""

__version__ = "0.1.0"

_PLACES = {
    "load_policy": "tiebreak.library",
    "load_reward_model": "tiebreak.library",
    "sample": "tiebreak.library",
    "score": "tiebreak.library",
    "read_preferences": "tiebreak.data.reading",
    "open_store": "labeling_ui.store.store",
}
"""where the library's names are; see __init__.pyi for their types"""


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tiebreak' has no attribute {name!r}")
    import importlib  # not at the top: see tiebreak.__main__

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
