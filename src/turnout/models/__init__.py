"""Models: blocks and causal language models in plain torch."""

from turnout.models.config import ModelConfig, RoutingConfig

__all__ = ["CausalLM", "DecodeStep", "ModelConfig", "Output", "RoutingConfig"]


def __getattr__(name: str) -> object:
    if name in ("CausalLM", "Output"):
        from turnout.models import causal_lm

        return getattr(causal_lm, name)
    if name == "DecodeStep":
        from turnout.models.decode_step import DecodeStep

        return DecodeStep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
