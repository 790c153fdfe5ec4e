"""Timeline → work units: blocks of lanes, version lifetimes, exact grid, cost, checks ahead of the run."""

from atoll.plan.blocks import Weigh, cut_windows, lookahead_steps
from atoll.plan.grid import METRIC_EXPONENT, Grid
from atoll.plan.lanes import DeviceClass, Kernel, auto_lanes, profile_digest
from atoll.plan.planner import Planner, PlanSettings, Window
from atoll.plan.prediction import ClusterCosts, Ending, Prediction, Predictor, Traffic, WorkCosts
from atoll.plan.steps import StepPlan
from atoll.plan.summary import PlanSummary, SummaryBuilder, check_memory

__all__ = [
    "METRIC_EXPONENT",
    "ClusterCosts",
    "DeviceClass",
    "Ending",
    "Grid",
    "Kernel",
    "PlanSettings",
    "PlanSummary",
    "Planner",
    "Prediction",
    "Predictor",
    "StepPlan",
    "SummaryBuilder",
    "Traffic",
    "Weigh",
    "Window",
    "WorkCosts",
    "auto_lanes",
    "check_memory",
    "cut_windows",
    "lookahead_steps",
    "profile_digest",
]
