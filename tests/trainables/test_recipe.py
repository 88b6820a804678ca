"""A recipe holds what its parts use, refuses what they do not, and its identity is what it trains to."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainables.data import DATASETS
from trainables.problems import RecipeError
from trainables.recipe import EXECUTION, Recipe

PRINT = "0" * 16


def problems(settings):
    with pytest.raises(RecipeError) as caught:
        Recipe.of(settings)
    return {p.key: p.message for p in caught.value.problems}


def test_the_defaults_are_those_of_section_5_1():
    recipe = Recipe.of({"dataset": "cifar10", "model": "wrn28_10"})
    assert (recipe.base, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (recipe.schedule, recipe.epochs, recipe.batch_size, recipe.label_smoothing) == ("cosine", 200, 128, 0.1)
    assert (recipe.optimiser, recipe.gamma, recipe.eta, recipe.fisher) == ("fsam", 0.1, 1.0, "gradient_magnitude")
    assert recipe.nesterov is False


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"optimiser": "sgd", "gamma": 0.1}, "gamma"),
        ({"optimiser": "sgd", "eta": 0.1}, "eta"),
        ({"optimiser": "sgd", "m": 16}, "m"),
        ({"optimiser": "sam", "eta": 0.1}, "eta"),
        ({"optimiser": "sam", "fisher": "per_example"}, "fisher"),
        ({"optimiser": "sam", "asam_convention": "eq5"}, "asam_convention"),
        ({"optimiser": "asam", "asam_convention": "eq5", "eta": 0.1}, "eta"),
        ({"optimiser": "asam", "natural_gradient": True}, "natural_gradient"),
        ({"label_noise_kind": "uniform"}, "label_noise_kind"),
        ({"validation_labels": "noisy"}, "validation_labels"),
        ({"cutout_size": 8}, "cutout_size"),
        ({"crop_padding": 2}, "crop_padding"),
        ({"dataset": "cifar10", "model": "resnet20", "dropout": 0.1}, "dropout"),
        ({"same_dropout": True}, "same_dropout"),
        ({"base": "adam", "momentum": 0.9}, "momentum"),
        ({"base": "adam", "nesterov": True}, "nesterov"),
        ({"base": "sgd", "beta1": 0.9}, "beta1"),
    ],
)
def test_a_setting_that_nothing_reads_is_an_error(settings, key):
    assert list(problems(settings)) == [key]


def test_eta_has_a_use_with_sam_when_the_update_is_a_natural_gradient():
    assert Recipe.of({"optimiser": "sam", "natural_gradient": True, "eta": 2.0}).eta == 2.0
    assert Recipe.of({"optimiser": "sgd", "natural_gradient": True}).eta == 1.0


def test_every_problem_is_found_at_once():
    found = problems({"gamma": -1, "epochs": "ten", "eta_": 1, "crop_padding": 2, "lr": True})
    assert set(found) == {"gamma", "epochs", "eta_", "crop_padding", "lr"}
    assert "did you mean eta?" in found["eta_"]


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        Recipe.of({}).gamma = 1.0


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "optimiser": st.sampled_from(["sgd", "sam", "asam", "fsam"]),
            "gamma": st.floats(1e-6, 10),
            "base": st.sampled_from(["sgd", "adam", "adamw"]),
            "label_noise": st.floats(0, 1),
            "augmentation": st.lists(st.sampled_from(["crop", "flip"]), unique=True),
            "epochs": st.integers(1, 500),
        },
    )
)
def test_settings_make_the_same_recipe_again(settings):
    try:
        recipe = Recipe.of(settings)
    except RecipeError:
        return
    again = Recipe.of(recipe.settings())
    assert again == recipe
    assert again.identity(PRINT) == recipe.identity(PRINT)


def test_identity_tells_recipes_and_data_apart_and_nothing_else():
    base = Recipe.of({})
    others = [
        Recipe.of(change)
        for change in ({"gamma": 0.2}, {"eta": 2.0}, {"optimiser": "sam"}, {"epochs": 3}, {"precision": "float64"})
    ]
    ids = [r.identity(PRINT) for r in [base, *others]] + [base.identity("1" * 16)]
    assert all(a != b for a, b in itertools.combinations(ids, 2))
    # An explicit default is the same recipe, a whole number is the same number, and where it runs is no part of it.
    assert Recipe.of({"gamma": 0.1, "eta": 1, "label_smoothing": 0.1}).identity(PRINT) == ids[0]
    assert Recipe.of({"device": "cpu"}).identity(PRINT) == ids[0]
    assert "device" in EXECUTION


def test_identity_is_the_same_in_another_process():
    code = f"from trainables.recipe import Recipe; print(Recipe.of({{'gamma': 0.3}}).identity('{PRINT}'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == Recipe.of({"gamma": 0.3}).identity(PRINT)


def test_a_batch_of_one_image_is_refused_where_batchnorm_would_see_one_value():
    # 1,437 training images less 287 for validation: 1,150 = 3 * 383 + 1. ResNet-18 ends at one pixel on 8x8 images.
    assert "one image" in problems({"batch_size": 383, "model": "resnet18"})["batch_size"]
    assert "one image" in problems({"batch_size": 64, "m": 63, "model": "resnet18"})["m"]
    assert Recipe.of({"batch_size": 383}).steps_per_epoch(DATASETS["digits"]) == 4
    assert Recipe.of({"batch_size": 1, "model": "mlp"}).steps_per_epoch(DATASETS["digits"]) == 1150


def test_one_recipe_has_one_identity_however_it_is_spelled():
    def identity(**settings):
        return Recipe.of({"dataset": "cifar10", "model": "resnet20", **settings}).identity(PRINT)

    assert identity(augmentation=["crop", "flip"]) == identity(augmentation=["flip", "crop"])
    assert identity(eta=0.0) == identity(eta=-0.0)
    assert identity(m=128) == identity()
    assert identity(m=64) != identity()


def test_cutout_is_half_the_side_where_the_study_does_not_say_and_never_the_whole_image():
    def size(dataset, model, **more):
        return Recipe.of({"dataset": dataset, "model": model, "augmentation": ["cutout"], **more}).cutout_size

    assert (size("digits", "mlp"), size("cifar10", "resnet20"), size("cifar100", "resnet20")) == (4, 16, 8)
    assert "9 pixels" in problems({"augmentation": ["cutout"], "cutout_size": 9})["cutout_size"]
    assert "1000 pixels" in problems({"augmentation": ["crop"], "crop_padding": 1000})["crop_padding"]


def test_a_network_that_is_too_large_for_the_images_is_refused():
    assert "at least 16 x 16" in problems({"dataset": "digits", "model": "cifar_cnn"})["model"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"label_noise": 2, "label_noise_kind": "uniform"}, "label_noise"),
        ({"dropout": 1.5, "same_dropout": True}, "dropout"),
        ({"batch_size": "256", "m": 200}, "batch_size"),
    ],
)
def test_one_mistake_is_not_reported_as_two(settings, key):
    assert list(problems(settings)) == [key]


def test_a_key_that_is_not_text_is_a_problem_and_no_accident():
    assert "not text" in problems({True: 1})[""]


def test_a_recipe_needs_neither_torch_nor_ray():
    code = (
        "import sys; from trainables.recipe import Recipe; Recipe.of({}).identity('0');"
        "print({'torch', 'ray', 'sklearn', 'pandas'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == "set()"
