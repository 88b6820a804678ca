"""Sharpness as measured: closed forms on quadratics, the family's own probe, and what minibatches change."""

import math

import numpy as np
import pytest
import torch
from measured_subjects import blobs, flat, mlp, quadratic, subject_of, trained
from torch.nn import functional as F

from trainables.measures import check, run
from trainables.sharpness import METRICS


def sharpness(subject, **written):
    return run("sharpness", subject, check({"sharpness": written})["sharpness"])


A = torch.tensor([[3.0, 1.0, 0.0, 0.2], [1.0, 2.0, -0.5, 0.0], [0.0, -0.5, 1.0, 0.1], [0.2, 0.0, 0.1, -1.0]]).double()
THETA = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)


def test_sams_sharpness_of_a_quadratic_is_its_closed_form():
    rows = sharpness(quadratic(A, THETA), gamma=[0.1, 0.5])
    g = A @ THETA
    for row, gamma in zip(rows, (0.1, 0.5), strict=True):
        expected = gamma * g.norm() + gamma**2 * (g @ A @ g) / (2 * g @ g)
        assert (row["metric"], row["gamma"], row["eta"]) == ("sam", gamma, None)
        assert row["loss"] == pytest.approx(float(0.5 * THETA @ A @ THETA), rel=1e-13)
        assert row["sharpness"] == pytest.approx(float(expected), rel=1e-12)
        assert row["perturbed_loss"] == pytest.approx(row["loss"] + row["sharpness"], rel=1e-13)
        assert row["images"] == 48


@pytest.mark.parametrize("metric", ["fsam", "asam_eq5"])
def test_each_metrics_sharpness_is_its_ellipsoids(metric):
    g = A @ THETA
    d = 1 / (1 + 7 * g**2) if metric == "fsam" else THETA**2
    eps = 0.3 * d * g / (g @ (d * g)).sqrt()
    written = {"eta": [7.0]} if metric == "fsam" else {}
    (row,) = sharpness(quadratic(A, THETA), metrics=[metric], gamma=[0.3], **written)
    assert row["sharpness"] == pytest.approx(float(g @ eps + 0.5 * eps @ A @ eps), rel=1e-12)


def test_official_asam_scales_weights_and_not_biases():
    x, y = blobs(40)
    model = trained(mlp(), (x, y), steps=20)
    (row,) = sharpness(subject_of(model, (x, y)), metrics=["asam_official"], gamma=[0.4], eta=[0.02])
    model.eval()
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    d = [(p.detach().abs() + 0.02) ** 2 if p.ndim > 1 else torch.ones_like(p) for p in model.parameters()]
    norm = math.sqrt(sum(float((g * g * s).sum()) for g, s in zip(grads, d, strict=True)))
    with torch.no_grad():
        for p, g, s in zip(model.parameters(), grads, d, strict=True):
            p += 0.4 * s * g / norm
        assert row["perturbed_loss"] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-12)


def test_fsam_without_eta_is_sam():
    subject = subject_of(mlp(), blobs(40))
    sam, fsam = sharpness(subject, metrics=["sam", "fsam"], gamma=[0.2], eta=[0])
    assert sam["sharpness"] == fsam["sharpness"]


def test_every_metric_gamma_and_eta_has_one_row():
    rows = sharpness(subject_of(mlp(), blobs(40)), metrics=list(METRICS), gamma=[0.1, 0.2], eta=[0.1, 1], batches=1)
    points = [(r["metric"], r["gamma"], r["eta"]) for r in rows]
    assert len(set(points)) == len(points) == 2 * (1 + 2 + 1 + 2)
    assert all(r["images"] == 16 for r in rows)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_worst_point_for_each_batch_is_the_mean_over_batches_weighted_by_images(limit):
    x, y = blobs(40)
    model = trained(mlp(), (x, y), steps=20)
    subject = subject_of(model, (x, y), size=16)
    (row,) = sharpness(subject, gamma=[0.3], per_batch=True, batches=limit)
    model.eval()
    theta = [p.detach().clone() for p in model.parameters()]
    loss = perturbed = images = 0
    for bx, by in subject.batches("train", limit):
        here = F.cross_entropy(model(bx), by)
        grads = torch.autograd.grad(here, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p += 0.3 * g / flat(grads).norm()
            loss += float(here) * len(by)
            perturbed += float(F.cross_entropy(model(bx), by)) * len(by)
            images += len(by)
            for p, t in zip(model.parameters(), theta, strict=True):
                p.copy_(t)
    assert row["images"] == images == (40 if limit is None else 32)
    assert row["loss"] == pytest.approx(loss / images, rel=1e-13)
    assert row["sharpness"] == pytest.approx((perturbed - loss) / images, rel=1e-11)


def test_each_batchs_worst_point_hurts_more_than_the_common_one():
    subject = subject_of(trained(mlp(), blobs(64)), blobs(64), size=8)
    common, each = (sharpness(subject, gamma=[0.05], per_batch=p)[0]["sharpness"] for p in (False, True))
    assert each > common > 0


def test_one_batch_of_everything_has_one_worst_point_either_way():
    subject = subject_of(mlp(), blobs(40), size=40)
    common, each = (sharpness(subject, gamma=[0.05], per_batch=p)[0]["sharpness"] for p in (False, True))
    assert common == each


def test_at_a_critical_point_the_first_order_probe_stays_where_it_is():
    (row,) = sharpness(quadratic(A, torch.zeros(4, dtype=torch.float64)), gamma=[1.0])
    assert row["sharpness"] == 0


def test_a_gradient_that_is_not_finite_has_no_sharpness():
    model = mlp()
    with torch.no_grad():
        model[0].bias[0] = math.nan
    for per_batch in (False, True):
        (row,) = sharpness(subject_of(model, blobs(40)), gamma=[0.1], per_batch=per_batch)
        assert np.isnan([row["loss"], row["perturbed_loss"], row["sharpness"]]).all()


def test_an_overflow_at_the_worst_point_is_reported_as_it_is():
    subject = quadratic(1e36 * torch.eye(4), torch.ones(4))
    (row,) = sharpness(subject, gamma=[100.0])
    assert math.isfinite(row["loss"])
    assert row["perturbed_loss"] == math.inf
    assert row["sharpness"] == math.inf
