"""One seed: reproducible, resumable bit for bit, paired with other optimisers, and honest about breaking down."""

import io
import itertools
import math

import pytest
import torch

from trainables.data import DATASETS
from trainables.models.pretrained import save_weights
from trainables.recipe import Recipe
from trainables.replicate import Evaluation, Replicate
from trainables.schedule import learning_rate

TINY = {"dataset": "synthetic", "model": "mlp", "epochs": 4, "batch_size": 32, "train_size": 160, "lr": 0.05}

EVERY_WAY = [
    {"optimiser": "sgd"},
    {"optimiser": "sam"},
    {"optimiser": "asam"},
    {"optimiser": "asam", "asam_convention": "eq5"},
    {"optimiser": "fsam"},
    {"optimiser": "fsam", "eta": 1e4, "fisher": "per_example"},
    {"optimiser": "fsam", "m": 8},
    {"optimiser": "fsam", "m": 16, "fisher": "per_example"},
    {"optimiser": "sgd", "natural_gradient": True, "eta": 10.0},
    {"optimiser": "sam", "base": "adam", "lr": 0.005},
    {"optimiser": "sam", "base": "adamw", "lr": 0.005, "dropout": 0.3, "same_dropout": True},
    {"optimiser": "fsam", "dropout": 0.3},
    {"optimiser": "fsam", "model": "digits_cnn"},
    {"optimiser": "fsam", "model": "digits_cnn", "fisher": "per_example", "dropout": 0.1},
    {"optimiser": "fsam", "precision": "float16"},
    {"optimiser": "fsam", "precision": "bfloat16"},
    {"optimiser": "fsam", "precision": "float64"},
    {"optimiser": "sam", "label_noise": 0.4, "augmentation": ["cutout"], "cutout_size": 4},
]

#: Too much for eight pixels to learn from in a few epochs, and still to be resumed bit for bit.
HARSH = {"optimiser": "sam", "augmentation": ["resized_crop", "flip", "autoaugment"], "image_side": 12}


def rows(replicate, epochs):
    found = []
    while replicate.epoch < epochs:
        row = replicate.train_epoch()
        del row["train_seconds"]
        found.append(row)
    return found


def same(a, b):
    """Equal, with NaN equal to NaN."""
    return str(a) == str(b)


@pytest.mark.parametrize("way", [*EVERY_WAY, HARSH], ids=str)
def test_resumed_in_a_new_process_state_it_goes_on_bit_for_bit(way):
    recipe = Recipe.of({**TINY, **way})
    whole = Replicate(recipe, 3)
    expected = rows(whole, 4)

    first = Replicate(recipe, 3)
    before = rows(first, 2)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    # Draws in between must not matter: another replicate of the same process has had its turn.
    rows(Replicate(recipe, 9), 1)
    second = Replicate(recipe, 3)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert same(before + rows(second, 4), expected)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key
    assert second.evaluate("test") == whole.evaluate("test")


@pytest.mark.parametrize("way", EVERY_WAY, ids=str)
def test_every_way_learns_the_synthetic_images(way):
    replicate = Replicate(Recipe.of({**TINY, "train_size": 320, "epochs": 6, **way}), 0)
    untrained, chance = (getattr(replicate.evaluate("validation"), key) for key in ("loss", "accuracy"))
    last = rows(replicate, 6)[-1]
    assert last["validation_loss"] < untrained
    assert last["validation_accuracy"] > max(0.5, 2 * chance)
    assert not last["diverged"]


def test_seeds_are_paired_over_optimisers():
    def start(optimiser, **more):
        return Replicate(Recipe.of({**TINY, "optimiser": optimiser, "label_noise": 0.5, **more}), 5)

    sgd, fsam, sam = start("sgd"), start("fsam"), start("sam", gamma=0.3)
    assert sgd.label_hash == fsam.label_hash == sam.label_hash
    for key, value in sgd.model.state_dict().items():
        assert torch.equal(value, fsam.model.state_dict()[key])
    other = Replicate(sgd.recipe, 6)
    assert other.label_hash != sgd.label_hash
    assert any(not torch.equal(a, b) for a, b in zip(sgd.model.parameters(), other.model.parameters(), strict=True))


