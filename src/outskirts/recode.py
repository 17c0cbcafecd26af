"""One pass through a lossy image format, for outliers whose ID images went through it.

Every outlier should have been in that format as often as an ID image was: once. What is generated passes here; what is made of the
pixels of ID images, and real images (see synth/real.py), did before: a synthesizer says so with `coded`.
"""

import io

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from outskirts.errors import OutskirtsError
from outskirts.images import read

RECODE = {
    "jpeg": {},
    "webp": {},
    "avif": {"subsampling": "4:4:4", "speed": 4, "max_threads": 1, "advanced": {"tune": "psnr"}},
}
"""Formats that outliers can pass through, with Pillow's options for each."""


def recode(image: UInt8[Tensor, "3 H W"], codec: str) -> UInt8[Tensor, "3 H W"]:
    """The image after one pass through a lossy format, `FORMAT:QUALITY`: jpeg:75, webp:80 or avif:58 (4:4:4, tuned for PSNR).

    Raises OutskirtsError for another format or a quality outside 1 to 100.
    """
    name, _, quality = codec.partition(":")
    if name not in RECODE or not quality.isdigit() or not 1 <= int(quality) <= 100:
        raise OutskirtsError(
            f"codec {codec!r}; accepted: {', '.join(f'{n}:QUALITY' for n in RECODE)}, quality 1 to 100"
        )
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.save(file, name.upper(), quality=int(quality), **RECODE[name])
    return torch.from_numpy(read(file.getvalue()))
