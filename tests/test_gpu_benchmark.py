"""benchmarks/gpu.py in small, on a CPU: each part, what is compared with what, and a run that has no time left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import REPOSITORY


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import gpu

    return gpu


@pytest.fixture
def measured(gpu: Any, tiny_model: Path, tmp_path: Path) -> Any:
    """Measures a part in this process, in small; no measurement of it may fail."""

    def measure(part: str, **changes: Any) -> dict[str, Any]:
        work = gpu.Work(str(tiny_model), gpu.SMALL, **changes)
        answer = tmp_path / f"{part}.json"
        found: dict[str, Any] = gpu.measure_part(part, work, answer)
        assert not [one for one in found.values() if "failed" in one], found
        assert json.loads(answer.read_text()) == found
        return found

    return measure


def test_the_card_is_named_with_its_rates(measured: Any) -> None:
    (found,) = measured("card").values()
    assert found["gpu"] == torch.cuda.is_available()
    assert min(found["mm_operations_a_second"], found["copy_bytes_a_second"]) > 1e6
    assert found["versions"]["torch"] == torch.__version__


@pytest.mark.proof
def test_bfloat16_is_near_float32s_losses_and_transformers_log_probabilities(
    gpu: Any, measured: Any, tmp_path: Path
) -> None:
    ours = measured("agreement")
    plain = measured("reference", drawn=tmp_path / "agreement.json")
    assert len(ours["logps"]["logps"]) == len(plain["logps"]["logps"]) == 4 * gpu.SMALL.drawn_tokens
    found = gpu.compared(ours, plain)
    assert found.keys() == {"sft", "reward", "dpo", "logps"}
    assert all(one["agrees"] for one in found.values()), found
    assert all(one["difference"] > 0 for one in found.values())  # two number formats
    ours["dpo"]["losses"][-1] += 0.2
    assert not gpu.compared(ours, plain)["dpo"]["agrees"]
    ours["dpo"] = {"failed": "no memory"}
    assert gpu.compared(ours, plain)["dpo"] == {"failed": "no memory"}


def test_stages_are_measured_beside_trls(gpu: Any, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STAGES", ("sft",))
    found = measured("train")
    assert found.keys() == {"sft, ours", "sft, trl fast"}
    assert all(one["tokens_per_second"] > 0 and len(one["losses"]) == 2 for one in found.values())


@pytest.mark.proof
def test_rollouts_begin_without_a_kl_and_are_timed_by_phase(measured: Any) -> None:
    found = measured("rollouts")
    assert found.keys() == {"ppo, ours", "rloo, ours", "rloo, trl"}
    for one in found.values():
        assert one["first_rollout"]["kl"] == pytest.approx(0.0, abs=0.05)
        assert sum(one["phases"].values()) == pytest.approx(one["step_seconds"], rel=0.05)
    # the same prompts, and completions of as many tokens
    rates = {name: one["tokens_per_second"] * one["step_seconds"] for name, one in found.items() if "rloo" in name}
    assert rates["rloo, ours"] == pytest.approx(rates["rloo, trl"])


@pytest.mark.proof
def test_passes_and_sampling(measured: Any) -> None:
    assert measured("passes").keys() == {"128", "256"}
    found = measured("sampling")
    assert {"ours", "transformers"} <= found.keys()
    assert min(one["tokens_a_second"] for one in found.values()) > 0


def test_flex_attention_sees_what_the_packed_one_does(gpu: Any, measured: Any) -> None:
    """In float32 both are the plain rows' hidden states to rounding."""
    found = measured("attention", precision="float32")
    assert found["sdpa"]["tokens_computed"] == found["flex"]["tokens_computed"] < found["plain"]["tokens_computed"]
    results: dict[str, Any] = {"models": {}}
    gpu.keep(results, "135m", "attention", found)
    differences = [found[way]["largest_difference"] for way in ("sdpa", "flex")]
    assert max(differences) < 1e-5, differences
    assert "states" not in found["plain"]


