"""From a spec to a direction router that a causal model may hold."""

from __future__ import annotations

from turnout.errors import ConfigError
from turnout.routers.direction.base import DIRECTION_ROUTERS, DirectionContext, DirectionRouter
from turnout.spec import parse_spec


def build_directions(spec: str, context: DirectionContext) -> DirectionRouter | None:
    """The router that a spec names, None for "none".

    Raises:
        ConfigError: unknown spec, or a router that reads the future and was not told to leak.
    """
    if spec == "none":
        return None
    router: DirectionRouter = DIRECTION_ROUTERS.build(spec, context=context)
    if not router.causal and not router.leaks:
        name = parse_spec(spec).name
        raise ConfigError(
            f"directions {spec!r} are not causal: r at every token reads later tokens, which leaks the future into a "
            f"causal model; use the causal variant {router.causal_variant!r}, or write {name}:leak=true to train what "
            "was published and measure its leak"
        )
    return router
