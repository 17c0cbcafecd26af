"""What several scores need. Not a score: names that begin with an underscore are not on the shelf."""

from typing import ClassVar

from jaxtyping import Int
from torch import Tensor, float32, promote_types

from outskirts.errors import OutskirtsError
from outskirts.types import Outputs


class Unfitted:
    """What every score that learns nothing from the training images has in common."""

    differentiable: ClassVar[bool] = True
    transductive: ClassVar[bool] = False

    def fit(
        self,
        train: Outputs,
        labels: Int[Tensor, " N"],
        *,
        val: Outputs | None = None,
        outliers: Outputs | None = None,
    ):
        return self


def fp32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is more exact: scores are never computed in half precision."""
    return x.to(promote_types(x.dtype, float32))


def need(given: Outputs | None, what: str, who: str) -> Outputs:
    """`given`, or the one line that says which argument of `fit` is missing."""
    if given is None or not len(given):
        raise OutskirtsError(f"{who} needs {what}; none were given; pass fit(..., {what.split(' ')[0]}=Outputs)")
    return given


def learned(score, name: str):
    """The fitted state `name` of a score."""
    if not hasattr(score, name):
        raise OutskirtsError(f"{type(score).__module__} is not fitted; call fit(train_outputs, labels) first")
    return getattr(score, name)
