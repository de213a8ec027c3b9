"""Gradients of the operators: the reference, run again and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fassd_kernels.autocast import is_tensors
from fassd_kernels.checks import check_storage
from fassd_kernels.operators import Operator


def save_arguments(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Tensor) -> None:
    """Save the tensors among an operator's arguments, and the structure to restore them."""
    tensors: list[Tensor] = []
    layout: list[Any] = []  # per argument: (first, count), index, or the value itself
    for argument in inputs:
        if isinstance(argument, Tensor):
            layout.append(("tensor", len(tensors)))
            tensors.append(argument)
        elif is_tensors(argument):
            layout.append(("tensors", len(tensors), len(argument)))
            tensors.extend(argument)
        else:
            layout.append(("value", argument))
    ctx.save_for_backward(*tensors)
    ctx.layout = layout
    # The reference does not use `allow_tf32`.
    ctx.keywords = {k: v for k, v in keyword_only_inputs.items() if k != "allow_tf32"}


def save_positional_arguments(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """:func:`save_arguments` for an operator without keyword arguments."""
    save_arguments(ctx, inputs, {}, output)


def restore_arguments(ctx: Any) -> list[Any]:
    saved = ctx.saved_tensors
    arguments: list[Any] = []
    for kind, *where in ctx.layout:
        if kind == "tensor":
            arguments.append(saved[where[0]])
        elif kind == "tensors":
            arguments.append(list(saved[where[0] : where[0] + where[1]]))
        else:
            arguments.append(where[0])
    return arguments


def backward_through(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The backward of an operator: recompute the reference `function` and differentiate that.

    One rule serves every operator: its gradients are the reference's by construction, and can be
    differentiated again. It costs one more forward pass, but not in training: batch statistics
    forbid folding there, so the modules do not call the operators.
    """

    def backward(ctx: Any, grad: Tensor) -> Any:
        check_storage("backward", "the gradient", grad)
        arguments = restore_arguments(ctx)
        wanted: list[Tensor] = []

        def want(argument: Any) -> Any:
            if isinstance(argument, Tensor) and argument.requires_grad:
                # a view, so that one tensor passed twice gets two gradients, not twice their sum
                wanted.append(argument.view_as(argument))
                return wanted[-1]
            return [want(x) for x in argument] if is_tensors(argument) else argument

        with torch.enable_grad():
            output = function(*map(want, arguments), **ctx.keywords)
        create_graph = torch.is_grad_enabled()
        gradients = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph))

        def collect(argument: Any) -> Any:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return next(gradients)
            return [collect(x) for x in argument] if is_tensors(argument) else None

        # One gradient for each argument given in the call; omitted defaults at the end do not
        # count.
        return tuple(collect(argument) for argument in arguments[: len(ctx.needs_input_grad)])

    return backward


def register_gradient(operator: Operator, namespace: str, library: torch.library.Library) -> None:
    """Give an operator of a namespace the gradient of its reference."""
    schema = getattr(getattr(torch.ops, namespace), operator.name).default._schema
    by_name = any(argument.kwarg_only for argument in schema.arguments)
    torch.library.register_autograd(
        f"{namespace}::{operator.name}",
        backward_through(operator.reference),
        setup_context=save_arguments if by_name else save_positional_arguments,
        lib=library,
    )
