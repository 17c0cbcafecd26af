"""Minority guidance on a mixture whose denoiser and density are exact: sign, forms, detachment, one step, independence."""

import math

import pytest
import torch

from outskirts.diffuse import Noise, sample
from outskirts.errors import OutskirtsError
from outskirts.guide_minority import jitter, minority, minority_score
from outskirts.representation import level, levels
from outskirts.synth._ratio import knn_distance
from outskirts.toy import Mixture

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
TOY = Mixture(MEANS, std=0.5)
SECOND = level(125)
TRAIN, _ = TOY.draw(3000, torch.Generator().manual_seed(0))
ANCHORS, _ = TOY.draw(300, torch.Generator().manual_seed(1))
STRENGTH = {"unit": 1.5, "adm": 1.0, "sg_minority": 2.0}


def log_p(x):
    return TOY.logits(x).logsumexp(1)


def noise(n=300, seed=0):
    return Noise(range(seed, seed + n), (2,), dtype=torch.float64)


def walked(strength, *, t=300, steps=15, guide=minority, anchors=ANCHORS, **options):
    """Anchors noised to t and walked back, all with the same noise."""
    grid, draw = levels(t, steps), noise(len(anchors))
    x = math.sqrt(grid[0].abar) * anchors + math.sqrt(1 - grid[0].abar) * draw()
    more = {"second": SECOND} if guide is minority else {}
    return sample(guide(TOY.predictor, **more, strength=strength, noise=draw, **options), x, grid)


@pytest.mark.parametrize("form", ["unit", "adm", "sg_minority"])
def test_plus_leaves_the_data_and_minus_goes_in(form):
    none, out, back = (walked(sign * STRENGTH[form], form=form) for sign in (0, 1, -1))
    density = [log_p(x).mean() for x in (out, none, back)]
    assert density[0] < density[1] - 0.1
    assert density[1] < density[2] - 0.03
    far = [knn_distance(x, TRAIN, 10).mean() for x in (out, none, back)]
    assert far[0] > 1.05 * far[1] > 1.05 * far[2]


def test_more_strength_goes_farther_whatever_the_number_of_steps():
    far = [knn_distance(walked(s), TRAIN, 10).mean() for s in (0.5, 1.0, 2.0)]
    assert far[0] < far[1] < far[2]
    few, many = (knn_distance(walked(1.0, steps=n), TRAIN, 10).mean().item() for n in (15, 75))
    assert few == pytest.approx(many, rel=0.15)  # the length of the path is what counts


def test_the_second_estimate_is_the_one_to_detach():
    density = {d: log_p(walked(1.5, detach=d)).mean().item() for d in ("second", "first")}
    assert density["second"] < log_p(walked(0.0)).mean() - 0.2
    assert density["first"] > density["second"] + 0.2
    # the way the score climbs: down the density of x_t with the right one, up it with the other
    place, n = levels(100, 1)[0], noise(seed=9000)()
    x = math.sqrt(place.abar) * ANCHORS + math.sqrt(1 - place.abar) * n
    eps = torch.stack([noise(seed=s)() for s in (1000, 2000, 3000, 4000)])
    leaf = x.clone().requires_grad_()
    down = -torch.autograd.grad(TOY.logits(leaf, place.abar).logsumexp(1).sum(), leaf)[0]
    cosine = {}
    for detach in ("second", "none", "first"):
        leaf = x.clone().requires_grad_()
        score = minority_score(TOY.predictor, TOY.predictor(leaf, place).x0, SECOND, eps, detach=detach)
        (g,) = torch.autograd.grad(score.sum(), leaf)
        cosine[detach] = torch.cosine_similarity(g, down).mean().item()
    assert cosine["second"] > 0.6
    assert cosine["none"] > 0.6
    assert cosine["first"] < -0.3


