"""Decoders: one interface, tiny random components of the real classes, an image that does not depend on its batch, bad weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from outskirts.data import Images
from outskirts.decoder_small import fit_small
from outskirts.decoders import load_space
from outskirts.encoders import Features, embeddings, load_encoder
from outskirts.errors import OutskirtsError
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.recipe import DiffusionSettings
from outskirts.representation import PerSample, Standard
from tiny_decoders import tiny_kandinsky, tiny_unclip, tiny_vision

torch.manual_seed(0)
KINDS = ("small", "codec", "kandinsky", "unclip")


def tones(n=60, side=8, colour=True):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    noise = torch.randint(0, 80, (n, 3 if colour else 1, side, side), generator=g)
    pixels = (60 * labels[:, None, None, None] + noise).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return Images("tones", list("abc"), labels, pixels)


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = small_resnet("resnet_tiny", 3)
    return Classifier(net, classes=list("abc"), size=None, mean=(0.5,) * 3, std=(0.25,) * 3).frozen()


def small(classifier, images, folder=None, **changes):
    x = embeddings(Features(classifier), images)
    settings = DiffusionSettings(**{"channels": (8, 8), "steps": 3, "batch_size": 4, "codec": "none", **changes})
    return fit_small(images, x, Features(classifier), Standard(x.shape[1], 8).fit(x), settings, folder=folder, steps=3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    kandinsky, vision = tiny_kandinsky(folder)
    tiny_vision(12).save_pretrained(folder / "other")
    return {"kandinsky": kandinsky, "vision": vision, "unclip": tiny_unclip(folder), "other": folder / "other"}


@pytest.fixture(scope="module")
def made(classifier, parts):
    kandinsky, vision, unclip = parts["kandinsky"], parts["vision"], parts["unclip"]
    return {
        "small": small(classifier, tones(colour=False)),
        "codec": small(classifier, tones(side=16), codec="patch-pca", codec_components=6),
        "kandinsky": load_space(f"clip:{vision}", f"kandinsky:{kandinsky}", None, steps=2)[1],
        "unclip": load_space("classifier", f"unclip:{unclip}", None, steps=2)[1],
    }


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_embeddings_are_pictures(made, kind):
    decoder = made[kind]
    z = decoder.encode(torch.rand(3, 3, 16, 16))
    assert z.shape == (3, decoder.dim)
    images = decoder.decode(z, generators(1, 2, 3))
    assert images.shape == (3, 3, *decoder.native_size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0
    assert isinstance(decoder.name, str)
    assert len(decoder.weights_hash) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_embedding_and_generator_alone(made, kind):
    decoder = made[kind]
    z = 3 * torch.randn(4, decoder.dim, generator=torch.Generator().manual_seed(1))
    together = decoder.decode(z, generators(1, 2, 3, 4))
    order = [2, 0, 3, 1]
    mixed = decoder.decode(z[order], generators(*(i + 1 for i in order)))
    torch.testing.assert_close(mixed, together[order], atol=1e-4, rtol=0)
    for i in range(4):
        torch.testing.assert_close(decoder.decode(z[i : i + 1], generators(i + 1))[0], together[i], atol=1e-4, rtol=0)
    moved = decoder.decode(torch.cat([z[:1], -z[1:2], z[2:]]), generators(1, 2, 3, 4))
    changed = (moved - together).abs().flatten(1).amax(1) > 1e-5
    assert changed.tolist() == [False, True, False, False]  # IP-Adapter fails this: every image saw every embedding
    reseeded = decoder.decode(z[:1], generators(9))
    assert (reseeded - together[:1]).abs().max() > 1e-3


def test_hub_decoders_keep_norms_in_the_range_of_the_data(made):
    x = 5 + torch.randn(400, made["kandinsky"].dim)
    normalizer = made["kandinsky"].normalizer.fit(x)
    torch.testing.assert_close(normalizer.inverse(normalizer(x[:50]))[5:6], x[5:6], atol=1e-4, rtol=1e-4)
    low, high = torch.quantile(x.norm(dim=1), torch.tensor([0.005, 0.995])).tolist()
    far = normalizer.inverse(30 * normalizer(x)).norm(dim=1)
    assert far.max() <= high + 1e-3
    assert far.min() >= low - 1e-3


def test_kandinsky_is_its_pipeline_with_the_black_image_as_negative(made):
    decoder = made["kandinsky"]
    z = decoder.encode(torch.rand(2, 3, 16, 16))
    black = decoder.encoder.net(torch.zeros(1, 3, 16, 16)).image_embeds
    theirs = decoder.pipeline(
        image_embeds=z, negative_image_embeds=black.expand(2, -1), height=16, width=16, num_inference_steps=2,
        guidance_scale=4.0, generator=generators(5, 6), output_type="np",
    ).images  # fmt: skip
    ours = decoder.decode(z, generators(5, 6))
    torch.testing.assert_close(ours, torch.tensor(theirs).permute(0, 3, 1, 2), atol=1e-5, rtol=0)


def test_clip_embeddings_are_the_projection_as_it_is(tmp_path):
    tiny_vision().save_pretrained(tmp_path / "v")
    encoder = load_encoder(f"clip:{tmp_path / 'v'}")
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    torch.testing.assert_close(encoder.encode(images), tiny_vision().eval()((images - mean) / std).image_embeds)
    assert encoder.encode(torch.rand(2, 3, 24, 40)).shape == (2, 8)


def test_a_timm_encoder_gives_its_pooled_features():
    import timm

    encoder = load_encoder("timm:test_resnet?pretrained=false")
    images = torch.rand(2, 3, *encoder.size)
    normal = (images - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    bare = timm.create_model("test_resnet", num_classes=0).eval()
    bare.load_state_dict(encoder.net.state_dict(), strict=False)
    torch.testing.assert_close(encoder.encode(images), bare(normal))


def test_a_decoder_from_its_folder_is_the_same(classifier, tmp_path):
    images = tones(side=16)
    first = small(classifier, images, tmp_path, codec="patch-pca", codec_components=6)
    second = small(classifier, images, tmp_path, codec="patch-pca", codec_components=6)
    assert first.weights_hash == second.weights_hash
    assert small(classifier, images, codec="patch-pca", codec_components=6, seed=1).weights_hash != first.weights_hash
    assert len(list(tmp_path.iterdir())) == 1
    path = next(tmp_path.iterdir()) / "decoder.safetensors"
    state = load_file(path)
    state["fronts.0.weight"] = state.pop("front.0.weight")
    save_file(state, path)
    with pytest.raises(
        OutskirtsError, match=r"1 (keys )?missing, first front\.0\.weight; 1 unexpected, first fronts\.0\.weight"
    ):
        small(classifier, images, tmp_path, codec="patch-pca", codec_components=6)


def test_starting_from_the_anchor_stays_with_it(made):
    decoder, anchors = replace(made["small"], steps=20), tones(colour=False).pixels[:6].float() / 255
    z = decoder.encode(anchors)
    change = [
        (decoder.decode(z, generators(*range(6)), anchors=anchors, from_anchor=share) - anchors).abs().mean()
        for share in (0.05, 1.0)
    ]
    assert 3 * change[0] < change[1]


# Bad input


def test_parts_that_lack_weights_are_refused(tmp_path):
    kandinsky, vision = tiny_kandinsky(tmp_path)
    path = next((Path(kandinsky) / "unet").glob("*.safetensors"))
    state = load_file(path)
    state["entrance.weight"] = state.pop("conv_in.weight")
    save_file(state, path, {"format": "pt"})
    with pytest.raises(
        OutskirtsError, match=r"unet lacks 1 weights, first conv_in\.weight, and has 1 others, first entrance"
    ):
        load_space(f"clip:{vision}", f"kandinsky:{kandinsky}", None)
    path = next(Path(vision).glob("*.safetensors"))
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(OutskirtsError, match=r"lacks 1 weights, first visual_projection\.weight"):
        load_encoder(f"clip:{vision}")


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (
            "classifier",
            "kandinsky:{kandinsky}",
            "reads CLIP image embeddings of 8 numbers, and encoder=classifier makes 64",
        ),
        ("clip:{other}", "kandinsky:{kandinsky}", "of 8 numbers, and encoder=clip:.* makes 12"),
        (
            "clip:{vision}",
            "kandinsky:{unclip}",
            "is a StableUnCLIPImg2ImgPipeline; give a folder or Hub id of a KandinskyV22",
        ),
        ("clip:{vision}", "unclip:{unclip}", "comes with its own encoder"),
        ("clip:{vision}", "none", "in the classifier's own features"),
        ("classifier", "big", "no decoder 'big'"),
        ("classifier", "mage:{vision}", "holds no MAGE"),
        ("classifier", "kandinsky:{vision}", "no model_index.json"),
        ("dino", "small", "no encoder 'dino'"),
        ("clip:{unclip}", "small", "cannot load CLIP model"),
        ("timm:resnet_18", "small", "timm has no model"),
    ],
)
def test_names_that_do_not_go_together(classifier, parts, encoder, decoder, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        load_space(encoder.format(**parts), decoder.format(**parts), classifier)
    assert "\n" not in str(e.value)


def test_large_images_have_no_small_decoder(classifier):
    images = tones(6, side=72)
    with pytest.raises(OutskirtsError, match="up to 64 pixels, and tones has 72x72"):
        small(classifier, images)


def test_spaces_have_the_normalizers_of_their_decoders(classifier):
    encoder, decoder, normalizer = load_space("classifier", "none", classifier, components=5)
    assert (encoder.name, decoder, normalizer.size) == ("classifier", None, 5)
    z = PerSample(6)(torch.randn(3, 6) * 7 + 2)
    torch.testing.assert_close(
        z.square().sum(1), torch.full((3,), 5.0)
    )  # ||z||^2 = d - 1, as RCG's standard deviation makes it
    torch.testing.assert_close(z.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
