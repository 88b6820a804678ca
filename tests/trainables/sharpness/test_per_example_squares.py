"""Eq 11 against a plain loop over the examples, and what the paper says of the Fisher information."""

import math

import pytest
import torch
from sharpness_reference import Problem
from torch import nn

from trainables.sharpness import per_example_squares

LOSS = nn.CrossEntropyLoss()


def convolutional():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    return net, torch.randn(7, 2, 6, 6, dtype=torch.float64), torch.randint(3, (7,))


def with_batch_statistics(net, x):
    """The same network in evaluation mode, its BatchNorm layers holding the statistics of the batch x."""
    frozen = nn.Sequential()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                dims = [d for d in range(x.ndim) if d != 1]
                norm = type(layer)(layer.num_features).double()
                norm.load_state_dict(layer.state_dict(), strict=False)
                norm.weight, norm.bias = layer.weight, layer.bias
                norm.running_mean.copy_(x.mean(dims))
                norm.running_var.copy_(x.var(dims, correction=0))
                layer = norm.eval()
            x = layer(x)
            frozen.append(layer)
    return frozen


def loop(net, x, y):
    params = [p for p in net.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in params]
    for i in range(len(x)):
        grads = torch.autograd.grad(LOSS(net(x[i : i + 1]), y[i : i + 1]), params)
        total = [t + g**2 for t, g in zip(total, grads, strict=True)]
    return [t / len(x) for t in total]


@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
def test_squares_are_those_of_a_loop_over_examples(chunk):
    problem = Problem()
    got = per_example_squares(problem.net, LOSS, problem.x, problem.y, chunk=chunk)
    torch.testing.assert_close(got, loop(problem.net, problem.x, problem.y), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 3])
def test_batch_norm_statistics_are_the_batchs_and_constant(chunk):
    net, x, y = convolutional()
    got = per_example_squares(net, LOSS, x, y, chunk=chunk)
    expected = loop(with_batch_statistics(net, x), x, y)
    assert len(got) == len(expected)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-13)


def test_batch_norm_used_twice_has_the_statistics_of_each_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.norm(torch.tanh(3 * self.norm(x) + 1)))

    torch.manual_seed(0)
    net = Twice().double()
    x, y = torch.randn(8, 4, dtype=torch.float64) * 2 + 1, torch.randint(3, (8,))
    got = per_example_squares(net, LOSS, x, y)
    mean, var = x.mean(0), x.var(0, correction=0)
    w, b = net.norm.weight, net.norm.bias
    inner = torch.tanh(3 * ((x - mean) / (var + 1e-5).sqrt() * w + b) + 1)
    mean2, var2 = inner.mean(0).detach(), inner.var(0, correction=0).detach()
    outer = (inner - mean2) / (var2 + 1e-5).sqrt() * w + b
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(8):
        grads = torch.autograd.grad(
            LOSS(net.out(outer[i : i + 1]), y[i : i + 1]), list(net.parameters()), retain_graph=True
        )
        expected = [t + g**2 / 8 for t, g in zip(expected, grads, strict=True)]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-13)


def test_mean_of_squares_is_at_least_the_square_of_the_mean():
    problem = Problem()
    squares = per_example_squares(problem.net, LOSS, problem.x, problem.y)
    problem.backward()
    for f, p in zip(squares, problem.params, strict=True):
        assert (f >= p.grad**2 - 1e-15).all()
    # eq 12 understates eq 11 by up to the size of the batch (eq 13)
    total = sum(f.sum() for f in squares) / sum((p.grad**2).sum() for p in problem.params)
    assert total > 1


def test_identical_examples_give_the_squared_gradient_exactly():
    problem = Problem()
    problem.x, problem.y = problem.x[:1].repeat(5, 1), problem.y[:1].repeat(5)
    problem.backward()
    squares = per_example_squares(problem.net, LOSS, problem.x, problem.y)
    torch.testing.assert_close(squares, [p.grad**2 for p in problem.params], rtol=1e-10, atol=1e-15)


def test_only_parameters_that_require_grad_appear_in_module_order():
    net, x, y = convolutional()
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    got = per_example_squares(net, LOSS, x, y)
    assert [f.shape for f in got] == [p.shape for p in net.parameters() if p.requires_grad]
    torch.testing.assert_close(got, loop(with_batch_statistics(net, x), x, y), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("fails", [False, True])
def test_module_is_left_as_it_was_found(fails):
    net, x, y = convolutional()
    net.insert(2, nn.Dropout(0.5))
    net[5].eval()  # frozen by the user
    LOSS(net(x), y).backward()
    grads = [p.grad.clone() for p in net.parameters()]
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    modes = [m.training for m in net.modules()]
    random = torch.get_rng_state()

    def loss(outputs, targets):
        if fails:
            raise RuntimeError("loss")
        return LOSS(outputs, targets)

    if fails:
        with pytest.raises(RuntimeError, match="loss"):
            per_example_squares(net, loss, x, y)
    else:
        per_example_squares(net, loss, x, y)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert not any("forward" in m.__dict__ for m in net.modules())


def test_bad_arguments_are_refused():
    problem = Problem()
    with pytest.raises(ValueError, match="same number"):
        per_example_squares(problem.net, LOSS, problem.x, problem.y[:3])
    with pytest.raises(ValueError, match="at least one"):
        per_example_squares(problem.net, LOSS, problem.x[:0], problem.y[:0])
    with pytest.raises(ValueError, match="chunk"):
        per_example_squares(problem.net, LOSS, problem.x, problem.y, chunk=0)


def test_divergence_is_half_the_fisher_quadratic():
    """Appendix B states KL(theta + eps, theta) = eps' F eps; the true expansion has a factor of 1/2."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=generator, dtype=torch.float64)  # logits of a categorical distribution
    direction = torch.randn(5, generator=generator, dtype=torch.float64)
    p = theta.softmax(0)
    fisher = torch.diag(p) - torch.outer(p, p)
    for size in (1e-2, 1e-3):
        eps = size * direction
        q = (theta + eps).softmax(0)
        divergence = (q * (q / p).log()).sum().item()
        quadratic = (eps @ fisher @ eps).item()
        assert divergence / quadratic == pytest.approx(0.5, rel=10 * size)


def test_expected_per_example_square_is_the_true_fishers_diagonal():
    """Eq 11 with labels from the model itself, every label weighted by its probability, for one linear layer."""
    torch.manual_seed(0)
    net = nn.Linear(3, 4, bias=False).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    p = net(x).softmax(1)[0].detach()
    f = sum(p[y] * per_example_squares(net, LOSS, x, torch.tensor([y]))[0] for y in range(4))
    expected = (p * (1 - p))[:, None] * x**2
    torch.testing.assert_close(f, expected, rtol=1e-10, atol=1e-14)
    assert math.isfinite(f.sum())
