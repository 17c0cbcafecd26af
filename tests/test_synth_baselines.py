"""The baselines: shuffled, mixed and real images, VOS, NPOS, Dream-OOD's idea; each outlier is its request's own."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, ks_2samp, kstest
from torch.nn.functional import normalize

from outskirts.data import Images
from outskirts.errors import OutskirtsError
from outskirts.find import find
from outskirts.scores.knn import kth_distance
from outskirts.synth import npos, vos
from outskirts.synth.shuffle import cycle, shuffled
from tiny import tiny_pixel, tiny_stable_diffusion
from tones import CLASSES, tones, untrained


@pytest.fixture(scope="module")
def data():
    return tones(90)


@pytest.fixture(scope="module")
def classifier():
    return untrained()


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory):
    return str(tiny_pixel(tmp_path_factory.mktemp("pixel"), classes=CLASSES))


@pytest.fixture
def make(data, classifier, pixel_model):
    def made(name, **settings):
        defaults = {
            "npos": {"k": 5},
            "dream": {"diffusion": pixel_model, "steps": 3},
            "real": {"images": "digits[7-9]"},
        }
        return find("synth", name)(**{**defaults.get(name, {}), **settings}).fit(data, classifier)

    return made


METHODS = [
    ("noise", {}),
    ("noise", {"kind": "uniform"}),
    ("shuffle", {}),
    ("mix", {}),
    ("mix", {"kind": "cutmix"}),
    ("real", {}),
    ("vos", {}),
    ("vos", {"draw": "candidates", "candidates": 50, "keep": 3}),
    ("npos", {"candidates": 20}),
    ("dream", {}),
    ("dream", {"toward": "class", "strengths": (0.5,)}),
]


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_an_outlier_depends_on_its_request_alone(make, name, settings):
    synthesizer = make(name, **settings)
    requests = synthesizer.requests(9, seed=3)
    assert requests == synthesizer.requests(9, seed=3)
    assert len({r.seed for r in requests}) == 9
    assert {r.label for r in requests} in ({0, 1, 2}, {None})
    together = {o.request.id: o for o in synthesizer(requests)}
    backwards = {o.request.id: o for o in synthesizer(requests[::-1])}
    alone = {r.id: next(iter(synthesizer([r]))) for r in requests}
    for i, one in together.items():
        assert all(same(one, others[i]) for others in (backwards, alone))
    assert not same(together[0], together[3])


def same(a, b):
    """Equal features; equal pixels, up to the grey level that a network's rounding in another batch may cost."""
    if a.feature is not None:
        return torch.allclose(a.feature, b.feature, rtol=1e-6, atol=1e-6)
    return (a.image.int() - b.image.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["shuffle", "mix"])
def test_sources_are_used_evenly_and_in_a_seeded_order(make, name):
    synthesizer = make(name)
    sources = [r.source for r in synthesizer.requests(180, seed=1)]
    assert sorted(sources) == sorted([*range(90)] * 2)
    assert sources != [r.source for r in synthesizer.requests(180, seed=2)]


# shuffle


def test_shuffling_moves_every_patch_and_loses_none(data, make):
    synthesizer = make("shuffle", patch=4)
    for outlier in synthesizer(synthesizer.requests(20)):
        before, after = (
            {tuple(p.flatten().tolist()): k for k, p in enumerate(patches(x))}
            for x in (data.pixels[outlier.request.source], outlier.image)
        )
        assert before.keys() == after.keys()
        assert all(before[p] != after[p] for p in before)


