"""Preprocessing before a content router: `FLOWS.build("attention:layers=2", context=FlowContext(...))`."""

from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext

__all__ = ["FLOWS", "Flow", "FlowBlock", "FlowContext"]
