"""SynOOD on ImageNet-1k with Stable Diffusion's in-painting model, as in the paper: 50 outliers of each class, and training against them.

    outskirts run synood_imagenet --out runs/synood id=folder:IMAGENET/train id_test=folder:IMAGENET/val device=cuda

Needs your ImageNet and test sets, a GPU (three passes of 12 steps for each of 50,000 outliers at 512 px, 3.6 million rows of the UNet) and
contexts: a file of answers, LLaVA (synth.contexts=hf:llava-hf/llava-1.5-7b-hf), or CLIP over a vocabulary of yours (synth.contexts=clip
synth.clip=openai/clip-vit-base-patch16 synth.vocabulary=file:words.txt). The paper does not train the classifier: it tunes CLIP on these
outliers and their sources, which `outskirts clip-tune` does with the store that this recipe fills; for that alone, `outskirts synth`
in the place of `outskirts run`.
This recipe was never run: it takes weights and images that are not here.
"""

from outskirts.recipe import Recipe, TrainSettings


def recipe() -> Recipe:
    return Recipe(
        name="synood_imagenet",
        about="ImageNet-1k with a ResNet-50: SynOOD outliers from Stable Diffusion's in-painting model, beside the noise floor.",
        id="folder:imagenet/train",
        id_test="folder:imagenet/val",
        size=(224, 224),
        near=("SSB-hard=folder:ssb_hard", "NINCO=folder:ninco"),
        far=("iNaturalist=folder:inaturalist", "Textures=folder:textures", "SUN=folder:sun", "Places=folder:places"),
        classifier="torchvision:resnet50",
        diffusion="sd2-community/stable-diffusion-2-inpainting",
        synth="synood",
        synth_with={"contexts": "file:answers.jsonl", "batch_size": 8, "decode_batch": 2},
        n_outliers=50_000,
        train=TrainSettings(lam=2.5, epochs=1, lr=1e-3, batch_size=128, outlier_batch_size=32, augment="flip-crop"),
        seeds=(0, 1, 2),
        scores=("msp", "energy", "knn", "unified"),
        score_with={"knn": {"k": 1000}, "unified": {"k": 1000}},
        fit_images=100_000,
    )
