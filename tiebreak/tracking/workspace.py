"""A W&B workspace and report of a recipe's runs, saved in the user's project with W&B's own package.

    tiebreak wandb workspace quickstart-20261128-104501       # the group, which every run of a recipe has

Panels: score against KL, win rates, each stage's curves, tables of answers, judgments and worst mistakes, and W&B's
comparison of runs. `pip install 'tiebreak[wandb]'`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, MachineError
from tiebreak.extras import require_package
from tiebreak.stages import STAGES
from tiebreak.terminal import show
from tiebreak.tracking.contents import STEP, wandb_name
from tiebreak.tracking.wandb_copy import default_entity, one_line

TABLES = ("completions", "judgments", "worst_mistakes", "samples")
WIN_RATE, WIN_LOW = "win_rate_vs_baseline", 0.5


class WorkspaceArguments(Section):
    """`tiebreak wandb workspace`. GROUP is the group of the runs: `tiebreak run` prints it and writes it to the file
    `group` beside them."""

    project: str = "tiebreak"
    """W&B project"""
    entity: str | None = None
    """W&B user or team; null: the default one of the login"""
    policies: list[str] = Field(default=["base", "sft", "dpo", "ppo"])
    """policies of the evaluation, for the panel of win rates"""


def panel_keys() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(section, title, horizontal axis, figures) of every line plot."""
    yield "Score against KL", "Held-out score", "eval/objective/kl", ("eval/objective/scores",)
    yield "Score against KL", "Score in training", "train/objective/kl", ("train/objective/scores", "train/guard/score")
    for stage in STAGES.values():
        for figure in stage.figures:
            names = [wandb_name(key) for key in figure.metrics]
            held_out = [f"eval/{key}" for key in figure.metrics]
            yield stage.title or stage.name, figure.title, STEP, tuple(dict.fromkeys([*names, *held_out]))


def panels_of(reports: Any, policies: Sequence[str]) -> dict[str, list[Any]]:
    """Section → panels.

    Args:
        reports: the module wandb_workspaces.reports.v2.
    """
    found: dict[str, list[Any]] = {}
    for section, title, axis, figures in panel_keys():
        found.setdefault(section, []).append(reports.LinePlot(title=title, x=axis, y=list(figures)))
    found["Win rates"] = [
        reports.BarPlot(
            title="Win rate against the baseline", metrics=[f"{one}/{WIN_RATE}" for one in policies], range_x=(0, 1)
        )
    ]
    found["Tables"] = [reports.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    found["Runs"] = [reports.RunComparer(diff_only="split")]
    return found


def save(group: str, given: WorkspaceArguments) -> list[str]:
    """Save both; returns their addresses.

    Raises:
        ConfigError: W&B has no login.
        MachineError: it rejects them.
    """
    workspaces = require_package("wandb_workspaces.workspaces", "a W&B workspace", "wandb")
    reports = require_package("wandb_workspaces.reports.v2", "a W&B report", "wandb")
    try:
        entity = given.entity or default_entity()
    except Exception as error:
        raise ConfigError(f"W&B has no login that works ({one_line(error)}): wandb login") from error
    panels = panels_of(reports, given.policies)
    filters = f"Group = '{group}'"
    workspace = workspaces.Workspace(
        entity=entity,
        project=given.project,
        name=group,
        sections=[workspaces.Section(name=name, panels=own, is_open=True) for name, own in panels.items()],
        runset_settings=workspaces.RunsetSettings(filters=filters),
    )
    runs = reports.Runset(entity=entity, project=given.project, name=group, filters=filters)
    report = reports.Report(
        entity=entity,
        project=given.project,
        title=f"Tiebreak: {group}",
        blocks=list(_blocks(reports, runs, panels)),
    )
    try:
        return [str(one.save().url) for one in (workspace, report)]
    except Exception as error:
        raise MachineError(f"W&B rejects the workspace: {one_line(error)}") from error


def _blocks(reports: Any, runs: Any, panels: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    for name, own in panels.items():
        yield reports.H2(text=name)
        yield reports.PanelGrid(runsets=[runs], panels=list(own))


def save_workspace(words: Sequence[str]) -> None:
    """`tiebreak wandb workspace GROUP`"""
    if not words or words[0].startswith("-"):
        raise ConfigError("workspace takes the group of the runs: tiebreak wandb workspace quickstart-20261128-104501")
    if "'" in words[0]:
        raise ConfigError(f"a group has no quotation mark: {words[0]}")
    show(*save(words[0], load_config(WorkspaceArguments, list(words[1:]), "wandb workspace")))
