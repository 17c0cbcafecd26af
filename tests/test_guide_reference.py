"""The guided step against numbers from the unmodified official TFG code, through the public functions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional as F

from outskirts.diffuse import ddim_levels, ddim_step, levels_from, prediction, sample
from outskirts.guide import cfg, clip, schedule_weights, score_target, tfg
from outskirts.scores.energy import Score as Energy
from outskirts.scores.knn import Score as KNN
from outskirts.types import Outputs

FILE = Path(__file__).parents[2] / "shared" / "reference" / "tfg_reference.npz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="../shared/reference is not beside this checkout")
ATOL = 2e-6


@pytest.fixture(scope="module")
def ref():
    return np.load(FILE)


@pytest.fixture(scope="module")
def meta(ref):
    return json.loads(str(ref["meta"]))


def tensor(ref, key):
    return torch.from_numpy(ref[key]).double()


def weights(ref, prefix):
    return {k.removeprefix(prefix): tensor(ref, k) for k in ref.files if k.startswith(prefix)}


@pytest.fixture(scope="module")
def levels(ref):
    abar, prev = ref["in/alpha_bar10"].astype(float), ref["in/alpha_bar_prev10"].astype(float)
    return levels_from(ref["in/timesteps10"].tolist(), abar.tolist(), float(prev[-1]))


@pytest.fixture(scope="module")
def model(ref, meta):
    unet = UNet2DModel(**meta["unet_kwargs"]).double().eval().requires_grad_(False)
    unet.load_state_dict(weights(ref, "weights/unet2d/"))
    return lambda x, level, cond=None: prediction(unet(x, level.t).sample, x, level)


class ConvNet(nn.Module):
    """The reference's classifier: takes x in [-1, 1] as it is."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in ((3, 8), (8, 16)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        z = F.silu(self.c2(F.silu(self.c1(x)))).mean((2, 3))
        return Outputs(self.fc(z), z)


@pytest.fixture(scope="module")
def classifier(ref):
    net = ConvNet().double().requires_grad_(False)
    net.load_state_dict(weights(ref, "weights/classifier/"))
    return net


@pytest.fixture(scope="module")
def knn(ref, meta):
    bank = tensor(ref, "in/knn_bank")
    return KNN(k=meta["K"]).fit(
        Outputs(torch.zeros(len(bank), 5).double(), bank), torch.zeros(len(bank), dtype=torch.long)
    )


class Replay:
    """The reference's noise rows in order; counts what was used."""

    def __init__(self, rows):
        self.rows, self.used = rows, 0

    def __call__(self):
        self.used += 1
        return self.rows[self.used - 1]


def one_step(case, ref, meta, levels, model, target):
    level = levels[meta["step_index"]]
    noise = Replay(tensor(ref, "in/noise"))
    base = clip(model) if case.get("clip_x0") else model
    guided = tfg(
        base,
        target,
        levels,
        rho=strength(case, "rho"),
        mu=strength(case, "mu"),
        sigma=case.get("sigma", 0.0),
        draws=case.get("eps_bsz", 1),
        iterations=case.get("N_iter", case.get("iter", 1)),
        noise=noise,
        schedule=case.get("schedule", "increase"),
    )
    x = tensor(ref, "in/x_t")
    p = guided(x, level)
    return ddim_step(p, level, eta=case["eta"], z=noise() if case["eta"] > 0 else None), p


def strength(case, name):
    s = case.get(name, 0.0)
    return torch.tensor(s).double() if isinstance(s, list) else s


def test_probe(ref, meta, model, classifier, levels, knn):
    """A wrong network is found before a wrong step."""
    x, level = tensor(ref, "in/x_t"), levels[meta["step_index"]]
    torch.testing.assert_close(model(x, level).eps, tensor(ref, "probe/eps"), atol=ATOL, rtol=0)
    torch.testing.assert_close(Energy()(classifier(x)), tensor(ref, "probe/energy"), atol=ATOL, rtol=0)
    torch.testing.assert_close(knn(classifier(x)), tensor(ref, "probe/knn"), atol=ATOL, rtol=0)


def test_levels_are_the_references(ref):
    config = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "linear",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    ours = ddim_levels(config, 10)
    assert [level.t for level in ours] == ref["sched/ddpm_linear_10/timesteps"].tolist()
    np.testing.assert_allclose([level.abar for level in ours], ref["sched/ddpm_linear_10/alpha_bar"], atol=ATOL)
    np.testing.assert_allclose(
        [level.abar_prev for level in ours], ref["sched/ddpm_linear_10/alpha_bar_prev"], atol=ATOL
    )