def test_with_a_vanishing_gamma_sam_sees_the_batches_of_sgd():
    """If order, augmentation or dropout depended on the optimiser, this limit would not hold."""
    way = {**TINY, "precision": "float64", "dropout": 0.2, "augmentation": ["crop", "flip"]}
    sgd = Replicate(Recipe.of({**way, "optimiser": "sgd"}), 1)
    sam = Replicate(Recipe.of({**way, "optimiser": "sam", "gamma": 1e-12, "same_dropout": True}), 1)
    a, b = rows(sgd, 2)[-1], rows(sam, 2)[-1]
    assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-6)
    assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-6)


def first_pass_masks(optimiser, **more):
    """The dropout masks of each step's first pass over two epochs, as the zeros of the hidden layer's output."""
    replicate = Replicate(Recipe.of({**TINY, "dropout": 0.5, "optimiser": optimiser, **more}), 4)
    seen = []
    replicate.model.dropout.register_forward_hook(lambda layer, args, out: seen.append((out != 0) | (args[0] == 0)))
    rows(replicate, 2)
    training = [mask for mask in seen if mask.shape[0] == 32 and not mask.all()]
    return training[:: 1 + replicate.recipe.probes]


def test_the_first_pass_has_the_dropout_masks_of_sgd_at_every_step():
    sgd, sam = first_pass_masks("sgd", lr=1e-9), first_pass_masks("sam", lr=1e-9)
    assert len(sgd) == len(sam) == 10
    assert all(torch.equal(a, b) for a, b in zip(sgd, sam, strict=True))
    assert not torch.equal(sgd[0], sgd[1])


def test_one_operation_more_leaves_the_draws_of_the_others():
    def batches(names, **more):
        replicate = Replicate(Recipe.of({**TINY, "optimiser": "sgd", "augmentation": names, **more}), 2)
        seen = []

        def look(model, args):
            if model.training:
                seen.append(args[0])

        replicate.model.register_forward_pre_hook(look)
        rows(replicate, 1)
        return torch.cat(seen)

    plain, cut = batches(["crop", "flip"]), batches(["crop", "flip", "cutout"], cutout_size=3)
    assert torch.equal(plain[cut != 0], cut[cut != 0])
    assert (cut == 0).any()


def test_fisher_sam_with_zero_eta_trains_as_sam():
    way = {**TINY, "precision": "float64", "gamma": 0.2}
    sam = rows(Replicate(Recipe.of({**way, "optimiser": "sam"}), 1), 3)[-1]
    fsam = rows(Replicate(Recipe.of({**way, "optimiser": "fsam", "eta": 0.0}), 1), 3)[-1]
    assert fsam["validation_loss"] == pytest.approx(sam["validation_loss"], rel=1e-9)


def test_augmentation_is_drawn_anew_each_epoch_and_again_by_the_same_seed():
    way = {**TINY, "augmentation": ["crop", "flip", "cutout"], "cutout_size": 4, "optimiser": "sgd"}
    a, b = (rows(Replicate(Recipe.of(way), 2), 3) for _ in range(2))
    assert same(a, b)
    frozen = Replicate(Recipe.of({**way, "lr": 1e-12}), 2)
    losses = {row["train_loss"] for row in rows(frozen, 3)}
    assert len(losses) == 3, "with frozen weights only the draws can change the loss"


@pytest.mark.parametrize("way", [HARSH, {"augmentation": ["crop", "flip", "cutout"], "cutout_size": 4}, {}], ids=str)
def test_batches_computed_several_at_a_time_train_to_the_same_bits(way, monkeypatch):
    recipe = Recipe.of({**TINY, "train_size": 150, **way})
    alone = Replicate(recipe, 2)
    expected = rows(alone, 2)
    monkeypatch.setattr("trainables.replicate.batches_at_once", lambda *sizes: 3)
    together = Replicate(recipe, 2)
    assert same(rows(together, 2), expected)
    for key, value in alone.model.state_dict().items():
        assert torch.equal(together.model.state_dict()[key], value), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_on_the_batches_of_the_cpu():
    names = ["crop", "flip", "autoaugment", "cutout"]

    def batches(device):
        replicate = Replicate(Recipe.of({**TINY, "augmentation": names, "cutout_size": 4, "device": device}), 2)
        index = torch.arange(160, device=replicate.device).split(32)
        return torch.cat(list(replicate._augmented(index))).cpu()

    assert torch.allclose(batches("cuda"), batches("cpu"), rtol=1e-5, atol=1e-5)


def test_m_of_the_whole_batch_is_no_m():
    way = {**TINY, "precision": "float64", "optimiser": "fsam"}
    a = rows(Replicate(Recipe.of(way), 1), 2)
    b = rows(Replicate(Recipe.of({**way, "m": 32}), 1), 2)
    assert same(a, b)


