"""The Hessian's trace and top eigenvalue, against matrices whose answers are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_subjects import blobs, mlp, quadratic, subject_of, trained
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from trainables.measures import check, run
from trainables.measures.curvature import lanczos


def curvature(subject, **written):
    (row,) = run("curvature", subject, check({"curvature": written})["curvature"])
    return row


def with_eigenvalues(values, seed=0):
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    a = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    return (a + a.T) / 2


def exact_hessian(model, x, y, smoothing=0.0):
    params = {k: p.detach() for k, p in model.named_parameters()}
    model.eval()

    def loss(at):
        return F.cross_entropy(functional_call(model, at, (x,)), y, label_smoothing=smoothing)

    blocks = hessian(loss)(params)
    sizes = {k: p.numel() for k, p in params.items()}
    return torch.cat([torch.cat([blocks[a][b].reshape(sizes[a], sizes[b]) for b in params], 1) for a in params])


@pytest.mark.parametrize(
    "values",
    [
        [5, 2, 1, 0.5, 0.1, 0],
        [3, 3, 3, 1, 1, 0],  # repeated
        [2, 1, 0, -1, -2, -7],  # indefinite: the largest in size is negative
        [-1, -2, -3, -4, -5, -6],
        [4, 4, 4, 4, 4, 4],
        [0, 0, 0, 0, 0, 0],
        [3],
    ],
)
def test_a_quadratics_eigenvalue_is_its_matrixs(values):
    theta = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    row = curvature(quadratic(with_eigenvalues(values), theta), tolerance=1e-10)
    assert row["top_eigenvalue"] == pytest.approx(max(values), abs=1e-9)
    assert row["largest_magnitude"] == pytest.approx(max(values, key=abs), abs=1e-9)
    assert row["residual"] <= 1e-10 * max(map(abs, values)) + 1e-13
    assert row["converged"]
    assert row["iterations"] <= len(set(values))  # the Krylov space of a random vector has no more dimensions


def test_the_trace_of_a_diagonal_hessian_is_exact_from_one_probe():
    diagonal = torch.tensor([5.0, -2.0, 1.0, 0.25], dtype=torch.float64)
    row = curvature(quadratic(torch.diag(diagonal), torch.ones(4, dtype=torch.float64)), probes=1)
    assert row["hessian_trace"] == pytest.approx(4.25, abs=1e-13)
    assert row["hessian_trace_se"] is None


def test_the_traces_standard_error_is_hutchinsons():
    a = with_eigenvalues([9, 4, 2, 1, 0.5, -3], seed=1)
    row = curvature(quadratic(a, torch.ones(6, dtype=torch.float64)), probes=1000)
    # Var v'Av = 2 sum of the squares off the diagonal, for Rademacher v
    expected = math.sqrt(2 * float((a - torch.diag(torch.diag(a))).square().sum()) / 1000)
    assert row["hessian_trace_se"] == pytest.approx(expected, rel=0.1)
    assert abs(row["hessian_trace"] - 13.5) < 4 * expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_mlps_curvature_is_that_of_its_full_hessian(smoothing):
    x, y = blobs(50)
    model = trained(mlp(), (x, y), steps=30)
    subject = subject_of(
        model, (x, y), size=16, loss=lambda logits, y: F.cross_entropy(logits, y, label_smoothing=smoothing)
    )
    row = curvature(subject, batches=None, tolerance=1e-8, max_iterations=60, probes=500)
    full = exact_hessian(model, x, y, smoothing)
    eigenvalues = np.linalg.eigvalsh(full.numpy())
    assert row["top_eigenvalue"] == pytest.approx(eigenvalues[-1], rel=1e-9)
    assert row["largest_magnitude"] == pytest.approx(max(eigenvalues, key=abs), rel=1e-9)
    assert row["converged"]
    assert row["images"] == 50
    assert abs(row["hessian_trace"] - float(full.trace())) < 4 * row["hessian_trace_se"]


def test_the_hessian_of_some_batches_is_that_of_their_images():
    x, y = blobs(50)
    subject = subject_of(trained(mlp(), (x, y), steps=30), (x, y), size=16)
    chosen = list(subject.batches("train", 2))
    full = exact_hessian(subject.model, torch.cat([x for x, _ in chosen]), torch.cat([y for _, y in chosen]))
    row = curvature(subject, batches=2, tolerance=1e-8)
    assert row["images"] == 32
    assert row["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(full)[-1]), rel=1e-9)


def test_too_few_iterations_say_that_they_have_not_converged():
    x, y = blobs(50)
    row = curvature(subject_of(mlp(), (x, y)), tolerance=1e-8, max_iterations=2)
    assert not row["converged"]
    assert row["iterations"] == 2
    assert row["residual"] > 1e-8 * abs(row["largest_magnitude"])


def test_a_loss_that_is_linear_in_theta_has_no_curvature():
    subject = quadratic(torch.zeros(4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    linear = subject_of(subject.model, next(iter(subject.batches("train", 1))), loss=lambda logits, y: logits.mean())
    row = curvature(linear)
    assert (row["hessian_trace"], row["hessian_trace_se"], row["top_eigenvalue"], row["residual"]) == (0, 0, 0, 0)
    assert row["converged"]


def test_a_parameter_without_part_in_the_loss_has_rows_of_zeros():
    x, y = blobs(50)
    model = mlp()
    alone = curvature(subject_of(model, (x, y)), tolerance=1e-9)
    model.register_parameter("idle", nn.Parameter(torch.ones(7, dtype=torch.float64)))
    assert curvature(subject_of(model, (x, y)), tolerance=1e-9)["top_eigenvalue"] == pytest.approx(
        alone["top_eigenvalue"], rel=1e-9
    )


def test_frozen_parameters_are_no_directions():
    x, y = blobs(50)
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    last = exact_hessian(model, x, y)[-18:, -18:]  # of the output layer
    row = curvature(subject_of(model, (x, y)), batches=None, tolerance=1e-9)
    assert row["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(last)[-1]), rel=1e-9)


def test_attention_has_a_curvature():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.outputs = nn.Linear(4, 24), nn.Linear(8, 3)

        def forward(self, x):
            tokens = self.inputs(x).view(-1, 1, 3, 8)
            return self.outputs(F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, 0])

    x, y = blobs(30)
    torch.manual_seed(0)
    model = Attentive().double()
    row = curvature(subject_of(model, (x, y)), batches=None, tolerance=1e-8, max_iterations=100)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        full = exact_hessian(model, x, y)
    assert row["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(full)[-1]), rel=1e-8)


def test_float32_finds_the_eigenvalue_to_its_precision():
    x, y = blobs(50)
    double = curvature(subject_of(mlp(), (x, y)), tolerance=1e-6)
    single = curvature(subject_of(mlp(torch.float32), (x.float(), y)), tolerance=1e-4)
    assert single["converged"]
    assert single["top_eigenvalue"] == pytest.approx(double["top_eigenvalue"], rel=1e-5)
    assert single["hessian_trace"] == pytest.approx(double["hessian_trace"], rel=1e-4)


def test_a_hessian_that_is_not_finite_says_nan():
    x, y = blobs(50)
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    row = curvature(subject_of(model, (x, y)))
    assert all(math.isnan(row[key]) for key in ("hessian_trace", "top_eigenvalue", "largest_magnitude", "residual"))
    assert not row["converged"]


# The squares of anything smaller would underflow in a norm.
VALUES = st.just(0.0) | st.floats(1e-100, 100) | st.floats(-100, -1e-100)


@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, min_size=1, max_size=30), st.integers(0, 1000))
def test_lanczos_finds_the_largest_eigenvalue_of_any_symmetric_matrix(values, seed):
    a = with_eigenvalues(values, seed)
    start = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    top = lanczos(a.mv, start, tolerance=1e-10, max_iterations=60)
    size = max(map(abs, values))
    assert top.eigenvalue == pytest.approx(max(values), abs=1e-7 * size)
    assert abs(top.largest_magnitude) == pytest.approx(size, abs=1e-7 * size)
    assert top.iterations <= len(values)
