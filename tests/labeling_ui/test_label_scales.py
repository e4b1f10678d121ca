"""A campaign's scales stay as they are once there are judgments on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from label_support import free_port, make_pair, open_store
from test_label_single import assess, make_single

from labeling_ui import label
from labeling_ui.database.errors import StoreError
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work.asking import RATINGS, Criterion, Questionnaire


def asked(*ratings: str, **criteria: Any) -> Questionnaire:
    made = tuple(Criterion(name=name, **about) for name, about in criteria.items())
    return Questionnaire(ratings=ratings or RATINGS, criteria=made)


def test_ratings_keep_their_steps_once_there_are_some(url: str) -> None:
    store = open_store(url, [make_single(0, "rate")])
    store.keep_scales(asked())
    store.keep_scales(asked("bad", "fair", "good"))
    store.claim("r0")
    assess(store, "r0", "answer-0", 3)
    store.keep_scales(asked("schlecht", "mittel", "gut"))  # a translation
    for other in (("schlecht", "gut"), ("gut", "mittel", "schlecht"), RATINGS):
        with pytest.raises(StoreError, match="ratings: the judgments are on schlecht, mittel, gut"):
            store.keep_scales(asked(*other))
    store.keep_scales(asked("schlecht", "mittel", "gut"))
    assert "scales:asked" not in store.campaign()
    assert verify(store).faults == []


def test_a_criterion_keeps_its_scale_even_if_it_was_gone_meanwhile(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    stars, bar = {"scale": "stars"}, {"scale": "bar"}
    store.keep_scales(asked(accuracy=bar, style=stars))
    store.keep_scales(asked(accuracy=stars, style=stars))
    store.claim("r0")
    said = Submission(client_id="x", pair_id="pair-0", answer=1, criteria={"accuracy": {"0-0": 4, "0-1": 2}})
    store.submit("r0", said)
    store.keep_scales(asked(accuracy={**stars, "question": "How true is it?", "required": True}, style=bar))
    store.keep_scales(asked())
    with pytest.raises(StoreError, match="accuracy has judgments on another scale: stars, of each answer"):
        store.keep_scales(asked(accuracy=bar))
    store.close()


def test_the_server_refuses_to_start_on_another_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, config = tmp_path / "rows.jsonl", tmp_path / "label.yaml"
    rows.write_text(json.dumps({"prompt": "q", "response": "a", "task": "rate"}) + "\n")
    url = f"sqlite:///{tmp_path}/label.sqlite"
    store = open_store(url, [])
    store.keep_scales(asked())
    label.main(["import", "--answers", str(rows), "--store", url])
    given = store.claim("r0")
    assert given is not None
    assess(store, "r0", given.item_id, 5)
    store.close()
    about = {"output": str(tmp_path / "out"), "store": url, "answers": str(rows), "ratings": ["bad", "fair", "good"]}
    config.write_text(yaml.safe_dump(about))
    with pytest.raises(SystemExit):
        label.main(["--config", str(config), "--port", str(free_port())])
    assert "begin a new store" in capsys.readouterr().err
    store = Store.open(url)
    assert verify(store).faults == []
    store.close()