def test_what_an_epoch_cost_is_counted():
    for way, gradients in (("sgd", 1), ("sam", 2), ("fsam", 2)):
        row = rows(Replicate(Recipe.of({**TINY, "batch_size": 64, "optimiser": way}), 0), 2)[-1]
        assert row["images_seen"] == 2 * 160
        assert row["gradient_evaluations"] == 2 * 3 * gradients  # 160 images: 64 + 64 + 32


def test_a_hopeless_learning_rate_diverges_and_says_so():
    replicate = Replicate(Recipe.of({**TINY, "optimiser": "sgd", "lr": 1e12, "momentum": 0.0}), 0)
    found = rows(replicate, 4)
    assert any(row["diverged"] for row in found)
    assert replicate.diverged
    assert all(torch.isfinite(p).all() for p in replicate.model.parameters()), "skipped steps leave finite weights"


def test_a_loss_that_explodes_without_becoming_infinite_is_a_divergence():
    replicate = Replicate(Recipe.of({**TINY, "optimiser": "sgd", "lr": 1e3, "epochs": 8}), 0)
    found = rows(replicate, 8)
    assert any(row["diverged"] and math.isfinite(row["train_loss"]) for row in found)


def test_a_scaler_that_looks_for_its_scale_is_no_divergence():
    way = {**TINY, "optimiser": "sgd", "precision": "float16", "train_size": 32}
    replicate = Replicate(Recipe.of(way), 0)
    replicate.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # every step of the first epochs overflows
    found = rows(replicate, 2)
    assert found[0]["skipped_steps"] == 1
    assert not found[0]["diverged"]


def test_noise_touches_training_labels_only_unless_the_recipe_says_more():
    clean = Replicate(Recipe.of({**TINY, "optimiser": "sgd"}), 0)
    noisy = Replicate(Recipe.of({**TINY, "optimiser": "sgd", "label_noise": 0.5}), 0)
    both = Replicate(Recipe.of({**TINY, "optimiser": "sgd", "label_noise": 0.5, "validation_labels": "noisy"}), 0)
    assert noisy.label_hash == both.label_hash != clean.label_hash
    for seed in (clean, noisy, both):
        seed.model.load_state_dict(clean.model.state_dict())
    assert noisy.evaluate("validation") == clean.evaluate("validation") != both.evaluate("validation")
    assert noisy.evaluate("test") == both.evaluate("test") == clean.evaluate("test")
    assert noisy.evaluate("train") != clean.evaluate("train")


def test_the_cosine_falls_from_lr_towards_zero_over_the_full_length():
    recipe = Recipe.of({**TINY, "epochs": 10, "lr": 0.1})
    rates = [learning_rate(recipe, e) for e in range(10)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    assert all(a > b > 0 for a, b in itertools.pairwise(rates))
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=10)
    for rate in rates:
        assert reference.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
        reference.step()
        schedule.step()


def test_a_state_of_another_seed_or_recipe_is_refused():
    recipe = Recipe.of(TINY)
    state = Replicate(recipe, 0).state_dict()
    with pytest.raises(ValueError, match="seed"):
        Replicate(recipe, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="gamma"):
        Replicate(Recipe.of({**TINY, "gamma": 0.7}), 0).load_state_dict(state)


def test_a_state_in_memory_is_a_copy():
    recipe = Recipe.of(TINY)
    a = Replicate(recipe, 0)
    rows(a, 1)
    state = a.state_dict()
    b, c = Replicate(recipe, 0), Replicate(recipe, 0)
    b.load_state_dict(state)
    c.load_state_dict(state)
    assert same(rows(b, 3), rows(a, 3))
    assert same(rows(c, 3), rows(Replicate(recipe, 0), 3)[1:])


def test_diagnostics_say_whether_eta_does_anything():
    weak = rows(Replicate(Recipe.of({**TINY, "eta": 1e-12}), 0), 1)[0]
    strong = rows(Replicate(Recipe.of({**TINY, "eta": 1e6}), 0), 1)[0]
    assert weak["eta_vanished"] == 1.0
    assert weak["cosine_to_sam"] == pytest.approx(1.0, abs=1e-6)
    assert strong["eta_vanished"] < 0.5
    assert strong["cosine_to_sam"] < 0.95
    assert math.isnan(rows(Replicate(Recipe.of({**TINY, "optimiser": "sgd"}), 0), 1)[0]["eps_norm"])


