"""Decoders of representations to images, behind one interface; `load_decoder` and `encoder_of` choose one by name.

small            a diffusion model of the user's own ID images, trained on the spot (`decoder_small.py`)
kandinsky:ID     Kandinsky 2.2's decoder, with encoder=clip:ID, the image encoder of its prior (`decoder_hub.py`)
unclip:ID        Stable unCLIP image variations, with their own encoder (`decoder_hub.py`)
mage:FOLDER      RCG's MAGE with its VQGAN and MoCo v3 (`mage.py`)
none             no decoder: representations of the classifier itself stay what they are, outliers in feature space
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outskirts.encoders import Encoder, check_encoder, check_place, load_encoder
from outskirts.errors import OutskirtsError
from outskirts.representation import Standard

SMALL, NONE = "small", "none"
MAGE = "mage.json"
"""What a folder of decoder=mage holds, `mage.CONFIG`; that module is slow to import."""
MOST = 256
"""Dimensions of z where nothing else is asked for and the embeddings are not a trained decoder's."""


@runtime_checkable
class Decoder(Encoder, Protocol):
    """An encoder whose embeddings can be made into images again."""

    native_size: int | tuple[int, int]
    """Side, or (H, W), of what it makes."""
    normalizer: nn.Module
    """Embeddings <-> what a representation diffusion model learns: `fit(x)`, a call and its `inverse`; see `representation`."""

    def decode(self, z: Float[Tensor, "B d"], generators: Sequence[torch.Generator]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] of embeddings as `encode` gives them; a generator each, so that none depends on its batch.

        The small decoder takes `anchors` [B, 3, H, W] and `from_anchor` too.
        """
        ...


def check_names(encoder: str, decoder: str) -> None:
    """Raises OutskirtsError for names that are none or do not go together, and for folders that are not there; nothing is loaded."""
    kind, _, where = decoder.partition(":")
    if decoder not in (SMALL, NONE) and not (kind in ("kandinsky", "unclip", "mage") and where):
        raise OutskirtsError(f"no decoder {decoder!r}; give small, none, kandinsky:ID, unclip:ID or mage:FOLDER")
    check_encoder(encoder)
    if kind in ("unclip", "mage") and encoder != "classifier":
        raise OutskirtsError(f"decoder={decoder} comes with its own encoder; leave encoder={encoder} out")
    if kind == NONE and encoder != "classifier":
        raise OutskirtsError(
            f"decoder=none makes outliers in the classifier's own features, and encoder={encoder} are others; leave it out"
        )
    if kind == "mage" and not (Path(where) / MAGE).is_file():
        raise OutskirtsError(f"{where} holds no MAGE: {MAGE} is not there; make it with `outskirts convert-rcg`")
    if kind in ("kandinsky", "unclip"):
        check_place(f"decoder={decoder}", where)


def load_space(
    encoder: str,
    decoder: str,
    classifier,
    *,
    device="cpu",
    precision: str = "fp32",
    components: int | None = None,
    side: int | None = None,
    steps: int = 20,
    scale: float | None = None,
) -> tuple[Encoder, Decoder | None, nn.Module]:
    """(encoder, decoder, normalizer) by name. The decoder is None where there is none, and where it is yet to be trained.

    steps, scale    DDIM steps and classifier-free guidance of a diffusion decoder; scale None: the model's usual one.
    Raises OutskirtsError for names that do not go together, where the embeddings have another size than the decoder's, and for
    more components than they have dimensions.
    """
    check_names(encoder, decoder)
    kind, _, where = decoder.partition(":")
    if decoder in (SMALL, NONE):
        found = load_encoder(encoder, classifier, device=device, precision=precision)
        _fewer(components, found)
        return found, None, Standard(found.dim, components or MOST)
    options = {"device": device, "precision": precision, "steps": steps, "side": side, "components": components}
    options |= {} if scale is None else {"scale": scale}
    if kind == "kandinsky":
        from outskirts.decoder_hub import kandinsky

        made = kandinsky(where, load_encoder(encoder, classifier, device=device, precision=precision), **options)
    elif kind == "unclip":
        from outskirts.decoder_hub import unclip

        made = unclip(where, **options)
    else:
        from outskirts import mage

        given = {"image_size": side, "components": components}
        if wrong := [k for k, v in given.items() if v is not None]:
            raise OutskirtsError(f"{wrong[0]} was given, and decoder=mage has none; leave it out")
        made = mage.load_decoder(where, device, steps=steps, cfg=scale or 0.0)
    _fewer(components, made)
    return made, made, made.normalizer


def _fewer(components: int | None, encoder: Encoder) -> None:
    if components is not None and not 1 <= components <= encoder.dim:
        raise OutskirtsError(
            f"components is {components}, and the embeddings of {encoder.name} have {encoder.dim} dimensions; give 1 to {encoder.dim}"
        )