def patches(image):
    return [image[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]


def test_cycles_leave_nothing_in_place_and_are_uniform():
    g = torch.Generator().manual_seed(0)
    orders = torch.stack([cycle(4, g) for _ in range(1200)])
    assert (orders != torch.arange(4)).all()
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == math.factorial(3)  # all cycles of four
    assert ((counts - 200).abs() < 60).all()


def test_a_rim_that_holds_no_patch_stays():
    image = torch.arange(3 * 10 * 7, dtype=torch.uint8).view(1, 3, 10, 7)
    moved = shuffled(image, torch.tensor([[1, 2, 3, 4, 5, 0]]), 3)
    assert torch.equal(moved[..., 9:, :], image[..., 9:, :])
    assert torch.equal(moved[..., 6], image[..., 6])
    assert torch.equal(moved[0, :, :3, :3], image[0, :, :3, 3:6])


def test_an_image_of_one_colour_cannot_be_shuffled(classifier):
    flat = Images("flat", ["a", "b"], torch.tensor([0, 1]), torch.full((2, 3, 8, 8), 7, dtype=torch.uint8))
    synthesizer = find("synth", "shuffle")().fit(flat, classifier)
    assert all(o.image is None and "alike" in o.notes["failed"] for o in synthesizer(synthesizer.requests(2)))


# mix


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_are_of_two_classes(data, make, kind):
    synthesizer = make("mix", kind=kind)
    shares = []
    for o in synthesizer(synthesizer.requests(60)):
        first, second = (data.pixels[row].double() for row in (o.request.source, o.notes["other"]))
        assert data.labels[o.notes["other"]] == o.notes["other_label"] != o.request.label
        share = o.notes["share"]
        shares.append(share)
        if kind == "mixup":
            assert (share * first + (1 - share) * second - o.image).abs().max() < 0.51
        else:
            of_second = (o.image == second).all(0)
            assert ((o.image == first).all(0) | of_second).all()
            assert of_second.double().mean() == pytest.approx(1 - share, abs=0.02)
    assert min(shares) >= 0.3
    assert max(shares) <= 0.7
    assert len(set(shares)) > 1 if kind == "cutmix" else len(set(shares)) == 60


# real


def test_real_outliers_cycle_over_the_rows_at_the_size_of_the_id_images(classifier, data, tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (20, 30), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    real = find("synth", "real")(images=f"folder:{tmp_path}").fit(data, classifier)
    outliers = list(real(real.requests(7)))
    assert len(real.requests()) == 3
    assert all(o.image.shape == (3, 8, 8) for o in outliers)
    assert [int(o.image[0, 0, 0]) for o in outliers] == [0, 80, 160, 0, 80, 160, 0]
    Image.new("RGB", (20, 30), (9, 9, 9)).save(tmp_path / "0.png")
    with pytest.raises(OutskirtsError, match="changed since"):
        find("synth", "real")(images=f"folder:{tmp_path}").fit(data, classifier, state=real.state)


# VOS


def test_the_picks_are_those_of_pytorch_ood():
    """Same candidates from the same random stream: the one of the largest norm is the one of the lowest density."""
    loss = pytest.importorskip("pytorch_ood.loss")
    K, D, n = 3, 16, 400
    linear = torch.nn.Linear
    theirs = loss.VirtualOutlierSynthesizingRegLoss(
        linear(1, 2), linear(K, 1), linear(D, K), sample_number=50, sample_from=n
    )
    theirs.data_dict = torch.randn(K, 50, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        picks = theirs._sample_virtual_outliers()
    features, labels = theirs.data_dict.flatten(0, 1), torch.arange(K).repeat_interleave(50)
    scale = torch.cat([f - f.mean(0) for f in theirs.data_dict]).square().mean().item()
    means, factor = vos.gaussians(features, labels, K, 1e-4 / scale)
    g = torch.Generator().manual_seed(7)
    z = torch.stack([(x := torch.randn(n, D, generator=g))[vos.largest(x, 1)[0]] for _ in range(K)])
    torch.testing.assert_close(means + z.double() @ factor.T, picks.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("candidates", "keep"), [(1, 1), (200, 1), (200, 20)])
def test_exact_draws_have_the_distribution_of_searched_ones(candidates, keep):
    """The norm's, and every direction alike."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.stack([f(5, candidates, keep, g) for _ in range(1500)]) for f in (vos.exact, vos.least_likely))
    assert ks_2samp(a.norm(dim=1), b.norm(dim=1)).pvalue > 0.01
    for x in (a, b):
        direction, even = normalize(x), normalize(torch.randn(4000, 5, generator=g))
        assert ks_2samp(direction[:, 0], even[:, 0]).pvalue > 0.01
        assert direction.mean(0).norm() < 0.1


def test_norms_of_many_candidates_follow_the_closed_form():
    """P(largest of n |z|^2 <= q) = F(q)^n, where F is the chi-squared distribution, also for n that none can draw."""
    g, n, D = torch.Generator().manual_seed(1), 10**9, 128
    squared = torch.stack([vos.exact(D, n, 1, g) for _ in range(800)]).square().sum(1).numpy()
    assert kstest(squared, lambda q: np.exp(n * chi2.logcdf(q, D))).pvalue > 0.01


def test_gaussians_survive_dead_features_and_more_dimensions_than_rows():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(20, 50, generator=g)
    features[:, 7] = 0  # a ReLU that never fires
    labels = torch.arange(20) % 2
    means, factor = vos.gaussians(features, labels, 2, 1e-4)
    assert factor.isfinite().all()
    torch.testing.assert_close(means[1], features[1::2].double().mean(0))
    centred = features.double() - means[labels]
    covariance = centred.T @ centred / 20
    torch.testing.assert_close(
        factor @ factor.T - covariance, 1e-4 * covariance.diagonal().mean() * torch.eye(50).double()
    )
    louder = vos.gaussians(1024 * features, labels, 2, 1e-4)[1]  # the ridge has the unit of the features
    torch.testing.assert_close(louder, 1024 * factor)


def test_vos_outliers_are_far_out_in_their_class_s_gaussian(make):
    synthesizer = make("vos", candidates=1000)
    for o in synthesizer(synthesizer.requests(30)):
        z = torch.linalg.solve_triangular(
            synthesizer.factor_, (o.feature.double() - synthesizer.means_[o.request.label])[:, None], upper=False
        )
        assert z.norm().item() == pytest.approx(o.notes["norm"], rel=1e-3)
        assert o.notes["norm"] ** 2 > chi2.ppf(0.98, len(z))


# NPOS


def test_boundaries_and_steps_by_a_loop(data, classifier, make):
    """Eq. 4 to 6 written out: distances within the class, the farthest rows, the candidate farthest from the class."""
    synthesizer = make("npos", boundary=4, candidates=15, sigma=0.2)
    features = classifier(data.pixels / 255).features
    unit = features / features.norm(dim=1, keepdim=True)
    for label in range(3):
        rows = [i for i in range(90) if i % 3 == label]
        kth = {i: sorted((unit[i] - unit[j]).norm().item() for j in rows if j != i)[4] for i in rows}
        assert set(synthesizer.sources_[label].tolist()) == set(sorted(rows, key=kth.get)[-4:])
    for o in list(synthesizer(synthesizer.requests(6))):
        i, bank = o.request.source, unit[o.request.label :: 3]
        steps = torch.randn(15, len(unit[0]), generator=torch.Generator().manual_seed(o.request.seed))
        candidates = unit[i] + 0.2 * steps
        far = [sorted((bank - c / c.norm()).norm(dim=1).tolist())[4] for c in candidates]
        best = max(range(15), key=far.__getitem__)
        torch.testing.assert_close(o.feature, candidates[best] * features[i].norm())
        assert o.notes["class_distance"] == pytest.approx(max(far), abs=1e-4)


def test_more_candidates_end_farther_out(make):
    distance = {}
    for n in (1, 100):
        synthesizer = make("npos", candidates=n)
        distance[n] = sum(o.notes["class_distance"] for o in synthesizer(synthesizer.requests(12)))
    assert distance[100] > distance[1]


def test_rows_are_held_up_to_the_number_asked_for(make):
    assert npos.some(torch.arange(7), 7).tolist() == [*range(7)]
    assert len(npos.some(torch.arange(70), 7).unique()) == 7
    synthesizer = make("npos", rows=10)
    assert [len(b) for b in synthesizer.banks_] == [10, 10, 10]
    assert (
        kth_distance(synthesizer.banks_[0], synthesizer.banks_[0], 1).max() < 1e-3
    )  # unit rows, each its own neighbour


# Dream


def test_moves_have_the_length_asked_for_and_stay_where_classes_differ(make):
    dream = make("dream", strengths=(0.5, 2.0))
    requests = dream.requests(12)
    assert [r.dials["strength"] for r in requests[:6]] == [0.5] * 3 + [2.0] * 3
    moves = dream.moves(requests)
    wanted = torch.tensor([r.dials["strength"] * dream.nearest[r.label] for r in requests])
    torch.testing.assert_close(moves.norm(dim=1), wanted)
    span = torch.linalg.svd(dream.points - dream.points.mean(0), full_matrices=False)[2][:2]  # three points: a plane
    torch.testing.assert_close(moves @ span.T @ span, moves, atol=1e-4, rtol=1e-4)


def test_of_many_directions_the_farthest_from_every_class_is_taken(make):
    ends = {}
    for n in (1, 50):
        dream = make("dream", candidates=n, strengths=(1.0,))
        requests = dream.requests(30)
        points = dream.points[torch.tensor([r.label for r in requests])] + dream.moves(requests)
        ends[n] = torch.cdist(points, dream.points).amin(1)
    assert (ends[50] >= dream.nearest.min() * 0.99).all()
    assert ends[50].mean() > ends[1].mean()


def test_towards_another_class_is_a_mixture_of_both(make):
    dream = make("dream", toward="class", strengths=(0.25,))
    requests = dream.requests(12)
    assert all(r.dials["other"] != r.label for r in requests)
    assert len({(r.label, r.dials["other"]) for r in requests}) == 6
    end = dream.points[requests[0].label] + dream.moves(requests)[0]
    torch.testing.assert_close(
        end, 0.75 * dream.points[requests[0].label] + 0.25 * dream.points[requests[0].dials["other"]]
    )


def test_no_move_is_a_plain_sample_and_a_move_is_another(make):
    dream = make("dream")
    requests = dream.requests(3)
    plain = dream._condition(requests, torch.zeros_like(dream.moves(requests)))[0]
    torch.testing.assert_close(plain, dream.points)
    near, far = (make("dream", strengths=(s,)) for s in (1e-6, 300.0))  # untrained: it hardly listens
    near, far = (torch.stack([o.image for o in d(d.requests(3))]) for d in (near, far))
    assert (near != far).any()


def test_text_models_have_their_class_tokens_moved(tmp_path, data, classifier):
    sd = str(tiny_stable_diffusion(tmp_path))
    dream = find("synth", "dream")(sd, steps=2, guidance_scale=2.0, prompt="a {class} b").fit(data, classifier)
    requests = dream.requests(3)
    assert [r.prompt for r in requests] == ["a a b", "a b b", "a c b"]
    plain = dream.model.condition(prompts=[r.prompt for r in requests])
    unmoved = dream._condition(requests, torch.zeros_like(dream.moves(requests)))
    torch.testing.assert_close(unmoved[0], plain[0])
    torch.testing.assert_close(unmoved[1], plain[1])
    # a move by the whole way to another class's token is that class's prompt
    other = dream._condition(requests[:1], dream.points[1:2] - dream.points[:1])[0]
    torch.testing.assert_close(other, plain[0][1:2])
    assert all(o.image.shape == (3, 16, 16) for o in dream(requests))


# Bad input


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("shuffle", {"patch": 0.0}, "patch"),
        ("shuffle", {"patch": 8}, "fewer than two such patches"),
        ("mix", {"share": (0.6, 0.4)}, "0 < from <= to < 1"),
        ("real", {"images": ""}, "give synth.images"),
        ("real", {"images": "folder:/nowhere"}, "no such folder"),
        ("vos", {"candidates": 5, "keep": 6}, "give fewer"),
        ("vos", {"ridge": 0.0}, "ridge"),
        ("npos", {"k": 30}, "give synth.k below 30"),
        ("npos", {"sigma": -1.0}, "sigma"),
        ("dream", {"strengths": ()}, "numbers above 0"),
        ("dream", {"toward": "class", "strengths": (1.0,)}, "numbers below 1"),
        ("dream", {"prompt": "a cat"}, "must hold"),
        ("dream", {"diffusion": "nowhere"}, "no diffusion model"),
        ("dream", {"diffusion": "digits"}, "knows no class 'a'"),
    ],
)
def test_wrong_settings_are_one_line(make, name, settings, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        make(name, **settings)
    assert "\n" not in str(e.value)


def test_data_that_cannot_serve_is_one_line(data, classifier):
    one = data.subset(data.labels == 0)
    with pytest.raises(OutskirtsError, match="one class only"):
        find("synth", "mix")().fit(one, classifier)
    with pytest.raises(OutskirtsError, match="has no training image"):
        find("synth", "vos")().fit(data.subset(data.labels < 2), classifier)
    with pytest.raises(OutskirtsError, match="vary by 0"):
        vos.gaussians(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), 2, 1e-4)
    with pytest.raises(OutskirtsError, match="ends in a linear layer"):
        find("synth", "vos")().fit(data, None)
    with pytest.raises(OutskirtsError, match="images may differ in size"):
        find("synth", "shuffle")().fit(Images("files", [], data.labels, files=["x.png"] * 90), None)


def test_noise_has_the_statistics_of_every_class_however_the_set_is_sorted():
    from outskirts.synth import noise

    labels = torch.arange(1200) // 600
    pixels = (40 + 160 * labels)[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8).contiguous()
    fitted = noise.Synthesizer().fit(Images("sorted", ["dark", "light"], labels, pixels))
    torch.testing.assert_close(fitted.mean_, torch.full((3,), 120 / 255), atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.std_, torch.full((3,), 80 / 255), atol=0.01, rtol=0)
