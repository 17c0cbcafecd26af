"""The smallest recipe that visits every stage but diffusion: real digits, real training, a few seconds."""

from outskirts.recipe import ClassifierSettings, Recipe, TrainSettings


def recipe() -> Recipe:
    return Recipe(
        name="tiny",
        id="digits",
        classes="0-2",
        near=("digits 3=digits[3]",),
        far=("noise",),
        fit_classifier=ClassifierSettings(arch="resnet_tiny", epochs=2, lr=0.05, batch_size=64, augment="none"),
        synth="own.speckle",
        synth_with={"batch_size": 8},
        n_outliers=40,
        train=TrainSettings(epochs=1, lr=1e-3, batch_size=64, outlier_batch_size=16, augment="none"),
        seeds=(0, 1),
        scores=("msp", "energy", "knn", "unified"),
        score_with={"knn": {"k": 10}, "unified": {"k": 10}},
        threads=1,
        device="cpu",
    )
