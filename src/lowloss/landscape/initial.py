"""Initial points: a module drawn anew from a seed."""

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowloss.data.base import Data
from lowloss.errors import LowlossError, reason
from lowloss.landscape.engine.loop import FOREIGN, foreign_seed

SAME = "the model is one and the same at every call: pass a function that builds a new one"

log = logging.getLogger("lowloss")


def built(factory: Callable[..., nn.Module], data: Data, seed: int) -> nn.Module:
    """A module by its factory, whose random numbers follow from the seed; lazy layers are made by a pass.

    The factory is given `input_shape` and `num_classes` where it takes them and they are not set.

    Raises LowlossError: the factory rejects its arguments.
    """
    with _seeded(seed):
        return _built(factory, data)


def _built(factory: Callable[..., nn.Module], data: Data) -> nn.Module:
    known: dict[str, object] = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    given = factory.keywords if isinstance(factory, partial) else {}
    filled = {}
    with contextlib.suppress(ValueError):  # it is given other arguments than it takes: told by the call
        taken = inspect.signature(factory).parameters.keys() - given.keys()
        filled = {key: value for key, value in known.items() if key in taken and value is not None}
    try:
        module = factory(**filled)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = data.input_shape
        # What unpacks the shape of an image into channels, height and width.
        images = "to unpack" in str(error) and len(shape) < 3 and "input_shape" in filled
        remedy = f", of inputs of shape {shape}: images need an axis of channels, x[:, None]" if images else ""
        if "unexpected keyword argument '" in str(error):  # such as those of the option that _target_ replaces
            key = str(error).split("'")[1]
            remedy = f": leave it out, as ~model.{key} does" if key in given else ""
        raise LowlossError(f"model: {error}{remedy}") from error
    if not isinstance(module, nn.Module):
        raise LowlossError(f"model must make a torch.nn.Module, got {type(module).__name__}: set model._target_")
    _check_kind(module)
    _materialise(module, data)
    return module


def drawn(model: nn.Module | Callable[..., nn.Module], data: Data, seed: int, unchecked: nn.Module | None) -> nn.Module:
    """A module at an initial point.

    Args:
        unchecked: what a factory built with seed 0, if it is to be seen whether points follow from their seeds.

    Raises LowlossError: they do not.
    """
    if isinstance(model, nn.Module):
        module = reset(model, data, seed)
        if unchecked is not None:
            _check_redrawn(module, reset(model, data, seed + 1))
            _tell_own(model, module)
        return module
    module = built(model, data, seed)
    if unchecked is not None:
        more = built(model, data, seed or 1)
        _check_drawn(model, data, module, *((more, unchecked) if seed else (unchecked, more)))
    return module


def _check_drawn(
    factory: Callable[..., nn.Module], data: Data, module: nn.Module, again: nn.Module, other: nn.Module
) -> None:
    """Raise LowlossError if a factory seeds itself, or gives one module again and again, so that every seed begins at
    one point, or if one seed begins at several; tell where it draws nothing, since it loads its weights, say."""
    if module is again:
        raise LowlossError(SAME)
    if not _alike(module, again):
        raise LowlossError(
            "the model begins elsewhere when it is drawn again from the same seed: draw its weights by the random "
            "numbers of torch, NumPy or Python themselves, not by a generator that is kept"
        )
    if not _alike(module, other):
        return
    states = []
    for seed in (0, 1):
        with _seeded(seed):
            _built(factory, data)
            states.append([str(torch.get_rng_state().tolist()), *(str(state()) for state, _, _ in FOREIGN.values())])
    if any(before == after for before, after in zip(*states, strict=True)):
        raise LowlossError(
            "the model begins at one point whatever the seed, since it seeds the random numbers itself: pass a "
            "function that builds the model without that, so that seeds can draw its initial points"
        )
    log.warning("the model begins at one point whatever the seed: minima differ by their minibatches alone")