def test_the_score_is_higher_where_data_are_rarer():
    eps = torch.stack([noise(seed=1000 * m)() for m in range(16)])
    score = minority_score(TOY.predictor, ANCHORS, SECOND, eps)
    ranks = torch.stack([score, -log_p(ANCHORS)]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.6


@pytest.mark.parametrize("form", ["unit", "adm", "sg_minority"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_step_is_the_equation_written_out(form, distance):
    place = levels(300, 15)[4]
    x = noise(5, seed=40)()
    a, b = math.sqrt(place.abar), math.sqrt(1 - place.abar)
    p = minority(TOY.predictor, SECOND, strength=0.7, noise=noise(5), form=form, distance=distance, draws=2)(x, place)
    again = noise(5)
    eps = [again(), again()]
    for i in range(5):
        J = torch.autograd.functional.jacobian(lambda v: TOY.predictor(v[None], place).x0[0], x[i])
        x0 = TOY.predictor(x[i][None], place).x0[0]
        g = torch.zeros(2, dtype=torch.float64)
        for n in eps:
            x_s = math.sqrt(SECOND.abar) * x0 + math.sqrt(1 - SECOND.abar) * n[i]
            apart = x0 - TOY.predictor(x_s[None], SECOND).x0[0]
            g += J.T @ (apart / apart.norm() if distance == "l2" else apart.sign()) / 2
        own_eps = (x[i] - a * x0) / b
        if form == "adm":
            moved = own_eps - 0.7 * b * g
            torch.testing.assert_close(p.eps[i], moved)
            torch.testing.assert_close(p.x0[i], (x[i] - b * moved) / a)
            assert p.shift is None
            continue
        torch.testing.assert_close(p.x0[i], x0)
        torch.testing.assert_close(p.eps[i], own_eps)
        if form == "unit":
            expected = 0.7 / 15 * g / g.norm()
        else:
            beta = 1 - place.abar / place.abar_prev
            expected = 0.7 * beta * (1 - place.abar_prev) / (1 - place.abar) * g / g.abs().max()
        torch.testing.assert_close(p.shift[i], expected)


def test_unit_steps_add_up_to_the_strength():
    for guide in (minority, jitter):
        options = {"second": SECOND} if guide is minority else {}
        predictor = guide(TOY.predictor, **options, strength=2.0, noise=noise())
        lengths = []
        sample(predictor, ANCHORS, levels(300, 15), callback=lambda _x, _l, p: lengths.append(p.shift.norm(dim=1)))  # noqa: B023
        torch.testing.assert_close(torch.stack(lengths).sum(0), torch.full((300,), 2.0, dtype=torch.float64))


def test_random_steps_leave_less_than_guided_ones():
    far = [knn_distance(walked(2.0, guide=g), TRAIN, 10).mean() for g in (minority, jitter)]
    none = knn_distance(walked(0.0), TRAIN, 10).mean()
    assert far[0] - none > 3 * (far[1] - none)


def test_one_step_is_the_estimate_and_a_push():
    moved, plain = walked(0.8, steps=1), walked(0.0, steps=1)
    place = levels(300, 1)[0]
    x = math.sqrt(place.abar) * ANCHORS + math.sqrt(1 - place.abar) * noise()()
    torch.testing.assert_close(plain, TOY.predictor(x, place).x0)
    torch.testing.assert_close((moved - plain).norm(dim=1), torch.full((300,), 0.8, dtype=torch.float64))
    assert log_p(moved).mean() < log_p(plain).mean()


def test_no_strength_is_the_plain_walk():
    grid, draw = levels(300, 15), noise()
    x = math.sqrt(grid[0].abar) * ANCHORS + math.sqrt(1 - grid[0].abar) * draw()
    assert torch.equal(walked(0.0), sample(TOY.predictor, x, grid))


def test_a_sample_does_not_depend_on_its_company():
    strength = torch.linspace(-1, 2, 300, dtype=torch.float64)
    strength[7] = 0.0
    together = walked(strength, draws=2)
    for rows in (slice(0, 1), slice(7, 8), slice(100, 140)):
        grid, draw = levels(300, 15), Noise(range(300)[rows], (2,), dtype=torch.float64)
        x = math.sqrt(grid[0].abar) * ANCHORS[rows] + math.sqrt(1 - grid[0].abar) * draw()
        alone = sample(minority(TOY.predictor, SECOND, strength=strength[rows], noise=draw, draws=2), x, grid)
        torch.testing.assert_close(alone, together[rows])


def test_a_vanishing_gradient_moves_nothing():
    from outskirts.types import Prediction

    still = lambda x, _level: Prediction(0 * x, x)  # noqa: E731
    p = minority(still, SECOND, strength=1.0, noise=noise())(ANCHORS, levels(300, 15)[0])
    assert (p.shift == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "ddpm"}, "form='ddpm'; accepted: unit"),
        ({"draws": 0}, "draws=0"),
        ({"distance": "l3"}, "distance='l3'"),
        ({"detach": "both"}, "detach='both'"),
        ({"strength": torch.ones(2)}, "2 strengths for 300 samples"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(OutskirtsError, match=message) as e:
        walked(**{"strength": 1.0, **options})
    assert "\n" not in str(e.value)
