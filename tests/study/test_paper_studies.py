"""Every study file of the paper lays out the cells that the paper's table or figure has, with the paper's settings."""

from collections import Counter
from pathlib import Path

import pytest

from study.spec import Study

STUDIES = Path(__file__).parents[2] / "studies"
FILES = sorted(STUDIES.glob("*.yaml"))

# Section 5.1: the backbones of table 1, in its order.
BACKBONES = [
    "densenet121", "resnet20", "resnet56", "vgg19_bn", "resnext29_32x4d", "wrn28_2", "wrn28_10", "pyramidnet272",
]  # fmt: skip


def recipes(name, **choose):
    points = Study.load(STUDIES / f"{name}.yaml").points
    return [(arm, r) for arm, r in points if all(getattr(r, k) == v for k, v in choose.items())]


def knobs(name, **choose):
    """(gamma, eta) of each arm; every recipe that is chosen must agree."""
    found = {}
    for arm, r in recipes(name, **choose):
        assert found.setdefault(arm, (r.gamma, r.eta)) == (r.gamma, r.eta)
    return found


def test_there_is_a_study_for_every_table_and_figure_with_trained_networks():
    assert {f.stem for f in FILES} >= {
        "table1_cifar10", "table1_cifar100", "table2_imagenet", "table3_transfer", "table4_label_noise",
        "figure4_perturbation", "figure5_sensitivity", "optuna_search", "noise_x_gamma", "eta_beyond",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_study_file_is_right_and_says_what_it_asks(file):
    study = Study.load(file)
    assert study.name == file.stem
    assert study.points or study.search
    head = file.read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Kim et al. (ICML 2022)" in head


@pytest.mark.parametrize("file", [f for f in FILES if "\nsmall:" in f.read_text()], ids=lambda f: f.stem)
def test_the_small_form_of_a_study_asks_the_same_question_of_the_same_arms(file):
    study, small = Study.load(file), Study.load(file, small=True)
    assert small.name == f"{study.name}_small"
    assert (small.question, list(small.design.arms)) == (study.question, list(study.design.arms))
    for arm in study.design.arms:
        assert small.anywhere(arm).optimiser == study.anywhere(arm).optimiser


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_table_1_has_eight_backbones_with_the_settings_of_section_5_1(dataset):
    found = recipes(f"table1_{dataset}")
    by_arm = Counter(arm for arm, _ in found)
    assert {arm: by_arm[arm] for arm in ("sgd", "sam", "asam", "fsam")} == dict.fromkeys(
        ("sgd", "sam", "asam", "fsam"), 8
    )
    for arm in ("sgd", "sam", "asam", "fsam"):
        assert [r.model for a, r in found if a == arm] == BACKBONES
    for arm, r in found:
        pyramid = r.model == "pyramidnet272"
        assert (r.dataset, r.base, r.momentum, r.weight_decay, r.schedule) == (dataset, "sgd", 0.9, 5e-4, "cosine")
        assert (r.batch_size, r.lr) == ((256, 0.05) if pyramid else (128, 0.1))
        assert r.epochs == (900 if pyramid else 200) * (2 if arm == "sgd" else 1)
        assert r.label_smoothing == 0.1
        assert {"autoaugment", "cutout"} <= set(r.augmentation)
        assert r.precision == "float32"


def test_table_1_has_the_gammas_and_etas_of_section_5_1():
    sgd = {"sgd": (None, None)}
    for model in BACKBONES[:-1]:
        assert knobs("table1_cifar10", model=model) == sgd | {
            "sam": (0.05, None), "asam": (0.5, 0.01), "fsam": (0.1, 1.0), "sam_matched": (0.1, None),
        }  # fmt: skip
        assert knobs("table1_cifar100", model=model) == sgd | {
            "sam": (0.1, None), "asam": (1.0, 0.1), "fsam": (0.1, 1.0),
        }  # fmt: skip
    assert knobs("table1_cifar10", model="pyramidnet272") == sgd | {
        "sam": (0.05, None), "asam": (1.0, 0.01), "fsam": (0.1, 1.0), "sam_matched": (0.1, None),
    }  # fmt: skip
    assert knobs("table1_cifar100", model="pyramidnet272") == sgd | {
        "sam": (0.05, None), "asam": (1.0, 0.1), "fsam": (0.5, 0.1), "sam_matched": (0.5, None),
    }  # fmt: skip


def test_table_2_trains_deit_three_more_epochs_and_measures_it_before():
    assert knobs("table2_imagenet") == {
        "before": (None, None), "sgd": (None, None), "sam": (0.05, None), "asam": (1.0, 0.01), "fsam": (0.5, 0.1),
        "sam_matched": (0.5, None),
    }  # fmt: skip
    for arm, r in recipes("table2_imagenet"):
        assert (r.dataset, r.model, r.image_side, bool(r.pretrained)) == ("imagenet", "deit_b", 224, True)
        assert (r.batch_size, r.weight_decay, r.lr, r.schedule) == (256, 1e-4, 1e-5, "cosine")
        assert r.epochs == (0 if arm == "before" else 3)
        assert r.normalisation == "imagenet"


def test_table_3_finetunes_vit_on_three_data_sets():
    assert knobs("table3_transfer") == {
        "sgd": (None, None), "sam": (0.05, None), "asam": (0.1, 0.01), "fsam": (0.1, 1.0), "sam_matched": (0.1, None),
    }  # fmt: skip
    found = recipes("table3_transfer")
    assert {r.dataset for _, r in found} == {"cifar100", "stanford_cars", "flowers102"}
    for _, r in found:
        assert (r.model, r.image_side, bool(r.pretrained), r.normalisation) == ("vit_b16", 224, True, "half")
        assert (r.epochs, r.batch_size, r.weight_decay, r.lr, r.schedule) == (200, 256, 0.05, 5e-4, "cosine")


def test_figure_4_perturbs_resnet_34_by_alpha_from_a_tenth_to_five():
    study = Study.load(STUDIES / "figure4_perturbation.yaml")
    paper = {"sgd": (None, None), "sam": (0.05, None), "fsam": (0.1, 1.0)}
    assert paper.items() <= knobs("figure4_perturbation").items()
    assert {(r.dataset, r.model) for _, r in study.points} == {("cifar10", "resnet34")}
    alpha = study.measures["perturbation"]["alpha"]
    assert (min(alpha), max(alpha)) == (0.1, 5.0)
    assert study.measures["perturbation"]["batches"] is None, "the gradient is that of the whole training split"


def test_table_4_has_the_four_rates_and_their_gammas():
    assert knobs("table4_label_noise") == {
        "sgd": (None, None), "sam": (0.1, None), "asam": (0.5, 0.01), "fsam": (0.1, 0.001),
    }  # fmt: skip
    found = recipes("table4_label_noise")
    assert {r.label_noise for _, r in found} == {0.0, 0.2, 0.4, 0.6, 0.8}
    assert {r.label_noise_kind for _, r in found if r.label_noise} == {"symmetric"}
    assert {(r.dataset, r.model) for _, r in found} == {("cifar10", "resnet32")}


def test_figure_5_is_the_grid_of_section_5_6_with_its_references():
    fsam = recipes("figure5_sensitivity", optimiser="fsam")
    assert {(r.gamma, r.eta) for _, r in fsam} == {
        (gamma, eta) for gamma in (0.01, 0.05, 0.1, 0.5, 1.0) for eta in (1e-4, 1e-3, 1e-2, 0.1, 1, 10)
    }
    found = recipes("figure5_sensitivity")
    assert len(found) == 30 + 5 + 1
    assert {(r.dataset, r.model, r.augmentation) for _, r in found} == {("cifar100", "wrn28_10", ())}
    assert str(Study.load(STUDIES / "figure5_sensitivity.yaml").scheduler) == "fifo"


def test_eta_beyond_reaches_a_million_with_both_estimates_of_the_fisher():
    found = recipes("eta_beyond", optimiser="fsam")
    assert max(r.eta for _, r in found) == 1e6
    assert {r.fisher for _, r in found} == {"gradient_magnitude", "per_example"}
    assert recipes("eta_beyond", optimiser="sam")


def test_noise_x_gamma_crosses_every_rate_with_every_gamma():
    for arm in ("sam", "asam", "fsam"):
        cells = {(r.label_noise, r.gamma) for a, r in recipes("noise_x_gamma") if a == arm}
        assert len(cells) == 5 * 7
    assert len({r.label_noise for a, r in recipes("noise_x_gamma") if a == "sgd"}) == 5


def test_the_search_gives_every_optimiser_the_same_number_of_cells_over_what_it_uses():
    study = Study.load(STUDIES / "optuna_search.yaml")
    assert {arm: set(study.searched(arm).space) for arm in study.design.arms} == {
        "sgd": {"lr", "weight_decay"},
        "sam": {"gamma", "lr", "weight_decay"},
        "asam": {"gamma", "lr", "weight_decay"},
        "fsam": {"gamma", "eta", "lr", "weight_decay"},
    }
    assert {study.searched(arm).cells for arm in study.design.arms} == {study.search.cells}
    assert (study.search.sampler, study.scheduler.name) == ("tpe", "asha")


def test_the_search_begins_with_every_optimisers_setting_in_the_paper():
    study = Study.load(STUDIES / "optuna_search.yaml")
    first = {}
    for arm in study.design.arms:
        search = study.searched(arm)
        whole = [values for values in search.enqueue if values.keys() == search.space.keys()]
        first[arm] = [study.sampled(arm, values) for values in whole]
    for arm, gamma, eta in (("sam", 0.05, None), ("asam", 0.5, 0.01), ("fsam", 0.1, 1.0)):
        assert (gamma, eta, 0.1, 5e-4) in [(r.gamma, r.eta, r.lr, r.weight_decay) for r in first[arm]]
