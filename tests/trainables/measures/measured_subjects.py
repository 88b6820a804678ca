"""Models with known answers, as subjects of measures."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from trainables.measures.subject import Subject, batch_indices

CPU = torch.device("cpu")


def subject_of(model, train, test=None, *, seed=0, size=16, loss=F.cross_entropy, forward=None):
    """A subject over tensors (x, y); `test` is `train` unless given."""
    data = {"train": train, "test": train if test is None else test}

    def batches(split, limit):
        x, y = data[split]
        for index in batch_indices(len(x), size, limit, seed=seed, split=split):
            yield x[index], y[index]

    return Subject(model, seed, CPU, batches, loss, forward or model)


class Surface(nn.Module):
    """Logits that are theta itself, cut into two parameters, so that any function of theta can be the loss."""

    def __init__(self, theta):
        super().__init__()
        cut = len(theta) // 2
        self.first, self.second = nn.Parameter(theta[:cut].clone()), nn.Parameter(theta[cut:].clone())

    def forward(self, x):
        return torch.cat([self.first, self.second]).expand(len(x), -1)


def quadratic(a, theta, seed=0):
    """Subject whose loss is 1/2 theta' A theta, whatever the 48 inputs."""
    nothing = torch.zeros(48, 1, dtype=theta.dtype), torch.zeros(48, dtype=torch.int64)
    return subject_of(Surface(theta), nothing, seed=seed, loss=lambda logits, y: 0.5 * logits[0] @ a @ logits[0])


def blobs(n=100, classes=3, features=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    centres = 1.5 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    x = centres[y] + torch.randn(n, features, generator=generator)
    return x.to(dtype), y


def mlp(dtype=torch.float64, dropout=0.5, seed=0):
    """4 inputs, 3 classes, 43 parameters that the loss meets, smooth, with dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).to(dtype)


def norm_net(dtype=torch.float32, seed=0):
    """A convolution with BatchNorm and dropout on images of 1 x 2 x 2 (four features)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 6, 2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(54, 3),
        ).to(dtype)


def trained(model, data, steps=60, lr=0.2):
    """The model after full-batch gradient descent, in training mode."""
    x, y = data
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


def snapshot(model):
    """Everything of a model that a measure could disturb, and the global generator's state."""
    return (
        copy.deepcopy(model.state_dict()),
        [layer.training for layer in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [getattr(layer, "momentum", None) for layer in model.modules()],
        torch.get_rng_state(),
    )


def same(before, after):
    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
        return a == b

    return equal(before, after)
