"""Optimizer moments and generator states as named tensors, so that a resumed run goes on bit for bit.

    {"optimizer.<parameter>.exp_avg": …, "optimizer.<parameter>.step": …, "generator.<purpose>": uint8 [n]}

The names are prefixed, so that these dictionaries can be merged with the weights and handed to `checkpoint.save`; the
restoring functions pick their own names out of everything that `checkpoint.load` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from turnout.errors import CheckpointError, UnsupportedError
from turnout.train.optimizers import Optimizer, Together

OPTIMIZER = "optimizer"
GENERATOR = "generator"

NamedParams = Iterable[tuple[str, nn.Parameter]]


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`{"a": t}` → `{"<prefix>.a": t}`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def section(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `with_prefix`: tensors named `<prefix>.…`, without the prefix."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def flatten_optimizer(optimizer: Optimizer, named_params: NamedParams) -> dict[str, torch.Tensor]:
    """Moments and step counts of Adam or AdamW, by parameter name.

    A parameter that has had no gradient yet has no state and no entry. Learning rate, betas and weight decay are not
    included: they come from the config and the schedule.

    Args:
        optimizer: a torch Adam or AdamW.
        named_params: `model.named_parameters()`; must name every parameter of the optimizer.
    Returns:
        `optimizer.<name>.<key>`: the optimizer's own tensors, not copies.
    Raises:
        UnsupportedError: another optimizer.
        CheckpointError: a parameter without a name.
    """
    state: dict[str, torch.Tensor] = {}
    for name, param in _named(optimizer, named_params).items():
        if param in optimizer.state:
            state |= with_prefix(f"{OPTIMIZER}.{name}", optimizer.state[param])
    return state


def restore_optimizer(optimizer: Optimizer, named_params: NamedParams, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the optimizer the state that `flatten_optimizer` took. All or nothing; later steps are bit-exact.

    Args:
        optimizer: a fresh Adam or AdamW over the same parameters.
        named_params: `model.named_parameters()`.
        tensors: any dictionary that holds the `optimizer.…` tensors; they are copied.
    Raises:
        UnsupportedError: another optimizer.
        CheckpointError: state of an unknown parameter, incomplete, or of another shape or dtype.
    """
    params = _named(optimizer, named_params)
    groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    given: dict[str, dict[str, torch.Tensor]] = {}
    for path, tensor in section(OPTIMIZER, tensors).items():
        name, _, key = path.rpartition(".")
        given.setdefault(name, {})[key] = tensor
    unknown = sorted(given.keys() - params.keys())
    if unknown:
        raise CheckpointError(
            f"the checkpoint has optimizer state of {unknown[0]!r} ({len(unknown)} such), which is not trained here; "
            "it belongs to another config: use the config in the manifest.json of its run"
        )
    restored = {
        name: _checked_entry(name, params[name], groups[id(params[name])], entry) for name, entry in given.items()
    }
    for name, param in params.items():
        optimizer.state.pop(param, None)
        if name in restored:
            optimizer.state[param] = restored[name]


def flatten_generators(generators: Mapping[str, torch.Generator]) -> dict[str, torch.Tensor]:
    """States of the generators by purpose: `generator.<purpose>`, uint8 on the CPU."""
    return {f"{GENERATOR}.{name}": generator.get_state() for name, generator in generators.items()}


def restore_generators(generators: Mapping[str, torch.Generator], tensors: Mapping[str, torch.Tensor]) -> None:
    """Set every generator to the state that `flatten_generators` took.

    Raises:
        CheckpointError: a generator without a state, a state without a generator, or a state of another device's kind.
    """
    states = section(GENERATOR, tensors)
    if states.keys() != generators.keys():
        raise CheckpointError(
            f"the checkpoint has generator states {sorted(states)}, expected {sorted(generators)}; it was written by "
            "another kind of run: resume it with the version that wrote it, or start a new run"
        )
    for name, generator in generators.items():
        try:
            generator.set_state(states[name].cpu())
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the state of generator {name!r} does not fit a generator on {generator.device} ({error}); "
                "resume on the kind of device that the run started on"
            ) from error


def _named(optimizer: Optimizer, named_params: NamedParams) -> dict[str, nn.Parameter]:
    """Parameters of the optimizer by name; a tied parameter goes by its first name."""
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, Together)):
        raise UnsupportedError(f"cannot checkpoint {type(optimizer).__name__}; use torch.optim.AdamW or Adam")
    trained = {id(param) for group in optimizer.param_groups for param in group["params"]}
    named: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, param in named_params:
        if id(param) in trained and id(param) not in seen:
            named[name] = param
            seen.add(id(param))
    if len(named) != len(trained):
        raise CheckpointError(
            f"the optimizer trains {len(trained)} parameters, and {len(named)} of them have a name; "
            "pass named_parameters() of the whole model"
        )
    return named


def _checked_entry(
    name: str, param: nn.Parameter, group: Mapping[str, object], entry: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copies of one parameter's state where the optimizer wants them."""
    keys = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group.get("amsgrad") else set())
    if "ns_steps" in group:
        keys = {"momentum_buffer"}
    if entry.keys() != keys:
        raise CheckpointError(
            f"optimizer state of {name!r} has {sorted(entry)}, expected {sorted(keys)}; "
            "resume with the optimizer settings that the run started with"
        )
    for key, tensor in entry.items():
        # Step counts are scalars in the default float type of the program that wrote them.
        shape, dtype = (torch.Size([]), tensor.dtype) if key == "step" else (param.shape, param.dtype)
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise CheckpointError(
                f"optimizer state {key} of {name!r} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} "
                f"{list(shape)}; it belongs to another config: use the config in the manifest.json of its run"
            )
    # Adam counts steps on the host unless its update runs in one kernel or a graph.
    step_device = param.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    devices = {key: step_device if key == "step" else param.device for key in keys}
    return {key: tensor.detach().to(devices[key], copy=True) for key, tensor in entry.items()}
