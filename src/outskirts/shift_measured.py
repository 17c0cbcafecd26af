"""Semantic and covariate shift of real images, measured in CLIP's space: distances to ID images along what words of classes and of
styles span. After IS-OOD's LAID, which learns the directions; here they are principal ones of the texts."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from outskirts.clip import clip_of, text_encoder
from outskirts.evaluate import collect
from outskirts.images import Images
from outskirts.models import Classifier
from outskirts.prompts import spoken

STYLES = (
    *(
        "a photo of a {}",
        "a blurry photo of a {}",
        "a noisy photo of a {}",
        "a dark photo of a {}",
        "a bright photo of a {}",
    ),
    *(
        "a black and white photo of a {}",
        "a low contrast photo of a {}",
        "a jpeg corrupted photo of a {}",
        "a sketch of a {}",
    ),
    *(
        "a painting of a {}",
        "a cartoon of a {}",
        "a sculpture of a {}",
        "a {} in the snow",
        "a {} in the fog",
        "a rendering of a {}",
    ),
)
K = 10
SHARE = 0.95
"""Of the texts' variance that a subspace holds."""


def shifts(
    judge: Classifier, id_images: Images, pool: Sequence[Images]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """(semantic, covariate) shift of the images of `pool`, one set after the other: mean distance to the K nearest ID images."""
    name = clip_of(judge, "analyse.shift_map=measured").name
    words = [spoken(c) for c in judge.classes]
    texts = text_encoder(name)([style.format(w) for style in STYLES for w in words]).unflatten(
        0, (len(STYLES), len(words))
    )
    semantic, style = subspaces(texts.double())
    bank, features = (_unit(torch.cat([collect(judge, x).features for x in sets])) for sets in ([id_images], pool))
    return tuple(_distance(features @ basis.T, bank @ basis.T).numpy() for basis in (semantic, style))


def subspaces(texts: Float[Tensor, "S W D"]) -> tuple[Float[Tensor, "a D"], Float[Tensor, "b D"]]:
    """Orthonormal rows that span how classes differ (averaged over styles), and, orthogonal to them, how styles do."""
    semantic = _principal(texts.mean(0))
    styles = texts.mean(1)
    return semantic, _principal(styles - styles @ semantic.T @ semantic)


def _principal(x: Float[Tensor, "n D"]) -> Float[Tensor, "k D"]:
    _, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    share = s.square().cumsum(0) / s.square().sum()
    return v[: int((share < SHARE).sum()) + 1]


def _unit(x: Tensor) -> Float[Tensor, "N D"]:
    return torch.nn.functional.normalize(x.double(), dim=1)


def _distance(x: Float[Tensor, "N k"], bank: Float[Tensor, "M k"]) -> Float[Tensor, " N"]:
    near = [torch.cdist(part, bank).topk(min(K, len(bank)), largest=False).values.mean(1) for part in x.split(1000)]
    return torch.cat(near)
