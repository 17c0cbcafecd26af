"""Bad-OOD on a small network's features: sign, ratios, independence, what is stored, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outskirts.data import Images
from outskirts.encoders import Features
from outskirts.errors import OutskirtsError
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.run import run
from outskirts.store import Store
from outskirts.synth import _ratio
from outskirts.synth._artefact import artefacts, generator_of
from outskirts.synth._ratio import find_strengths, knn_distance
from outskirts.synth._shared import to_uint8
from outskirts.synth.badood import Synthesizer
from own.tiny import recipe
from tiny_decoders import tiny_kandinsky

SMALL = {"width": 32, "blocks": 2, "model_steps": 150, "probe": 40, "n_steps": 5, "k": 3}
DECODER = {"decoder_steps": 2, "decoder_channels": (8, 8), "decoder_batch": 4, "steps": 2, "artefacts": 10}


def tones(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    shade = 50 * labels[:, None, None, None] + torch.randint(0, 80, (n, 3, 1, 1), generator=g)
    pixels = shade + torch.randint(0, 40, (n, 3, 8, 8), generator=g)
    return Images("tones", list("abc"), labels, pixels.to(torch.uint8))


TRAIN, VAL = tones(240), tones(60, seed=1)


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = small_resnet("resnet_tiny", 3)
    return Classifier(net, classes=list("abc"), size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3).frozen()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def make(classifier, folder):
    def made(**settings):
        return Synthesizer(**{"decoder": "none", **SMALL, **settings}).fit(TRAIN, classifier, val=VAL, folder=folder)

    return made


@pytest.fixture(scope="module")
def latent(make):
    return make()


@pytest.fixture(scope="module")
def pictures(make):
    return make(decoder="small", **DECODER)


def far(synthesizer, n=60):
    """Mean distance of n outliers to the training set, without their anchors."""
    outliers = list(synthesizer(synthesizer.requests(n)))
    return sum(o.notes["knn_distance"] for o in outliers) / n


# Guidance


def test_up_the_score_is_away_from_the_data_and_down_is_into_it(make):
    none, out, back = (far(make(strengths=(s,), toward=t)) for s, t in ((0.0, "ood"), (3.0, "ood"), (3.0, "id")))
    assert out > 1.1 * none
    assert back < 0.97 * none


def test_outliers_lie_as_far_as_the_ratio_says(latent):
    found = [latent.state[f"ratio {r}"] for r in ("1", "1.1", "1.2")]
    assert latent.state["unguided_ratio"] < 1
    assert 0 < found[0]["strength"] < found[1]["strength"] < found[2]["strength"]
    for one, ratio in zip(found, (1.0, 1.1, 1.2), strict=True):
        assert one["reached"]
        assert one["ratio"] == pytest.approx(ratio, abs=0.01)
    outliers = list(latent(latent.requests(None)))
    for ratio in (1.0, 1.1, 1.2):
        own = [o.notes["knn_ratio"] for o in outliers if o.request.dials["ratio"] == ratio]
        assert sum(own) / len(own) == pytest.approx(ratio, rel=0.08)
        assert len(own) == 80


def test_a_class_conditional_model_is_asked_for_the_class_of_the_anchor(make):
    synthesizer = make(class_conditional=True, strengths=(2.0,), draws=2, model_steps=60)
    assert synthesizer.model.facts["classes"] == 3
    requests = synthesizer.requests(6)
    z = synthesizer.represent(requests, 2.0)
    synthesizer.images_ = Images("shifted", TRAIN.classes, (TRAIN.labels + 1) % 3, TRAIN.pixels)
    assert (synthesizer.represent(requests, 2.0) - z).norm(dim=1).min() > 1e-4
    with pytest.raises(OutskirtsError, match="class_conditional, width and blocks are its own; leave them out"):
        Synthesizer(representation="x", class_conditional=True)


def test_random_steps_of_one_length_stay_nearer(make):
    guided, random = far(make(strengths=(3.0,))), far(make(strengths=(3.0,), guidance="noise"))
    assert random < guided


def test_the_search_is_a_bisection():
    def measure(strength):
        return 0.9 + 0.1 * strength**2

    found = find_strengths(measure, (1.2, 0.8, 1.0), 0.3, measure(0.0))
    assert list(found) == ["ratio 0.8", "ratio 1", "ratio 1.2"]
    assert (found["ratio 0.8"]["strength"], found["ratio 0.8"]["ratio"]) == (0.0, 0.9)  # beyond it already
    assert found["ratio 1"]["strength"] == pytest.approx(1.0, abs=0.01)
    assert found["ratio 1.2"]["strength"] == pytest.approx(3**0.5, abs=0.01)
    stuck = find_strengths(lambda s: 0.9 + 0.1 * min(s, 0.5), (1.1,), 0.3, 0.9)["ratio 1.1"]
    assert not stuck["reached"]
    assert stuck["ratio"] == pytest.approx(0.95)


def test_distances_are_those_of_scikit_learn(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    g = torch.Generator().manual_seed(0)
    bank = torch.randn(50, 4, generator=g, dtype=torch.float64)
    z = torch.randn(20, 4, generator=g, dtype=torch.float64)
    theirs = NearestNeighbors(n_neighbors=3).fit(bank.numpy()).kneighbors(z.numpy())[0].mean(1)
    monkeypatch.setattr(_ratio, "CHUNK", 300)
    torch.testing.assert_close(knn_distance(z, bank, 3), torch.tensor(theirs))
    others = NearestNeighbors(n_neighbors=4).fit(bank.numpy()).kneighbors(bank.numpy())[0][:, 1:].mean(1)
    torch.testing.assert_close(knn_distance(bank, bank, 3, own=torch.arange(50)), torch.tensor(others))


# Requests and outliers


def test_an_outlier_for_each_image_with_ratios_in_turn(latent):
    requests = latent.requests(None, seed=1)
    assert requests == latent.requests(None, seed=1)
    assert requests[:9] == latent.requests(9, seed=1)
    assert sorted(r.source for r in requests) == list(range(240))
    assert all(r.label == TRAIN.labels[r.source] for r in requests)
    assert [r.dials["ratio"] for r in requests[:6]] == [1.0, 1.1, 1.2, 1.0, 1.1, 1.2]
    assert latent.requests(5, seed=2) != requests[:5]


@pytest.mark.parametrize("kind", ["latent", "pictures"])
def test_an_outlier_is_the_same_in_any_order_and_batch(kind, request):
    synthesizer = request.getfixturevalue(kind)
    requests = synthesizer.requests(7, seed=3)
    together = {o.request.id: o for o in synthesizer(requests)}
    others = [*synthesizer(requests[::-1]), *(next(iter(synthesizer([r]))) for r in requests)]
    for o in others:
        if kind == "latent":
            torch.testing.assert_close(o.feature, together[o.request.id].feature, atol=2e-3, rtol=1e-3)
        else:
            assert (o.image.int() - together[o.request.id].image.int()).abs().max() <= 1
    assert len({tuple(o.feature.tolist()) if kind == "latent" else o.image.sum().item() for o in together.values()}) > 3


def test_rows_say_where_they_come_from_and_how_far_they_went(latent, tmp_path):
    store = Store(tmp_path, made_by={}, dials=["ratio"])
    requests = latent.requests(6)
    store.append(list(latent(requests)))
    for row, r in zip(store.rows().to_pylist(), requests, strict=True):
        notes = json.loads(row["notes"])
        assert (row["source"], notes["anchor"], row["ratio"]) == (r.source, r.source, r.dials["ratio"])
        assert notes["strength"] == pytest.approx(latent.state[f"ratio {r.dials['ratio']:g}"]["strength"])
        assert notes["knn_ratio"] == pytest.approx(notes["knn_distance"] / latent.state["knn_reference"])
        assert notes["anchor_distance"] > 0
        assert {"energy", "confidence", "predicted"} <= notes.keys()
    assert store.features()[1].shape == (6, 64)


def test_features_are_those_that_the_head_reads(make, latent, classifier):
    still = make(strengths=(0.0,), t=1, n_steps=1)
    for o in still(still.requests(5)):
        own = Features(classifier).encode(TRAIN[o.request.source][0][None])[0]
        assert (o.feature - own).norm() < 0.4 * own.norm()
        said = classifier.head(o.feature[None]).logsumexp(1)
        assert o.notes["energy"] == pytest.approx(-said.item(), abs=1e-4)


# Decoding


def test_pictures_have_the_size_of_the_images_and_keep_their_facts(pictures):
    for o in pictures(pictures.requests(4)):
        assert o.image.shape == (3, 8, 8)
        assert {"anchor", "strength", "knn_ratio", "energy", "predicted"} <= o.notes.keys()
    assert {"artefact_auroc", "artefact_probe_auroc", "decoded_same", "decoded_cosine"} <= pictures.state.keys()
    assert json.loads(json.dumps(pictures.state)) == pictures.state


def test_traces_of_a_decoder_are_measured(classifier, caplog):
    class Fake:
        name, dim, weights_hash, native_size, normalizer = "fake", 192, "0", 8, torch.nn.Identity()

        def __init__(self, change):
            self.change = change

        def encode(self, images):
            return images.flatten(1)

        def decode(self, z, generators):
            return self.change(z.unflatten(1, (3, 8, 8)))

    options = {"batch_size": 16, "device": "cpu"}
    perfect, seen = artefacts(Fake(lambda x: x), VAL, classifier, 60, **options)
    assert torch.equal(seen["real"], seen["decoded"])
    assert perfect["artefact_auroc"] == 0.5
    assert perfect["decoded_same"] == 1
    assert perfect["decoded_cosine"] == pytest.approx(1, abs=1e-4)
    assert not caplog.records
    poor, seen = artefacts(Fake(lambda x: x * 0.2 + 0.4), VAL, classifier, 60, **options)
    assert seen["decoded"].float().std() < 0.3 * seen["real"].float().std()
    assert poor["artefact_probe_auroc"] > 0.9
    assert abs(poor["artefact_auroc"] - 0.5) > 0.1
    assert "tells decoded ID images from real ones" in caplog.text


def test_starting_from_the_anchor_stays_nearer_to_it(make):
    apart = []
    for share in (0.0, 0.05):
        synthesizer = make(decoder="small", from_anchor=share, strengths=(0.0,), **{**DECODER, "steps": 20})
        outliers = list(synthesizer(synthesizer.requests(8)))
        apart.append(sum((o.image.float() - TRAIN.pixels[o.request.source]).abs().mean() for o in outliers))
    assert apart[1] < 0.5 * apart[0]


def test_a_control_is_the_anchor_decoded_and_nothing_is_searched_for(make, pictures, monkeypatch):
    control = pictures.control().fit(TRAIN, pictures.classifier, val=VAL)
    assert (control.guidance, control.knn_ratio, control.artefacts) == ("none", Synthesizer().knn_ratio, 0)
    steered = make(decoder="small", strengths=(2.0,), form="adm", toward="id", **DECODER)
    assert steered.control() == pictures.control()  # whatever guided the outliers
    requests = pictures.requests(6, seed=4)
    assert [(r.id, r.seed, r.source) for r in control.requests(6, seed=4)] == [
        (r.id, r.seed, r.source) for r in requests
    ]
    z = torch.cat([control.decoder_.encode(TRAIN[r.source][0][None]) for r in requests])
    made = list(control(control.requests(6, seed=4)))
    generators = [generator_of(r.seed) for r in requests]
    straight = to_uint8(control.decoder_.decode(z, generators))
    assert (torch.stack([o.image for o in made]).int() - straight.int()).abs().max() <= 1
    assert all(o.notes["anchor_distance"] == 0 for o in made)
    assert not [k for k in control.state if k.startswith("ratio")]
    assert control.shortened()[0].strengths == ()
    with pytest.raises(OutskirtsError, match="decoder=none makes none an image; leave it out") as e:
        Synthesizer(decoder="none").control()
    assert "\n" not in str(e.value)


def test_kandinsky_decodes_what_its_own_encoder_saw(classifier, tmp_path):
    kandinsky, vision = tiny_kandinsky(tmp_path)
    names = {"decoder": f"kandinsky:{kandinsky}", "encoder": f"clip:{vision}"}
    synthesizer = Synthesizer(**{**SMALL, "model_steps": 5, "steps": 2, "artefacts": 10, "strengths": (1.0,)}, **names)
    outliers = list(synthesizer.fit(TRAIN, classifier, val=VAL)(synthesizer.requests(3)))
    assert all(o.image.shape == (3, 16, 16) for o in outliers)
    assert synthesizer.state["dimensions"] == 8


# On disk


def test_the_same_fit_again_trains_nothing_and_finds_the_same(make, folder, pictures):
    before = {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}
    again = make(decoder="small", **DECODER)
    assert {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()} == before
    assert again.state == pictures.state


def test_a_state_of_other_models_is_refused(make, classifier, folder, latent):
    synthesizer = Synthesizer(decoder="none", **SMALL)
    assert synthesizer.fit(TRAIN, classifier, val=VAL, folder=folder, state=latent.state).state == latent.state
    with pytest.raises(OutskirtsError, match="the model is another one than that of the outliers here"):
        synthesizer.fit(TRAIN, classifier, val=VAL, folder=folder, state={**latent.state, "model": "0"})


def test_estimates_train_a_few_steps(latent):
    short, longer = latent.shortened()
    assert (short.model_steps, longer) == (4, 150 / 4)
    assert short.strengths == (1.0,)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t": 1000}, "n_steps <= t < 1000"),
        ({"n_steps": 301}, "n_steps <= t"),
        ({"knn_ratio": ()}, "both empty"),
        ({"knn_ratio": (-1.0,)}, "numbers from 0"),
        ({"toward": "id"}, "give strengths"),
        ({"guidance": "noise", "draws": 4}, "leave form, toward and draws out"),
        ({"guidance": "none", "strengths": (1.0,)}, "strengths steers a guidance; leave it out"),
        ({"guidance": "none", "decoder": "none"}, "only decodes the anchors, and decoder=none does not"),
        ({"from_anchor": 0.5, "decoder": "none"}, "leave one of them out"),
        ({"draws": 0}, "draws is 0"),
        ({"artefacts": 3}, "10 or more images, or 0"),
        ({"s": 1000}, "level 1000; give 1 to 999"),
        ({"components": -3}, "components is -3; it must be above 0"),
        ({"components": 0}, "components is 0; it must be above 0"),
        ({"image_size": -4}, "image_size is -4; it must be above 0"),
        ({"width": 0}, "width is 0; it must be above 0"),
        ({"decoder_batch": 0}, "decoder_batch is 0; it must be above 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; give a number from 0"),
        ({"decoder": "none", "image_size": 8}, "image_size is of decoding, and decoder=none does not decode; leave"),
        ({"decoder": "none", "guidance_scale": 2.0}, "guidance_scale is of decoding, and decoder=none does not"),
        ({"decoder": "none", "precision": "bf16"}, "precision is of decoding"),
        ({"decoder": "none", "codec": "patch-pca"}, "codec is of decoder=small alone, and decoder=none; leave one"),
        ({"decoder": "unclip:a/b", "decoder_channels": (8,)}, "decoder_channels is of decoder=small alone"),
        ({"decoder": "smal"}, "no decoder 'smal'; give small, none, kandinsky:ID, unclip:ID or mage:FOLDER"),
        ({"decoder": "unclip:"}, "no decoder 'unclip:'"),
        ({"decoder": "mage:nowhere"}, "nowhere holds no MAGE: mage.json is not there"),
        (
            {"decoder": "kandinsky:nowhere"},
            "there is no folder 'nowhere'; give one that is there, or a Hub id, OWNER/NAME",
        ),
        ({"decoder": "unclip:../models/unclip"}, "there is no folder '../models/unclip'"),
        ({"encoder": "dino"}, "no encoder 'dino'; give classifier, timm:ID or clip:ID"),
        ({"encoder": "timm:resnet_18"}, "timm has no model 'resnet_18', did you mean"),
        ({"encoder": "clip:TYPO"}, "there is no folder 'TYPO'"),
        ({"encoder": "clip:/nowhere/clip"}, "there is no folder '/nowhere/clip'"),
        (
            {"representation": "nowhere"},
            "no representation diffusion model in nowhere: it is not there; give a folder with repr",
        ),
        (
            {"representation": "src"},
            "in src: it has no representation.json; give a folder with representation.json and repr",
        ),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        Synthesizer(**settings)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "clip:openai/clip-vit-base-patch32"},
        {"encoder": "clip:own/prior/image_encoder", "decoder": "kandinsky:own/kandinsky-2-2-decoder"},
        {"encoder": "timm:hf-hub:own/vit.in1k", "decoder": "small"},
        {"decoder": "unclip:sd2-community/stable-diffusion-2-1-unclip"},
        {"decoder": "none", "decoder_steps": 500, "steps": 2, "artefacts": 0},  # a recipe's budget stays
    ],
)
def test_what_may_be_on_the_hub_is_not_looked_for_yet(settings):
    Synthesizer(**settings)


def test_a_wrong_name_stops_a_run_before_its_classifier_is_trained(tmp_path):
    wrong = replace(recipe(), synth="badood", synth_with={"decoder": "smal"})
    with pytest.raises(OutskirtsError, match="no decoder 'smal'"):
        run(wrong, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_more_components_than_dimensions_are_refused_with_both_numbers(make):
    assert make(components=64, model_steps=2, strengths=(1.0,)).state["dimensions"] == 64
    with pytest.raises(OutskirtsError, match="components is 65, and the embeddings of classifier have 64 dimensions"):
        make(components=65)


def test_images_that_cannot_be_fitted_on_are_refused_before_anything_is_embedded(classifier, tmp_path):
    large = Images("large", list("abc"), torch.arange(60) % 3, torch.zeros(60, 3, 72, 72, dtype=torch.uint8))
    for images, settings, message in (
        (large, {}, "up to 64 pixels, and large has 72x72"),
        (TRAIN, {"image_size": 72}, "up to 64 pixels, and image_size is 72; give image_size=64 or less"),
        (TRAIN, {"k": 240}, "k is 240, of 240 images; give 1 to 239"),
        (TRAIN.take(49), {}, "49 images, of which a tenth is held out .* give 50 or more"),
    ):
        with pytest.raises(OutskirtsError, match=message):
            Synthesizer(**{**SMALL, **DECODER, **settings}).fit(images, classifier, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_few_images_and_neighbours(classifier, make):
    with pytest.raises(OutskirtsError, match="give 50 or more"):
        Synthesizer(decoder="none").fit(TRAIN.take(40), classifier)
    with pytest.raises(OutskirtsError, match="k is 240, of 240 images"):
        make(k=240)
    same = Images("same", list("abc"), TRAIN.labels, TRAIN.pixels[:1].expand(240, -1, -1, -1).contiguous())
    with pytest.raises(OutskirtsError, match="are they all one image"):
        Synthesizer(**{**SMALL, "decoder": "none", "model_steps": 2}).fit(same, classifier)