def test_flex_attention_borrows_the_beginning_of_all_rows(gpu: Any, tiny_model: Path) -> None:
    """Trees that share their first ten tokens with the row's first one; the oracle is each sequence by itself."""
    import flex

    from tiebreak.packed.forward import hidden_states, packs
    from tiebreak.packed.packing import pack_sequences
    from tiebreak.packed.parts import layers_of

    work = gpu.Work(str(tiny_model), gpu.SMALL, precision="float32")
    model, _ = gpu._base(work)
    assert packs(model)
    same = list(range(20, 30))
    sequences = [[*same, 40, 41], [*same, 50, 51, 52], [*same, 50, 51, 60], [*same, 70]]
    packing = pack_sequences(sequences, [[0], [1, 2], [3]])
    (row,) = packing.rows
    assert [tree.borrowed for tree in row.trees][1:] == [10] * (len(row.trees) - 1)
    model.set_attn_implementation(flex.TREES_IN_FLEX)
    with torch.no_grad():
        packed = hidden_states(model, row)
        model.set_attn_implementation("sdpa")
        for number, sequence in enumerate(sequences):
            steps = torch.arange(len(sequence))
            alone = layers_of(model)(input_ids=torch.tensor([sequence]), use_cache=False)[0][0]
            assert torch.allclose(packed[packing.place(torch.full_like(steps, number), steps)], alone, atol=1e-5)


def test_a_failed_measurement_costs_no_other(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setitem(gpu.PARTS, "train", lambda _: [("a", fails), ("b", lambda: {"tokens_per_second": 3.0})])
    found = gpu.measure_part("train", gpu.Work("", gpu.SMALL), tmp_path / "answer.json")
    assert found == {"a": {"failed": "RuntimeError: CUDA error: out of memory"}, "b": {"tokens_per_second": 3.0}}


def test_what_there_is_no_time_for_is_listed(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts take 50 s of 114: the card, the first model, and no more."""
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def in_process(part: str, *_: Any, **__: Any) -> Any:
        clock[0] += 0 if part == "model" else 50
        figures = {"tokens_per_second": 80.0, "peak_mib": 300.0, "matrix_product_share": 0.4}
        theirs = {"tokens_per_second": 40.0, "peak_mib": 600.0}
        return {"card": {"name": "A card"}} if part == "card" else {"sft, ours": figures, "sft, trl fast": theirs}

    monkeypatch.setattr(gpu, "_in_process", in_process)
    results = tmp_path / "gpu.json"
    words = ["--minutes", "1.9", "--only", "card", "train", "passes", "--results", str(results)]
    found = gpu.run(gpu.parse(words))
    assert json.loads(results.read_text()) == found
    assert found["left_out"] == ["1b: train", "135m: passes", "1b: passes"]
    page = gpu.table(found)
    assert page.startswith("A card\n")
    assert "| 135m | sft | 80 | 300 | 40% | 2.00 | 0.50 |" in page
    assert "left out, as the time was over: 1b: train" in page
    # a failure of a contestant is in the table too
    found["models"]["135m"]["train"]["sft, trl fast"] = {"failed": "no memory"}
    assert "| 135m | sft | 80 | 300 | 40% | failed: no memory |  |" in gpu.table(found)


def test_without_a_gpu_the_command_ends_unless_it_is_small(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no GPU: torch sees none here"):
        gpu.main()


@pytest.mark.proof
def test_the_whole_command_in_small(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    words = ["--small", "--minutes", "15", "--models", "135m", "--results", str(tmp_path / "gpu.json")]
    found = gpu.run(gpu.parse(words))
    parts = found["models"]["135m"]
    assert parts.keys() == set(gpu.OF_EACH_MODEL)
    assert not found["left_out"]
    assert "failed" not in json.dumps(found)
    assert "best training.tokens_per_pass for DPO" in gpu.table(found)
