"""A world small enough for whole stages, made once a session."""

from __future__ import annotations

import pytest
from small_world import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A policy, a judge of its answers, prompts and preferences."""
    return build_world(tmp_path_factory.mktemp("world"))
