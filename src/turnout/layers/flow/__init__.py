"""Preprocessing before a content router: `FLOWS.build("attention:layers=2", context=FlowContext(width=64, length=128))`."""

from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext

__all__ = ["FLOWS", "Flow", "FlowBlock", "FlowContext"]