@pytest.mark.parametrize("grid", ["ddpm_linear_10", "sd_scaled_linear_50"])
@pytest.mark.parametrize("schedule", ["increase", "decrease", "constant"])
def test_schedules(ref, grid, schedule):
    abar, prev = (ref[f"sched/{grid}/{k}"].astype(float) for k in ("alpha_bar", "alpha_bar_prev"))
    levels = levels_from(ref[f"sched/{grid}/timesteps"].tolist(), abar.tolist(), float(prev[-1]))
    w = schedule_weights(levels, schedule)
    np.testing.assert_allclose(w, ref[f"sched/{grid}/rho_{schedule}"], atol=2e-5)
    assert math.isclose(w.mean(), 1.0)


def check(name, ref, levels, meta, x_prev, p):
    torch.testing.assert_close(x_prev, tensor(ref, f"case/{name}/x_prev"), atol=ATOL, rtol=0)
    if f"case/{name}/x0" in ref:
        torch.testing.assert_close(p.x0, tensor(ref, f"case/{name}/x0"), atol=ATOL, rtol=0)
        level = levels[meta["step_index"]]
        delta_t, delta_0 = (tensor(ref, f"case/{name}/{k}") for k in ("Delta_t", "Delta_0"))
        shift = delta_t / math.sqrt(level.alpha) + math.sqrt(level.abar_prev) * delta_0
        torch.testing.assert_close(p.shift, shift, atol=2 * ATOL, rtol=0)


@pytest.mark.parametrize("name", ["plain", "plain_eta1", "rho", "mu", "both", "both_mc3", "both_clip"])
def test_one_step_by_energy(name, ref, meta, levels, model, classifier):
    target = score_target(Energy(), classifier, lambda x: x)
    check(name, ref, levels, meta, *one_step(meta["cases"][name], ref, meta, levels, model, target))


def test_one_step_by_knn(ref, meta, levels, model, classifier, knn):
    target = score_target(knn, classifier, lambda x: x, scale=meta["knn_scale"])
    check("knn_both", ref, levels, meta, *one_step(meta["cases"]["knn_both"], ref, meta, levels, model, target))


def test_one_latent_step_with_text_guidance(ref, meta, levels, classifier):
    case, level = meta["cases"]["latent_both"], levels[meta["step_index"]]
    w = {k: weights(ref, f"weights/{k}/") for k in ("decoder", "cond_eps")}

    def decode(z):
        z = F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=False)
        return torch.tanh(F.conv2d(z, w["decoder"]["c.weight"], w["decoder"]["c.bias"], padding=1))

    def model(x, level, y):
        n = w["cond_eps"]
        h = F.conv2d(x, n["c1.weight"], n["c1.bias"], padding=1) + n["emb.weight"][y][:, :, None, None] + level.t / 1000
        return prediction(F.conv2d(torch.tanh(h), n["c2.weight"], n["c2.bias"], padding=1) + x / 2, x, level)

    labels = torch.tensor(case["labels"])
    base = cfg(model, labels, torch.full_like(labels, case["null_label"]), case["cfg"])
    target = score_target(Energy(), classifier, decode)
    p = tfg(base, target, levels, rho=case["rho"], mu=case["mu"])(tensor(ref, "in/latent"), level)
    check("latent_both", ref, levels, meta, ddim_step(p, level, eta=case["eta"]), p)


def test_guided_trajectory(ref, meta, levels, model, classifier):
    case = meta["cases"]["traj10_both"]
    target = score_target(Energy(), classifier, lambda x: x)
    guided = tfg(clip(model), target, levels, rho=case["rho"], mu=case["mu"])
    noise = Replay(tensor(ref, "in/noise"))
    x = sample(guided, tensor(ref, "in/x_T"), levels, eta=case["eta"], noise=noise)
    torch.testing.assert_close(x, tensor(ref, "traj/traj10_both/x"), atol=ATOL, rtol=0)
    torch.testing.assert_close(Energy()(classifier(x)).tolist(), case["energy_of_result"], atol=ATOL, rtol=0)
    assert noise.used == len(case["noise_used"])  # TFG's order of draws: one re-noising draw a step, used or not


def test_every_stored_case_is_checked(ref):
    stored = {k.split("/")[1] for k in ref.files if k.startswith(("case/", "traj/"))}
    assert stored == {
        "plain",
        "plain_eta1",
        "rho",
        "mu",
        "both",
        "both_mc3",
        "both_clip",
        "knn_both",
        "latent_both",
        "traj10_both",
    }
