"""One pass of images through a classifier: modules by name, what they give, and what scores note of it on the way."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.errors import OutskirtsError
from outskirts.find import did_you_mean
from outskirts.types import Look, Observer, Outputs


def batches(images, size: int, shape: tuple[int, int] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images in [0, 1] and their labels, `size` at a time: of Images, brought to `shape`, or of a tensor, which has no labels."""
    if isinstance(images, Tensor):
        yield from ((part, None) for part in images.split(size)) if len(images) else ()
    else:
        yield from images.batches(size, size=shape)


@contextmanager
def at_rest(classifier) -> Iterator[None]:
    """In eval mode and without gradients of parameters; afterwards each module and parameter is as it was."""
    training = [m for m in classifier.modules() if m.training]
    learning = [p for p in classifier.parameters() if p.requires_grad]
    classifier.eval()
    for p in learning:
        p.requires_grad = False
    try:
        yield
    finally:
        for m in training:  # a frozen batch norm inside a network in training stays frozen
            m.training = True
        for p in learning:
            p.requires_grad = True


def note(classifier, images: Float[Tensor, "B C H W"], observers: Mapping[str, Observer]) -> Outputs:
    """One forward pass at rest, and what the observers note of it, by key.

    There is a graph only where one of them takes a gradient, and only those see it.
    """
    graph = any(takes_gradient(s) for s in observers.values())
    names = {n for s in observers.values() if hasattr(s, "watches") for n in s.watches(classifier, images)}
    with torch.inference_mode(not graph), torch.set_grad_enabled(graph), outputs_of(classifier.net, names) as maps:
        x = images.detach().clone().requires_grad_() if graph else images
        outputs = classifier(x)
    with torch.inference_mode(False), torch.enable_grad():
        seen = Look(classifier, x, outputs, maps)
        plain = seen.detached()
        noted = {key: s.observe(seen if takes_gradient(s) else plain).detach() for key, s in observers.items()}
    return Outputs(plain.outputs.logits, plain.outputs.features, observed=noted)


def takes_gradient(observer: Observer) -> bool:
    return getattr(observer, "gradient", False)


@contextmanager
def outputs_of(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the named modules give in the passes made within, each in its last one; copies, for what follows may write into them."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, y) -> None:
        if not isinstance(y, Tensor):
            raise OutskirtsError(f"layer {name!r} gives a {type(y).__name__}, not a tensor; name another one")
        kept[name] = y.clone()

    with hooked(net, {name: partial(keep, name) for name in names}):
        yield kept


@contextmanager
def hooked(net: nn.Module, hooks: Mapping[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Within, what a named module gives goes to its hook, and becomes what that returns unless it returns None."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            handle = module(net, name).register_forward_hook(lambda _m, _x, y, hook=hook: hook(y))
            stack.callback(handle.remove)
        yield


def module(net: nn.Module, name: str) -> nn.Module:
    """Raises OutskirtsError where the network has no module of that name."""
    names = {n: m for n, m in net.named_modules() if n}
    if name not in names:
        raise OutskirtsError(
            f"no layer {name!r}{did_you_mean(name, names)}; the last ones of this network are {', '.join(list(names)[-5:])}"
        )
    return names[name]
