"""The schedule that a config describes."""

from __future__ import annotations

from turnout.train.budget import Budget
from turnout.train.config import BudgetConfig, CurriculumConfig, JointConfig
from turnout.train.curriculum import Curriculum
from turnout.train.schedule import Joint, Schedule


def build_schedule(config: CurriculumConfig | JointConfig | BudgetConfig) -> Schedule:
    """Curriculum, joint or budget, at its beginning."""
    if isinstance(config, CurriculumConfig):
        return Curriculum(config)
    return Budget(config) if isinstance(config, BudgetConfig) else Joint(config)
