"""AutoAugment on a batch is torchvision's AutoAugment on each of its images, given the same draws."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, chisquare
from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

from trainables.data.autoaugment import POLICIES, autoaugment
from trainables.data.autoaugment.bank import bank
from trainables.data.autoaugment.choices import Choices, apply, draw, settings_of
from trainables.data.autoaugment.policies import SUB_POLICIES


def again(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, channels=3, height=32, width=32):
    # Smooth and of limited contrast, as photographs are: noise would leave equalisation nothing to do.
    coarse = torch.rand(n, channels, 5, 5, generator=again(99))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.randn(n, channels, height, width, generator=again(98))
    return (40 + 170 * smooth + 6 * noise).clamp(0, 255).to(torch.uint8)


class Replayed(AutoAugment):
    """torchvision's AutoAugment with draws that are given to it."""

    def __init__(self, choices, i, fill=None):
        super().__init__(AutoAugmentPolicy(choices.policy), fill=fill)
        # A draw of 1.5 is above every probability; one of -1 below.
        probabilities = torch.where(choices.applied[:, i], -1.0, 1.5)
        self.given = int(choices.sub_policy[i]), probabilities, 1 - choices.negative[:, i].long()

    def get_params(self, transform_num):
        return self.given


def one_by_one(x, choices, fill=None):
    results = []
    for i, pixels in enumerate(x):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy())
        result = torch.from_numpy(np.array(Replayed(choices, i, fill)(picture)))
        results.append(result.permute(2, 0, 1) if len(pixels) == 3 else result[None])
    return torch.stack(results)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_torchvisions(policy):
    assert list(SUB_POLICIES[policy]) == AutoAugment()._get_policies(AutoAugmentPolicy(policy))


def test_policies_are_those_that_torchvision_has():
    assert POLICIES == ("cifar10", "imagenet", "svhn")
    assert set(POLICIES) == {policy.value for policy in AutoAugmentPolicy}


