"""The representation diffusion model: sizes and schedule of the paper, a standardisation that is undone, training, what is on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from outskirts import averaged
from outskirts import fit_representation as fitting
from outskirts.averaged import CHECKPOINT, Steps, fit_steps
from outskirts.data import Images
from outskirts.encoders import embeddings
from outskirts.errors import OutskirtsError
from outskirts.fit_representation import RepresentationSettings, fit_representation, held_out
from outskirts.representation import RDM, PerSample, Standard, abar, level, levels

FEW = RepresentationSettings(width=16, blocks=1, steps=3, batch_size=8)


def cloud(n=80, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) * torch.arange(1, d + 1) + torch.arange(d) * 10.0


# Network and schedule


@pytest.mark.parametrize(("dim", "millions"), [(256, 62.72), (1024, 65.1), (1280, 65.9)])
def test_the_network_of_the_paper_has_its_size(dim, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in RDM(dim, 1536, 12).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_fresh_network_predicts_zero_and_reads_t_as_rcg_does():
    net = RDM(5, 8, 2)
    t = torch.tensor([3, 900])
    assert torch.equal(net(torch.randn(2, 5), t), torch.zeros(2, 5))
    frequency = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(4) / 4)
    angle = t[:, None] * frequency
    torch.testing.assert_close(net.frequencies(t), torch.cat([angle.cos(), angle.sin()], 1))


def test_the_class_conditional_network_reads_the_class_in_every_block():
    with torch.device("meta"):
        plain, given = (RDM(256, 1536, 12, classes).state_dict() for classes in (0, 1000))
    more = {"labels.weight": (1000, 512)}
    for i in range(12):
        more |= {f"blocks.{i}.label.1.weight": (1536, 512), f"blocks.{i}.label.1.bias": (1536,)}
    assert {k: tuple(v.shape) for k, v in given.items() if k not in plain} == more
    assert all(given[k].shape == v.shape for k, v in plain.items())


def test_the_schedule_is_diffusers_scaled_linear():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195).alphas_cumprod
    torch.testing.assert_close(abar().float(), theirs, atol=1e-6, rtol=1e-5)
    assert [round(float(abar()[t]), 4) for t in (125, 300)] == [0.7729, 0.4072]
    assert [place.t for place in levels(300, 75)][:3] == [300, 296, 292]  # RCG's stride of 250 steps
    assert levels(300, 75)[-1].abar_prev == 1.0
    assert [place.t for place in levels(300, 1)] == [300]
    assert level(125).abar == float(abar()[125])
    with pytest.raises(OutskirtsError, match="n_steps <= t"):
        levels(10, 11)


# Standardisation


@pytest.mark.parametrize("most", [None, 6, 100])
def test_standardising_is_undone(most):
    x = cloud()
    x[:, 2] = 7.0  # a dead unit
    normalizer = Standard(6, most).fit(x)
    z = normalizer(x)
    alive = [0, 1, 3, 4, 5]
    torch.testing.assert_close(z[:, alive].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z[:, alive].std(0, correction=0), torch.ones(5))
    assert (z[:, 2] == 0).all()
    torch.testing.assert_close(normalizer.inverse(z), x)
    assert (normalizer.inverse(torch.randn(4, 6))[:, 2] == 7).all()


def test_components_keep_the_largest_share_of_variance_and_are_not_whitened():
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x = cloud() @ torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) + 0.1 * cloud(d=40, seed=2)
    normalizer = Standard(40, 4).fit(x)
    z, scaled = normalizer(x), StandardScaler().fit_transform(x.numpy())
    pca = PCA(4).fit(scaled)
    assert float(normalizer.explained) == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)
    spectrum = z.var(0, correction=0)
    torch.testing.assert_close(
        spectrum / spectrum[0],
        torch.tensor(pca.explained_variance_ / pca.explained_variance_[0]).float(),
        atol=1e-3,
        rtol=1e-3,
    )
    assert z.square().mean() == pytest.approx(1.0, abs=1e-3)
    back = torch.tensor(pca.inverse_transform(pca.transform(scaled))).float() * normalizer.std + normalizer.mean
    torch.testing.assert_close(normalizer.inverse(z), back, atol=1e-2, rtol=1e-3)


# Training


def test_training_finds_the_data_and_stops_when_it_no_longer_learns():
    x = cloud(400, 4)
    settings = RepresentationSettings(width=32, blocks=1, steps=300, batch_size=64, lr=3e-3)
    model = fit_representation(x, Standard(4), settings)
    looks = model.facts["held_out"]
    assert (
        min(looks) < 0.75
    )  # 1 is the variance; at even levels the best denoiser of a Gaussian keeps E[1 - abar] = 0.64 of it
    assert model.facts["n_held_out"] == 40
    assert model.facts["steps"] == 300 or model.facts["stopped_early"]
    place = level(300)
    z = model.normalizer(cloud(400, 4, seed=5))
    z_t = place.abar**0.5 * z + (1 - place.abar) ** 0.5 * torch.randn(
        400, 4, generator=torch.Generator().manual_seed(3)
    )
    with torch.no_grad():
        p = model.predictor(z_t, place)
    best = place.abar**0.5 * z_t  # E[z0 | z_t] of a standard normal
    assert (p.x0 - best).square().mean() < 0.1
    torch.testing.assert_close(place.abar**0.5 * p.x0 + (1 - place.abar) ** 0.5 * p.eps, z_t)


def test_the_best_weights_are_kept_and_patience_ends_it():
    looks = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    seen = []

    def check(model):
        seen.append(model.weight.detach().clone())
        return next(looks)

    def loss(model, g):
        return (model(torch.ones(1, 1)) - 5).square().mean()

    how = Steps(60, 0.1, every=10, patience=3)
    best, facts = fit_steps(torch.nn.Linear(1, 1), loss, how, check=check)
    assert facts["held_out"] == [3.0, 1.0, 2.0, 2.0, 2.0]
    assert facts["stopped_early"]
    assert facts["steps"] == 50
    assert torch.equal(best.weight, seen[1])


def test_a_training_that_was_stopped_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    x, settings = cloud(), RepresentationSettings(width=16, blocks=1, steps=250, batch_size=8)
    whole = fit_representation(x, Standard(6), settings)
    count = iter(range(1000))
    loss = fitting._loss

    def dies(*args):
        if next(count) == 230:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(averaged, "SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_representation(x, Standard(6), settings, folder=tmp_path)
    folder = next(tmp_path.iterdir())
    assert [p.name for p in folder.iterdir()] == [CHECKPOINT]
    resumed = fit_representation(x, Standard(6), settings, folder=tmp_path)
    assert next(count) == 231 + 50  # from step 200 on
    assert not (folder / CHECKPOINT).exists()
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert whole.facts == resumed.facts
    again = fit_representation(x, Standard(6), settings, folder=tmp_path)
    assert next(count) == 282  # nothing was trained
    z = torch.randn(3, 6)
    assert torch.equal(again.predictor(z, level(300)).x0, resumed.predictor(z, level(300)).x0)
    assert torch.equal(again.normalizer.mean, resumed.normalizer.mean)
    fit_representation(x + 1, Standard(6), FEW, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other embeddings, another folder


def test_a_loss_that_is_not_finite_is_one_line():
    with pytest.raises(OutskirtsError, match="not finite after step 2; lower"):
        fit_steps(torch.nn.Linear(1, 1), lambda m, g: m.weight.sum() * float("nan"), Steps(2, 0.1))


def test_from_noise_alone_a_conditional_estimate_is_its_own_class_s_mean(tmp_path):
    labels = torch.arange(400) % 2
    x = 0.3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([4.0, -2.0]) * (
        2 * labels[:, None] - 1
    )
    settings = RepresentationSettings(width=32, blocks=1, steps=150, batch_size=64, lr=5e-3, ema=0.95)
    model = fit_representation(x, Standard(2), settings, labels=labels, folder=tmp_path)
    z = model.normalizer(x)
    means = torch.stack([z[labels == y].mean(0) for y in (0, 1)])
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    estimates = [model.predictor(noise, level(999), torch.tensor([y])).x0 for y in (0, 1)]
    for y in (0, 1):
        assert (torch.cdist(estimates[y], means).argmin(1) == y).all()
    mixed = model.predictor(noise.repeat(2, 1), level(999), labels[:64]).x0.unflatten(
        0, (2, 64)
    )  # as with several draws
    torch.testing.assert_close(mixed[0], mixed[1])
    torch.testing.assert_close(mixed[0], torch.where(labels[:64, None] == 1, estimates[1], estimates[0]))
    again = fit_representation(x, Standard(2), settings, labels=labels, folder=tmp_path)
    assert torch.equal(again.predictor(noise, level(999), torch.tensor([1])).x0, estimates[1])
    with pytest.raises(OutskirtsError, match="of 2 given classes, and here they are of none"):
        model.load(next(tmp_path.iterdir()), Standard(2))


# Bad input


def test_weights_with_other_keys_are_named(tmp_path):
    model = fit_representation(cloud(), Standard(6), FEW, folder=tmp_path)
    folder = next(tmp_path.iterdir())
    path = folder / "representation.safetensors"
    state = load_file(path)
    state["network.inlet.weight"] = state.pop("network.enter.weight")
    save_file(state, path)
    with pytest.raises(OutskirtsError, match=r"missing, first enter\.weight; 1 unexpected, first inlet\.weight") as e:
        fit_representation(cloud(), Standard(6), FEW, folder=tmp_path)
    assert "\n" not in str(e.value)
    for damaged in ({"dim": 6}, [6]):
        (folder / "representation.json").write_text(json.dumps(damaged))
        with pytest.raises(OutskirtsError, match=r"cannot be read .*; remove a folder that a run made"):
            model.load(folder, Standard(6))
    (folder / "representation.json").unlink()
    with pytest.raises(OutskirtsError, match=r"it has no representation\.json; give a folder with") as e:
        model.load(folder, Standard(6))
    assert "made again" not in str(e.value)


def test_too_few_to_hold_out_from():
    assert held_out(50).sum() == 5
    assert torch.equal(held_out(200), held_out(200))
    for n in (30, 49):
        with pytest.raises(OutskirtsError, match=f"{n} images, of which a tenth is held out .* give 50 or more"):
            fit_representation(cloud(n), Standard(6), FEW)


def test_embeddings_are_kept_and_must_be_finite(tmp_path):
    class Means:
        name, dim, weights_hash, calls = "means", 3, "0", 0

        def encode(self, images):
            self.calls += 1
            return images.mean((2, 3)) / (images.amax((1, 2, 3)) > 0)[:, None]

    pixels = torch.randint(1, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, encoder = Images("six", ["a"], torch.zeros(6, dtype=torch.long), pixels), Means()
    first = embeddings(encoder, images, tmp_path, batch_size=4)
    assert torch.equal(embeddings(encoder, images, tmp_path), first)
    assert encoder.calls == 2
    torch.testing.assert_close(first, pixels.float().mean((2, 3)) / 255)
    black = pixels.clone()
    black[4] = 0
    with pytest.raises(OutskirtsError, match=r"image 4 of six by means is not finite \(1 of 6 are not\)"):
        embeddings(encoder, Images("six", ["a"], images.labels, black), tmp_path)


def test_the_sphere_of_rcg_is_a_normalizer_too():
    model = fit_representation(cloud(), PerSample(6), FEW)
    z = model.normalizer.inverse(torch.randn(4, 6))
    torch.testing.assert_close(z.square().sum(1), torch.full((4,), 5.0))
