"""SONA's choice of the outside word (its Table 2) on the digits: any, the one most like the source's class, the one least like it.

    outskirts run sona_prompts

0 to 2 are known, 3 to 6 the outside words: one in four is close, one in four far. Likeness is that of the mean images that the diffusion
model holds of its classes, which stands in for CLIP's texts. The third strategy of the table, LAION's captions, needs a model of text.
"""

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

WORDS = {"words": ("3", "4", "5", "6"), "share": 0.25}


def recipe() -> Recipe:
    return sona_digits.ablation(
        "sona_prompts",
        "SONA's ablation of the outside word (Table 2) on the digits: 0 to 2 known, 3 to 6 the words; the recipe's own is any.",
        sona_digits.made({s: {"strategy": s} for s in ("close", "far")}, **WORDS),
        classes="0-2",
        synth_with={**sona_digits.WITH, **WORDS},
        own=("sona", "close", "far"),
    )
