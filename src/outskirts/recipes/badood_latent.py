"""Pixels against features (Table 13) and guidance against random steps (Table 7) of Bad-OOD, on the digits.

    outskirts run badood_latent --out runs/badood_latent

All methods share the embeddings and the representation diffusion model; those with pictures share the decoder.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import badood_digits


def recipe() -> Recipe:
    base = badood_digits.recipe()
    same = base.synth_with
    return replace(
        base,
        name="badood_latent",
        about="Bad-OOD on handwritten digits as pictures and as features, guided and with random steps of the same ratios.",
        methods={
            "badood features": {"synth": "badood", "with": {**same, "decoder": "none"}},
            "random steps": {"synth": "badood", "with": {**same, "guidance": "noise"}},
            "random steps, features": {"synth": "badood", "with": {**same, "guidance": "noise", "decoder": "none"}},
        },
        own=("badood", "badood features"),
    )