def test_naming_the_policies_imports_no_torch():
    code = (
        "import sys; from trainables.data.autoaugment import POLICIES, autoaugment; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 19, 40)])
def test_a_batch_is_torchvisions_autoaugment_of_each_image(policy, channels, height, width, generator):
    x = images(200, channels, height, width)
    choices = draw(len(x), policy, generator)
    expected = one_by_one(x, choices)
    assert torch.equal(apply(x, choices), expected)
    assert torch.equal(autoaugment(x, choices), expected)
    assert (expected != x).flatten(1).any(1).float().mean() > 0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_every_choice_there_is_gives_torchvisions_image(policy):
    rows = torch.arange(25).repeat_interleave(16)
    bits = torch.arange(16).repeat(25)
    choices = Choices(policy, rows, torch.stack([bits & 1, bits & 2]) > 0, torch.stack([bits & 4, bits & 8]) > 0)
    x = images(1, height=24, width=24).expand(400, -1, -1, -1)
    assert torch.equal(apply(x, choices), one_by_one(x, choices))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_way_without_a_wait_for_the_device_gives_the_same(policy, generator):
    x = images(300)
    choices = draw(len(x), policy, generator)
    settings, number = settings_of(policy, x.device)
    ready = bank(settings, 3, 32, 32, 0, x.device)
    found = x
    for step in range(2):
        which = number[step, choices.sub_policy, choices.negative[step].long()] * choices.applied[step]
        found = ready.apply(found, which, sort=False)
    assert torch.equal(found, apply(x, choices))


def test_working_on_a_few_images_at_a_time_gives_the_same(generator, monkeypatch):
    x = images(150, height=9, width=12)
    choices = draw(len(x), "imagenet", generator)
    whole = apply(x, choices)
    for values in (1, 3 * 9 * 12 * 2, 3 * 9 * 12 * 7):
        monkeypatch.setattr("trainables.data.autoaugment.bank.PIECE", values)
        assert torch.equal(apply(x, choices), whole)


@pytest.mark.cifar
def test_cifar_images_are_torchvisions(cifar_root):
    with (Path(cifar_root) / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        x = torch.from_numpy(pickle.load(file, encoding="bytes")[b"data"][:256].reshape(-1, 3, 32, 32))
    choices = draw(256, "cifar10", again(3))
    assert torch.equal(apply(x, choices), one_by_one(x, choices))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_gives_the_pixels_of_the_cpu_and_the_host_does_not_wait(policy, channels, generator):
    x = images(500, channels)
    choices = draw(len(x), policy, generator)
    there = Choices.of(policy, choices.rows().cuda())
    pixels = x.cuda()
    apply(pixels, there)  # the first batch makes what is kept, and waits for it
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = apply(pixels, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), apply(x, choices))


def test_fill_is_what_comes_in_from_outside(generator):
    x = images(200)
    choices = draw(len(x), "cifar10", generator)
    assert torch.equal(apply(x, choices, fill=128), one_by_one(x, choices, fill=128))
    assert not torch.equal(apply(x, choices, fill=128), apply(x, choices))


def test_nothing_applied_leaves_every_image_as_it_is(generator):
    x = images()
    choices = draw(len(x), "svhn", generator)
    none = Choices("svhn", choices.sub_policy, torch.zeros_like(choices.applied), choices.negative)
    assert torch.equal(apply(x, none), x)


def test_the_batch_given_is_left_as_it_was(generator):
    x = images()
    before = x.clone()
    found = autoaugment(x, draw(len(x), "cifar10", generator))
    assert torch.equal(x, before)
    assert found.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("sort", [True, False])
def test_memory_layout_does_not_matter(sort):
    x = images()
    settings, _ = settings_of("cifar10", x.device)
    ready = bank(settings, 3, 32, 32, 0, x.device)
    which = torch.arange(len(x)) % len(settings)
    found = ready.apply(x.contiguous(memory_format=torch.channels_last), which, sort=sort)
    assert torch.equal(found, ready.apply(x, which, sort=sort))
    assert found.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_batch_and_a_batch_of_one_work(n, channels, generator):
    x = images(max(n, 1), channels)[:n]
    for _ in range(20):
        found = autoaugment(x, draw(n, "imagenet", generator))
        assert (found.shape, found.dtype) == (x.shape, torch.uint8)


def test_images_do_not_depend_on_the_rest_of_their_batch(generator):
    x = images(100)
    choices = draw(100, "cifar10", generator)
    some = torch.arange(0, 100, 3)
    alone = Choices("cifar10", choices.sub_policy[some], choices.applied[:, some], choices.negative[:, some])
    assert torch.equal(apply(x[some], alone), apply(x, choices)[some])


@pytest.mark.parametrize("n", [0, 1, 40])
def test_choices_are_the_same_put_into_rows_and_taken_out(n, generator):
    choices = draw(n, "svhn", generator)
    again = Choices.of("svhn", choices.rows())
    assert choices.rows().shape == (5, n)
    for key in ("sub_policy", "applied", "negative"):
        assert torch.equal(getattr(again, key), getattr(choices, key))
        assert getattr(again, key).dtype == getattr(choices, key).dtype


def test_one_seed_gives_one_batch():
    def drawn(seed):
        return autoaugment(images(), draw(64, "svhn", again(seed)))

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_the_number_of_draws_depends_on_the_number_of_images_alone():
    after = set()
    for policy in POLICIES:
        generator = again(7)
        draw(50, policy, generator)
        after.add(bytes(generator.get_state().numpy()))
    assert len(after) == 1


def test_sub_policies_and_signs_are_uniform_and_independent(generator):
    n = 100_000
    choices = draw(n, "cifar10", generator)
    assert chisquare(torch.bincount(choices.sub_policy, minlength=25)).pvalue > 1e-4
    cells = choices.sub_policy * 4 + choices.negative[0] * 2 + choices.negative[1]
    assert chisquare(torch.bincount(cells, minlength=100)).pvalue > 1e-4


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_are_applied_with_their_probability_and_independently(policy, generator):
    choices = draw(100_000, policy, generator)
    for row, steps in enumerate(SUB_POLICIES[policy]):
        applied = choices.applied[:, choices.sub_policy == row]
        for hits, (_, probability, _) in zip(applied.sum(1).tolist(), steps, strict=True):
            assert binomtest(hits, applied.shape[1], probability).pvalue > 1e-5
        both = float((applied[0] & applied[1]).float().mean())
        assert both == pytest.approx(steps[0][1] * steps[1][1], abs=0.04)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "1 .grey. or 3 .RGB. channels, not 2"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "not 4"),
        (torch.zeros(0, 2, 8, 8, dtype=torch.uint8), "not 2"),
        (torch.zeros(2, 3, 8, 8), r"not torch.float32 of shape \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"shape \(3, 8, 8\)"),
    ],
)
def test_what_is_no_batch_of_grey_or_rgb_images_is_refused_in_one_line(x, words, generator):
    with pytest.raises(ValueError, match=words) as refusal:
        autoaugment(x, draw(len(x), "cifar10", generator))
    assert "\n" not in str(refusal.value)


def test_an_unknown_policy_is_refused_with_the_known_ones(generator):
    with pytest.raises(ValueError, match=r"unknown AutoAugment policy 'cifar' \(known: cifar10, imagenet, svhn\)"):
        draw(2, "cifar", generator)


def test_a_fill_that_is_no_pixel_value_is_refused(generator):
    with pytest.raises(ValueError, match="fill 256 is not a pixel value, 0 to 255"):
        autoaugment(images(2), draw(2, "svhn", generator), fill=256)


def test_choices_for_another_number_of_images_are_refused(generator):
    with pytest.raises(ValueError, match="choices for 3 images cannot be carried out on 2"):
        apply(images(2), draw(3, "svhn", generator))
