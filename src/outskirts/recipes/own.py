"""Your own images: one sub-folder a class, a small classifier and a small diffusion model trained on the spot, GOOD, a report.

    outskirts run own --out runs/mine id=folder:photos/train near=folder:photos/other
    outskirts run own --out runs/mine id=folder:photos/train near=folder:photos/other classifier=timm:resnet18 size=224,224 \
        diffusion=stable-diffusion-v1-5/stable-diffusion-v1-5 synth.guidance_scale=7.5 device=cuda

The first form needs no download; training a diffusion model takes hours on a CPU and minutes on a GPU, and makes textures
rather than pictures of natural images: the report says whether that helped. `--dry-run` estimates the time.
"""

from outskirts.recipe import ClassifierSettings, DiffusionSettings, Recipe, TrainSettings


def recipe() -> Recipe:
    return Recipe(
        name="own",
        about="A classifier of your own images, against GOOD outliers and against plain noise.",
        id="folder:photos/train",
        size=(32, 32),
        far=("inverted=invert", "shuffled pixels=shuffle", "noise", "photo patches=photos"),
        classifier="fit",
        fit_classifier=ClassifierSettings(arch="resnet_small", epochs=30),
        diffusion="fit",
        fit_diffusion=DiffusionSettings(
            channels=(64, 128), layers_per_block=2, codec="auto", steps=8000, lr=8e-4, ema=0.9995, flip=True
        ),
        synth="good",
        synth_with={"k": 20, "batch_size": 64},
        n_outliers=1000,
        train=TrainSettings(epochs=5, lr=1e-2, batch_size=64, outlier_batch_size=64),
        scores=("msp", "energy", "knn", "unified"),
        score_with={"knn": {"k": 20}, "unified": {"k": 20}},
    )
