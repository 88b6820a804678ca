"""How much of eq 11's Fisher eq 12 sees on a network that trains: sum(g_B^2) / sum(mean over i of g_i^2).

The share lies between 0 and 1 (Jensen), is 1 for equal examples and about 1 / |B| for unrelated gradients. Over batches
drawn with replacement, numerator and denominator averaged apart, it is 1 / M + (1 - 1 / M) s, where s is the share of
the whole data set: what test_batch_gradients.py shows for any vectors, here on a network's own.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from trainables.models.small import digits_cnn, mlp
from trainables.sharpness import per_example_squares

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(y, dtype=torch.int64)


def network(kind, digits, steps):
    """An MLP, or a CNN whose BatchNorm uses its running statistics, so that each example has a gradient of its own."""
    torch.manual_seed(0)
    x, y = digits
    net = mlp(classes=10, channels=1, side=8) if kind == "mlp" else digits_cnn(classes=10, channels=1, side=8)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        optimiser.zero_grad()
        LOSS(net(x[batch]), y[batch]).backward()
        optimiser.step()
    return net.eval()


def squares(net, x, y):
    """Sum over the parameters of eq 12's and of eq 11's diagonal, on this batch."""
    grads = torch.autograd.grad(LOSS(net(x), y), list(net.parameters()))
    eq_12 = sum(g.double().square().sum().item() for g in grads)
    eq_11 = sum(f.double().sum().item() for f in per_example_squares(net, LOSS, x, y))
    return eq_12, eq_11


@pytest.mark.parametrize("kind", ["mlp", "digits_cnn"])
@pytest.mark.parametrize("steps", [0, 100])
def test_mean_share_over_batches_is_what_batch_size_and_signal_give(kind, steps, digits):
    net, (x, y) = network(kind, digits, steps), digits
    whole_12, whole_11 = squares(net, x, y)
    signal = whole_12 / whole_11
    generator = torch.Generator().manual_seed(2)
    for size, batches in ((32, 40), (128, 25)):
        seen = []
        for _ in range(batches):
            batch = torch.randint(len(x), (size,), generator=generator)
            seen.append(squares(net, x[batch], y[batch]))
        eq_12, eq_11 = np.array(seen).T
        assert (eq_12 / eq_11 <= 1 + 1e-5).all()
        share = eq_12.mean() / eq_11.mean()
        # few examples carry most of a trained network's squares, so that means over batches scatter
        assert share == pytest.approx(1 / size + (1 - 1 / size) * signal, rel=0.35)


@pytest.mark.parametrize("steps", [0, 300])
def test_eq_12_sees_a_few_per_cent_of_eq_11_at_the_papers_batch_size(steps, digits):
    """At initialisation as after training: the signal's share is one to three per cent, 1 / 128 another 0.8."""
    net = network("mlp", digits, steps)
    seen = np.array([squares(net, digits[0][i : i + 128], digits[1][i : i + 128]) for i in range(0, 1280, 128)])
    share = seen[:, 0].sum() / seen[:, 1].sum()
    assert 1 / 128 < share < 0.06


def test_equal_examples_are_seen_in_full_and_opposite_ones_not_at_all(digits):
    net, (x, y) = network("mlp", digits, 0), digits
    eq_12, eq_11 = squares(net, x[:1].repeat(32, 1, 1, 1), y[:1].repeat(32))
    assert eq_12 / eq_11 == pytest.approx(1, rel=1e-4)

    line = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(line.weight)
    halves, targets = torch.ones(32, 1), torch.tensor([1.0, -1.0] * 16).view(-1, 1)
    grad = torch.autograd.grad(nn.functional.mse_loss(line(halves), targets), line.weight)[0]
    (f,) = per_example_squares(line, nn.functional.mse_loss, halves, targets)
    assert grad.item() == 0
    assert f.item() == pytest.approx(4)