def test_memorised_and_recovered_are_shares_of_the_wrong_training_labels():
    recipe = Recipe.of({**TINY, "label_noise": 0.5, "epochs": 1, "label_noise_kind": "symmetric"})
    replicate = Replicate(recipe, seed=0)
    clean = replicate.data.train.y
    wrong = replicate._labels != clean
    assert int(wrong.sum()) == round(0.5 * len(clean))
    answers = replicate._labels.clone()

    def answering(given):
        replicate.evaluate = lambda split: Evaluation(0.0, 0.0, 0.0, given)
        return replicate.final()

    assert answering(answers)["memorised"] == 1
    assert answering(answers)["recovered"] == 0
    assert answering(clean)["memorised"] == 0
    assert answering(clean)["recovered"] == 1
    half = torch.where(torch.arange(len(clean)) % 2 == 0, answers, (answers + clean + 1) % 10)
    both = answering(half)
    assert both["memorised"] == pytest.approx(float((half == answers)[wrong].double().mean()))
    assert both["recovered"] == pytest.approx(float((half == clean)[wrong].double().mean()))


def test_only_label_noise_has_a_memory_and_only_many_classes_a_top_five():
    row = Replicate(Recipe.of({**TINY, "epochs": 1}), seed=0).final()
    assert set(row) == {"test_loss", "test_accuracy"}


def test_top_five_counts_the_true_class_among_the_five_likeliest():
    replicate = Replicate(Recipe.of({**TINY, "epochs": 1}), seed=0)
    ranks = torch.arange(10.0)
    replicate.model = torch.nn.Identity()
    replicate._forward = lambda x: ranks.expand(len(x), 10)
    found = replicate.evaluate("test")
    y = replicate.data.test.y
    assert found.accuracy == pytest.approx(float((y == 9).double().mean()))
    assert found.top5_accuracy == pytest.approx(float((y >= 5).double().mean()))


def test_a_test_subset_is_stratified_and_the_same_for_every_seed():
    few = [Replicate(Recipe.of({**TINY, "epochs": 1, "test_size": 50}), seed).data.test for seed in (0, 1)]
    assert len(few[0]) == 50
    assert torch.equal(few[0].x, few[1].x)
    whole = Replicate(Recipe.of({**TINY, "epochs": 1}), 0).data.test
    assert len(whole) == 256
    shares = torch.bincount(whole.y, minlength=10).double() * 50 / 256
    assert (torch.bincount(few[0].y, minlength=10) - shares).abs().max() < 1


def test_images_are_enlarged_last_to_the_side_that_the_network_sees():
    recipe = Recipe.of({**TINY, "epochs": 1, "image_side": 12, "model": "mlp", "augmentation": ["flip"]})
    replicate = Replicate(recipe, seed=0)
    assert replicate.model.hidden.in_features == 3 * 12 * 12
    assert replicate.train_epoch()["images_seen"] == recipe.train_images(DATASETS["synthetic"])


def test_a_replicate_starts_from_a_file_of_weights(tmp_path):
    trained = Replicate(Recipe.of({**TINY, "epochs": 2}), seed=3)
    trained.train_epoch()
    file = tmp_path / "weights.safetensors"
    save_weights(trained.model, file, model=trained.recipe.model, classes=10, about={})
    recipe = Recipe.of({**TINY, "epochs": 0, "pretrained": str(file)})
    started = Replicate(recipe, seed=0)
    assert started.evaluate("test") == trained.evaluate("test")
    assert started.untrained_row()["validation_accuracy"] == trained.evaluate("validation").accuracy


def test_measured_batches_are_of_a_permutation_with_the_labels_that_were_trained_on():
    recipe = Recipe.of({**TINY, "epochs": 1, "label_noise": 0.5, "batch_size": 48})
    replicate = Replicate(recipe, seed=0)
    subject = replicate.subject()
    labels = torch.cat([y for _, y in subject.batches("train", None)])
    assert torch.equal(labels.sort().values, replicate._labels.sort().values)
    assert [len(y) for _, y in subject.batches("train", 2)] == [48, 48]
    x, y = next(iter(subject.batches("train", 1)))
    again = next(iter(subject.batches("train", None)))
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    with torch.no_grad():
        loss = sum(float(subject.loss(subject.forward(x), y)) * len(y) for x, y in subject.batches("train", None))
    with_smoothing = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    with torch.no_grad():
        x = torch.cat([x for x, _ in subject.batches("train", None)])
        assert loss / len(labels) == pytest.approx(float(with_smoothing(replicate.model(x), labels)), rel=1e-5)
