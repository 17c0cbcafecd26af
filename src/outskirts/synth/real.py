"""Real outliers of your own, through the same store, trainer and report as the synthetic ones: OE, MixOE, energy margins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from outskirts.data import load
from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.settings import check_above, check_types
from outskirts.synth._shared import id_size, pixels_of, seed_of
from outskirts.types import Outlier, Request


@dataclass
class Synthesizer:
    """Outlier i is row i of an image set, which starts again when it is used up; resized as ID images are.

    The labels of the set are not read. It must share no class with the ID images, and no image with a test set.
    """

    images: str = ""
    """Image set by name, e.g. folder:DIR, torchvision:SVHN:train or parquet:GLOB[0-4]."""
    recode: bool | None = None
    """Whether the recipe's `recode` is for them too, because they never were in the lossy format of the ID images; none: no, they
    are taken as they are, since a second pass would mark them."""
    batch_size: int = 256
    """Images read at a time."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        check_types(self)
        check_above(self, 0, "batch_size")
        if not self.images:
            raise OutskirtsError("synth=real needs images of yours; give synth.images=NAME, e.g. folder:DIR")

    @property
    def coded(self) -> bool:
        return not self.recode

    def fit(
        self, images: Images, classifier=None, *, val: Images | None = None, state: Mapping[str, Any] | None = None
    ) -> "Synthesizer":
        """Raises OutskirtsError where the set is not there, is that of the ID images, or is not what an earlier fit (`state`) saw."""
        self.size_ = id_size(images, classifier)
        self.images_ = load(self.images, like=images, size=self.size_)
        if self.images_.fingerprint == images.fingerprint:
            raise OutskirtsError(f"synth.images={self.images} are the ID training images; give outliers")
        if state and state["fingerprint"] != self.images_.fingerprint:
            raise OutskirtsError(
                f"the images of synth.images={self.images} changed since; use another --out, or --redo synth"
            )
        self.state = {"count": len(self.images_), "fingerprint": self.images_.fingerprint}
        return self

    def requests(self, n: int | None = None, *, seed: int = 0) -> list[Request]:
        """`n` requests, or one for every image of the set."""
        count = len(self.images_)
        return [Request(i, seed_of(seed, i), dials={"row": i % count}) for i in range(count if n is None else n)]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Outlier]:
        images = pixels_of(self.images_, [r.dials["row"] for r in requests], self.size_)
        for request, image in zip(requests, images, strict=True):
            yield Outlier(request, image)
