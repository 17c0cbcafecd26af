"""SONA's outliers as a hard test set (its Table 10), on the digits: those of an earlier run, by `store:`, beside the near set 7 to 9.

    outskirts synth sona_digits --out runs/sona_digits
    outskirts run sona_hard --out runs/sona_hard

Post-hoc scores of the plain classifier, and uniform OE on the real 5s and 6s. The sources are ID images that the classifier was trained on, as in
the paper; an outlier with a small T is hardly more than its source, so nothing reaches 100.
"""

from dataclasses import replace

from outskirts.recipe import Recipe
from outskirts.recipes import sona_digits

STORE = "store:runs/sona_digits"


def recipe() -> Recipe:
    base = sona_digits.recipe()
    return replace(
        base,
        name="sona_hard",
        about="SONA's outliers as an OOD test set (Table 10) on the digits: 0 to 4 known; the set is hard, and 7 to 9 are near.",
        near=(*base.near, f"SONA={STORE}"),
        far=(),
        outliers="digits[5,6]",
        train=replace(base.train, mi=None),
        methods={},
        own=(),
        plain_scores=("mahalanobis", "vim", "rmd"),
    )
