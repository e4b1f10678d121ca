"""A lead runs a whole campaign without a terminal; `make campaign` plays it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_support import needs_chromium
from whole_campaign import play


@needs_chromium
@pytest.mark.proof
def test_a_lead_runs_a_campaign_of_twenty_raters_on_the_page(tmp_path: Path) -> None:
    figures = play(tmp_path, minutes=2)
    assert figures["judged in browsers"] > 20
    assert figures["done again by others"] > 0
