"""GOOD on CIFAR-10, for real: a small ResNet, a small diffusion model on a patch codec, 3 seeds of outlier training.

    outskirts run good_cifar10 --out runs/good_cifar10

Reads the image pack in ../shared/data and the diffusion model in weights/cifar10-diffusion, both relative to where it is
started. Elsewhere: id=torchvision:CIFAR10:train id_test=torchvision:CIFAR10:test and your own near= and far= sets;
diffusion=fit trains the model on the spot (hours on a CPU, minutes on a GPU). Results are in results/good_cifar10_*.json.
"""

from outskirts.recipe import ClassifierSettings, DiffusionSettings, Recipe, TrainSettings

PACK = "../shared/data"
# classes of Tiny ImageNet that show a CIFAR-10 class, or may: positions, from the pack's tin32.json
OVERLAP = "2,3,11,20,21,22,24,25,26,27,28,29,30,31,32,52,70,94,107,108,111,115,116,121,133,137,145,153,166"


def recipe() -> Recipe:
    return Recipe(
        name="good_cifar10",
        about="CIFAR-10 with a small ResNet: GOOD outliers from a small patch-coded diffusion model, beside the noise floor.",
        id=f"parquet:{PACK}/cifar10-train.parquet",
        id_test=f"parquet:{PACK}/cifar10-test.parquet",
        size=(32, 32),
        near=(
            f"CIFAR-100=parquet:{PACK}/cifar100-test.parquet",
            f"Tiny ImageNet=parquet:{PACK}/tin32-test.parquet[!{OVERLAP}]",
        ),
        far=(
            f"Textures=parquet:{PACK}/textures10-test.parquet",
            f"SUN=parquet:{PACK}/sun8-test.parquet",
            f"Sign digits=parquet:{PACK}/signdigits-test.parquet",
            f"MNIST=parquet:{PACK}/mnist-test.parquet",
            f"Fashion-MNIST=parquet:{PACK}/fashionmnist-test.parquet",
        ),
        classifier="fit",
        fit_classifier=ClassifierSettings(arch="resnet_small", epochs=10, lr=0.2, batch_size=128, augment="flip-crop"),
        diffusion="weights/cifar10-diffusion",
        fit_diffusion=DiffusionSettings(
            channels=(64, 128),
            layers_per_block=2,
            codec="patch-pca",
            codec_components=20,
            patch=4,
            steps=5500,
            batch_size=64,
            lr=8e-4,
            ema=0.9995,
            flip=True,
        ),
        synth="good",
        synth_with={"steps": 25, "k": 100, "probe": 8, "batch_size": 64},
        n_outliers=600,
        recode="avif:58",  # the pack's own codec: otherwise a detector learns the file format
        # steps and batches: what two CPU cores allow; lr: chosen on validation images and held-out outliers, see
        # results/choose-training_cifar10_*.json
        train=TrainSettings(
            lam=2.5, epochs=1, steps=120, lr=1e-3, batch_size=128, outlier_batch_size=64, augment="flip-crop"
        ),
        seeds=(0, 1, 2),
        fit_images=5_000,
        scores=("msp", "energy", "knn", "unified"),
    )
