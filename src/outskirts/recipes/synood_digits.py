"""SynOOD on the digits, in its pixel form: the quickstart's diffusion model starts from a noised digit, its class unsaid.

    outskirts run synood_digits --out runs/synood_digits

The noise of each start is moved to where the classifier's energy is the one under which 95 % of held-out ID images stay, in six passes
where the paper has three: they are cheap here. Trained as the quickstart is.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import quickstart


def recipe() -> Recipe:
    return replace(
        quickstart.recipe(),
        name="synood_digits",
        about="SynOOD's pixel form on handwritten digits: outliers from ID images at the classifier's boundary, beside the noise floor.",
        synth="synood",
        synth_with={"per_class": 100, "passes": 6, "batch_size": 128, "decode_batch": 128},
        own=("synood",),
    )
