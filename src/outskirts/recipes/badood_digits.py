"""Bad-OOD on the digits: a representation diffusion model of the classifier's features, and a small decoder, both trained on the spot.

outskirts run badood_digits --out runs/badood_digits
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart


def recipe() -> Recipe:
    q, given = quickstart.recipe(), {"decoder_steps": 500, "model_steps": 1200}
    return replace(
        q,
        name="badood_digits",
        about="Bad-OOD on handwritten digits: representations pushed to where they are rare, decoded to digits between the digits.",
        synth="badood",
        synth_with=given,
        methods={
            "round trips": {"of": "badood", "train": {"vae_roundtrip": True}},
            "unguided": {"synth": "badood", "with": {**given, "guidance": "none"}},
        },
        own=("badood", "round trips"),
    )
