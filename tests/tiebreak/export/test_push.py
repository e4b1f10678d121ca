"""`tiebreak push` to a stand-in hub on the loopback, through huggingface_hub's own client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import TOKEN, HubServer
from support import run_here
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's upload
"""such warnings are errors in these tests"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a login."""
    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture(scope="module")
def runs(finished_recipe: Path) -> Path:
    return finished_recipe / "runs"


def test_a_pushed_policy_answers_as_its_run_and_has_card_and_licence(
    hub: HubServer, runs: Path, tmp_path: Path
) -> None:
    """A second push needs --replace, and removes files of the old model; judgments are pushed only on request."""
    words = ("push", runs / "dpo", "hub:team/policy", "--licence", "apache-2.0", "--output", tmp_path / "export")
    status, printed = run_here(*words, "--evaluation", runs / "evaluate")
    assert status == 0, printed
    files = hub.repositories["team/policy"]
    assert hub.private["team/policy"]
    endings = {Path(name).suffix for name in files}
    assert endings <= {".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ""}
    assert not any("judgment" in name or "preferences" in name or "optimizer" in name for name in files)
    everything = b"\n".join(content for name, content in files.items() if not name.endswith(".safetensors"))
    for folder in (tmp_path, runs.parent, runs.parent.parent):
        assert str(folder).encode() not in everything
    for name, content in files.items():
        (tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(content)
    ids = torch.tensor([[1, 5, 9, 11]])
    with torch.no_grad():
        pushed = AutoModelForCausalLM.from_pretrained(tmp_path / "downloaded").eval()(ids).logits
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()(ids).logits
    assert torch.equal(pushed, trained)
    _, front, card = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    identity = json.loads((runs / "dpo" / "manifest.json").read_text())["id"]
    assert identity[:8] in card
    assert (
        "Which licence has the model, and does the base model's licence allow it? apache-2.0 *(stated by the provider)*"
        in card
    )
    assert "**[blank: purpose]**" in card
    assert "## Evaluation" in card
    assert "loaded again without it, and compared" in card

    status, printed = run_here(*words)
    assert status != 0
    assert "team/policy has files already: give another repository, or --replace true" in printed
    files["old.safetensors"] = b"x"
    status, printed = run_here(*words, "--replace", "true", "--include", "judgments")
    assert status == 0, printed
    files = hub.repositories["team/policy"]
    assert "old.safetensors" not in files
    assert any(re.fullmatch(r"judgments-\w+\.jsonl", name) for name in files)


def test_what_cannot_be_pushed_is_refused_before_any_work(
    hub: HubServer, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "export"

    def refused(*words: str | Path, run: str = "dpo", repo: str = "hub:team/other") -> str:
        status, printed = run_here("push", runs / run, repo, "--output", output, *words)
        assert status != 0
        assert not output.exists()
        assert "team/other" not in hub.repositories
        return printed

    assert "without one, nobody may use a public model" in refused("--private", "false")
    assert "the repository is hub:OWNER/NAME" in refused(repo="team/other")
    assert "is a run of label, which makes no model" in refused(run="label")
    hub.repositories["team/public"], hub.private["team/public"] = {}, False
    assert "team/public is public already: give --private false" in refused(repo="hub:team/public")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    assert "the hub does not accept the login" in refused()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no login to the hub: run 'hf auth login'" in refused()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be pushed" in refused()
