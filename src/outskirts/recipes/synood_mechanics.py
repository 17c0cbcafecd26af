"""SynOOD's whole chain with random weights: mechanics only, its numbers mean nothing. Digits at 32x32, no download, under a minute on two cores.

    outskirts run synood_mechanics --out runs/m

The latent in-painting form, as `synood_imagenet` has it: contexts by CLIP over a vocabulary, an in-painting model of Stable Diffusion's classes,
learned noise, training, bench, report. The models are tiny and have learned nothing (`random:inpaint`, `random:clip`), so that outliers are
coloured noise and words have nothing to do with the images. Run it to see that an installation works, or what comes out of which stage.
"""

from outskirts.recipe import ClassifierSettings, Recipe, TrainSettings

WORDS = (
    "paper",
    "ink",
    "desk",
    "pencil",
    "ruler",
    "lamp",
    "window",
    "calendar",
    "chalk",
    "blackboard",
    "envelope",
    "stamp",
)


def recipe() -> Recipe:
    return Recipe(
        name="synood_mechanics",
        about="Random weights, mechanics only: these numbers mean nothing. SynOOD's in-painting form from digits to a report, with a tiny random "
        "in-painting model and CLIP.",
        id="digits",
        classes="0-6",
        size=(32, 32),
        near=("digits 7-9=digits[7-9]",),
        far=("noise",),
        fit_classifier=ClassifierSettings(arch="resnet_tiny", epochs=4, lr=0.1, batch_size=64, augment="shift"),
        diffusion="random:inpaint",
        synth="synood",
        synth_with={"clip": "random:clip", "vocabulary": WORDS, "most": 4, "image_size": 32},
        n_outliers=70,
        train=TrainSettings(lam=2.5, epochs=2, lr=1e-2, batch_size=64, outlier_batch_size=32, augment="shift"),
        seeds=(0,),  # no claim is made from one
        scores=("msp", "energy", "knn"),
        score_with={"knn": {"k": 50}},
    )