def _alike(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def counted(factory: Callable[..., nn.Module], data: Data) -> int:
    """How many parameters a factory's module has, found without memory for them; 0 where it cannot be made so."""
    with contextlib.suppress(Exception), torch.device("meta"):  # whatever it does that needs numbers
        return sum(parameter.numel() for parameter in built(factory, data, seed=0).parameters())
    return 0


def copied(model: nn.Module, data: Data) -> nn.Module:
    """A copy of a module, its lazy layers made by a pass.

    Raises LowlossError: it cannot be copied, or a gradient would be changed by a hook.
    """
    _check_kind(model)
    try:
        module = clone(model)
    except (RuntimeError, ValueError) as error:
        raise LowlossError(
            f"{type(model).__name__} cannot be copied ({reason(error)}): pass a function that builds the model"
        ) from error
    with _seeded(0):
        _materialise(module, data)
    return module


def clone(module: nn.Module) -> nn.Module:
    """A copy of a module with the attributes of its parameters, and as values what it has computed from these: torch
    leaves the first out, and does not copy the second."""
    kept = [one for part in module.modules() for one in vars(part).values()]
    kept += [one for some in kept if isinstance(some, list) for one in some]
    computed = [one for one in kept if isinstance(one, Tensor) and not one.is_leaf]
    memo: dict[int, object] = {id(one): one.detach().clone() for one in computed}
    twin = copy.deepcopy(module, memo)
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        if vars(own):
            vars(other).update(copy.deepcopy(vars(own), memo))
    return twin


def _check_kind(module: nn.Module) -> None:
    """Raise LowlossError if a module is none of Python, whose parameters and mode can be set, or has gradient hooks."""
    for path, part in module.named_modules():
        nodes = part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ()
        exported = any(isinstance(node.target, torch._ops.OpOverload) for node in nodes)
        if exported or isinstance(part, torch.jit.ScriptModule):
            raise LowlossError(
                f"{path or 'the model'} was made by torch.{'export' if exported else 'jit'}, so that its parameters "
                "and its mode cannot be set: give the nn.Module it was made of, or a function that builds that"
            )
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise LowlossError(
                f"{name} of {type(module).__name__} has a gradient hook, and gradients at points are taken without: "
                "remove it, and change the gradient in forward() where that is meant"
            )


def rebuilt(model: nn.Module | Callable[..., nn.Module], data: Data, module: nn.Module) -> nn.Module:
    """What a function builds anew, with the values of the module that it built, whose copies compute with its weights.

    Raises LowlossError: the model is a module, or a function that gives one module again and again.
    """
    if isinstance(model, nn.Module):
        raise LowlossError(
            f"the forward pass of a copy of {type(model).__name__} reaches the weights of the module that was given, "
            "through a lambda or hook that holds it: pass a function that builds the model"
        )
    anew = built(model, data, seed=0).to(next(module.parameters()).device)
    if anew is module:
        raise LowlossError(SAME)
    values = dict([*module.named_parameters(), *module.named_buffers()])
    with torch.no_grad():
        for name, tensor in [*anew.named_parameters(), *anew.named_buffers()]:
            tensor.copy_(values[name])
    return anew


def reset(model: nn.Module, data: Data, seed: int) -> nn.Module:
    """A copy of a module, on the CPU, redrawn by `reset_parameters` of its layers, of parts before the whole.

    Raises LowlossError: a layer has parameters that it does not redraw.
    """
    module = copied(model, data).cpu()
    with _seeded(seed):
        _redraw(module, "")
    return module


def _check_redrawn(one: nn.Module, other: nn.Module) -> None:
    """Raise LowlossError if two seeds gave a parameter the same values, unless these are all one number.

    Shapes: S values of a parameter.
    """
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        values_S = parameter.detach().flatten()
        same = parameter.requires_grad and torch.equal(values_S, others[name].detach().flatten())
        if same and not bool((values_S == values_S[:1]).all()):
            raise LowlossError(
                f"{name} is the same for every seed, since no reset_parameters() redraws it: pass a function that "
                "builds the model, so that seeds can draw its initial points"
            )


def _tell_own(given: nn.Module, drawn: nn.Module) -> None:
    """Tell where an instance's values are spread otherwise than those that `reset_parameters` draws: it has been
    trained, or has an initialisation of its own, which the initial points do not have.

    Shapes: S values of a parameter.
    """
    own = {name: p.detach().flatten() for name, p in given.named_parameters() if not is_lazy(p) and p.requires_grad}
    for name, parameter in drawn.named_parameters():
        drawn_S, own_S = parameter.detach().flatten(), own.get(name)
        if own_S is None or len(own_S) < 2:
            continue
        spread, wanted = float(own_S.std()), float(drawn_S.std())
        # By more than six standard errors of a standard deviation, and a tenth.
        if abs(spread - wanted) > wanted * max(0.1, 6 / (2 * len(own_S)) ** 0.5):
            log.warning(
                "%s of the model has standard deviation %.3g, and %.3g as reset_parameters() draws initial points: "
                "pass a function that builds the model if its own initialisation is meant",
                name,
                spread,
                wanted,
            )
            return


def _redraw(module: nn.Module, path: str) -> None:
    for name, part in module.named_children():
        _redraw(part, f"{path}.{name}" if path else name)
    redraw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(redraw):
        redraw()
    elif any(p.requires_grad for p in module.parameters(recurse=False)):
        raise LowlossError(
            f"{path or type(module).__name__} has parameters but no reset_parameters(): "
            "pass a function that builds the model, so that seeds can draw its initial points"
        )


def _materialise(module: nn.Module, data: Data) -> None:
    if any(is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        x = data.x_train[:2].cpu()
        try:
            with torch.no_grad():
                module.eval()(x if x.dtype != torch.uint8 else x.float())
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            told = f"{type(module).__name__} rejects inputs of shape {tuple(x.shape[1:])}"
            raise LowlossError(f"{told}: {reason(error)}") from error
        module.train()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), foreign_seed(seed):
        torch.manual_seed(seed)
        yield
