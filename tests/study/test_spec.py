"""A study file is checked whole, at the door, and every message names a key and a way out."""

import pytest

from study.spec import Study, StudyError

GOOD = """\
name: small
question: Does it work?
recipe: {dataset: digits, model: digits_cnn, epochs: 4, batch_size: 64}
arms:
  fsam: {optimiser: fsam}
  sam: {optimiser: sam}
  sgd: {optimiser: sgd}
grid:
  gamma: [0.01, 0.1]
  eta: [1e-4, 1, 10]
seeds: [0, 1]
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return Study.load(file, overrides)

    return load


def problems(load, text, *overrides):
    with pytest.raises(StudyError) as caught:
        load(text, *overrides)
    return [str(p) for p in caught.value.problems]


def cells(study):
    return [(arm, r.gamma, r.eta) for arm, r in study.points]


def test_each_arm_crosses_the_axes_that_it_uses(load):
    found = cells(load(GOOD))
    assert found.count(("sgd", None, None)) == 1
    assert [c for c in found if c[0] == "sam"] == [("sam", 0.01, None), ("sam", 0.1, None)]
    assert len([c for c in found if c[0] == "fsam"]) == 6


def test_an_arm_that_sets_an_axis_itself_is_pinned_there(load):
    found = cells(
        load(
            GOOD.replace("sam: {optimiser: sam}", "sam: {optimiser: sam, gamma: 0.05}", 1).replace(
                "fsam: {optimiser: sam, gamma: 0.05}", "fsam: {optimiser: fsam}"
            )
        )
    )
    assert {c for c in found if c[1] == 0.05} <= {("sam", 0.05, None), ("fsam", 0.05, 1e-4)}
    pinned = GOOD.replace("  sam: {optimiser: sam}", "  sam: {optimiser: sam, gamma: 0.05}")
    assert [c for c in cells(load(pinned)) if c[0] == "sam"] == [("sam", 0.05, None)]


def test_one_e_minus_four_is_a_number(load):
    assert load(GOOD).grid["eta"] == [1e-4, 1, 10]
    assert next(r.eta for arm, r in load(GOOD).points if arm == "fsam") == 1e-4


def test_seeds_may_be_a_count(load):
    assert load(GOOD.replace("seeds: [0, 1]", "seeds: 3")).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("epochs: 4", "epoks: 4", 3, ["recipe.epoks", "unknown", "did you mean epochs?"]),
        ("gamma: [", "gama: [", 9, ["grid.gama", "did you mean gamma?"]),
        ("0.01, 0.1", "0.01, -0.1", 9, ["grid.gamma", "-0.1 is not above 0"]),
        ("0.01, 0.1", "0.01, large", 9, ["grid.gamma", "'large' is not a number"]),
        ("0.01, 0.1", "0.01, true", 9, ["grid.gamma", "true is not a number"]),
        ("0.01, 0.1", "0.01, .nan", 9, ["grid.gamma"]),
        ("0.01, 0.1", "0.01, .inf", 9, ["grid.gamma", "finite"]),
        ("0.01, 0.1", "0.1, 0.1", 9, ["grid.gamma: has a value twice"]),
        ("[0.01, 0.1]", "[]", 9, ["grid.gamma: has no values"]),
        ("model: digits_cnn", "model: digit_cnn", 3, ["unknown model 'digit_cnn'", "did you mean digits_cnn?"]),
        ("dataset: digits", "dataset: cifar", 3, ["unknown data set 'cifar'", "cifar10"]),
        ("optimiser: sgd", "optimiser: sdg", 7, ["arms.sgd.optimiser", "did you mean sgd?"]),
        ("optimiser: sgd", "optimiser: sgd, gamma: 0.1", 7, ["arms.sgd.gamma", "optimiser sgd does not use it"]),
        ("optimiser: sam}\n  sgd", "optimiser: sam, eta: 1}\n  sgd", 6, ["arms.sam.eta", "does not use it", "gamma"]),
        ("seeds: [0, 1]", "seeds: [0, 0]", 11, ["seeds", "twice"]),
        ("seeds: [0, 1]", "seeds: 0", 11, ["seeds", "at least one"]),
        ("seeds: [0, 1]", "seeds: [0, -1]", 11, ["seeds", "-1"]),
        ("seeds: [0, 1]", "sedes: [0, 1]", 11, ["sedes", "did you mean seeds?"]),
        ("seeds: [0, 1]", "epochs: 3", 11, ["epochs", "belongs under recipe"]),
        ("seeds: [0, 1]", "scheduler: ash", 11, ["scheduler.name", "'ash'", "fifo or asha"]),
        ("seeds: [0, 1]", "scheduler: {name: fifo, grace_period: 2}", 11, ["grace_period", "asha"]),
        ("seeds: [0, 1]", "scheduler: {name: asha, grace_period: 4}", 11, ["4 of 4 epochs"]),
        ("seeds: [0, 1]", "resources: {cpus: 1}", 11, ["resources.cpus", "did you mean cpu?"]),
        ("seeds: [0, 1]", "resources: {gpu: 1.5}", 11, ["resources.gpu", "whole number"]),
        ("seeds: [0, 1]", "checkpoints: {every: 1, seconds: 3}", 11, ["either every or seconds"]),
        ("name: small", "name: ../small", 1, ["name", "letters, digits"]),
        ("epochs: 4", "epochs: 4, epochs: 5", 3, ["epochs is given twice"]),
        ("epochs: 4", "momentum: 0, nesterov: true", 3, ["nesterov", "momentum above 0"]),
        ("model: digits_cnn", "model: resnet18, train_size: 65", 3, ["batch_size", "one image"]),
        ("batch_size: 64", "batch_size: 64, validation_size: 5000", 3, ["validation_size", "no training images"]),
        ("batch_size: 64", "batch_size: 64, cutout_size: 4", 3, ["cutout_size", "no arm uses it"]),
        ("batch_size: 64", "batch_size: 64, gamma: 0.3", 9, ["grid.gamma", "in one place"]),
        ("question: Does it work?\n", "", None, ["question", "missing"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place_and_a_way_out(load, old, new, line, words):
    assert old in GOOD
    found = problems(load, GOOD.replace(old, new, 1))
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]
    if line:
        assert f"study.yaml:{line}: " in found[0] or f"study.yaml: line {line}: " in found[0], found[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: 100000000000", "at most"),
        ("seeds: [18446744073709551616]", "2^63"),
        ("resources: {gpu: .inf}", "resources.gpu"),
        ("seeds: 1:30", "seeds"),
        ("arms: &x {a: *x}", "contains itself"),
        ("arms: {on: {optimiser: sam}, 1: {}}", "put it in quotes"),
    ],
)
def test_yaml_that_would_be_misread_or_break_later_is_refused(load, text, words):
    base = "name: a\nquestion: b\nrecipe: {optimiser: sam}\n"
    assert words in " ".join(problems(load, base + text + "\n"))


def test_on_and_010_are_what_they_look_like(load):
    study = load("name: on\nquestion: yes\nrecipe: {optimiser: sam}\nseeds: 010\n")
    assert (study.name, study.question, len(study.seeds)) == ("on", "yes", 10)


def test_a_merge_key_merges(load):
    text = "name: a\nquestion: b\narms:\n  x: &x {optimiser: sam}\n  y: {<<: *x, gamma: 0.3}\n"
    assert {(arm, r.gamma) for arm, r in load(text).points} == {("x", 0.05), ("y", 0.3)}


def test_set_changes_one_place_where_an_alias_stands_in_two(load):
    text = "name: a\nquestion: b\narms:\n  x: &x {optimiser: sam}\n  y: *x\n"
    study = load(text, "arms.x.gamma=0.3")
    assert [(arm, r.gamma) for arm, r in study.points] == [("x", 0.3), ("y", 0.05)]


def test_a_problem_of_a_set_value_points_at_set_and_not_at_a_line(load):
    (found,) = problems(load, GOOD, "grid.gamma=[0.1, -1]")
    assert found.startswith("--set: grid.gamma[1]")


def test_set_opens_a_section_that_is_empty_or_in_its_short_form(load):
    study = load(GOOD + "scheduler: asha\nresources: auto\ncheckpoints:\n", "scheduler.grace_period=2",
                 "resources.cpu=2", "checkpoints.every=3")  # fmt: skip
    assert (study.scheduler.grace_period, study.resources.cpu, study.checkpoints.every) == (2, 2, 3)


def test_every_mistake_is_reported_at_once(load):
    text = GOOD.replace("epochs: 4", "epoks: 4").replace("0.01, 0.1", "-1").replace("seeds: [0, 1]", "sedes: 3")
    found = " ".join(problems(load, text))
    for word in ("epoks", "-1 is not above 0", "sedes"):
        assert word in found


@pytest.mark.parametrize(
    "text", ["", "- 1", "just text", "a: [1", "a: !!python/object/apply:os.system ['true']", "1: 2"]
)
def test_what_is_no_study_is_one_line(load, text):
    found = problems(load, text)
    assert len(found) >= 1
    assert all("\n" not in p for p in found)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StudyError, match="no such file"):
        Study.load(tmp_path / "nothing.yaml")


def test_set_reaches_every_level_and_is_checked(load):
    study = load(GOOD, "epochs=2", "grid.gamma=[0.5]", "seeds=1", "arms.sam.gamma=0.2", "storage=elsewhere")
    assert {r.epochs for _, r in study.points} == {2}
    assert ("sam", 0.2, None) in cells(study)
    assert study.seeds == (0,)
    assert study.storage == "elsewhere"
    assert "did you mean epochs?" in problems(load, GOOD, "recipe.epoks=3")[0]
    assert "write key=value" in problems(load, GOOD, "epochs")[0]


def test_a_study_without_arms_has_one_named_after_its_optimiser(load):
    text = "name: a\nquestion: b\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1, 0.2]}\n"
    assert cells(load(text)) == [("sam", 0.1, None), ("sam", 0.2, None)]


def test_an_axis_that_no_arm_uses_is_an_error(load):
    text = "name: a\nquestion: b\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1], eta: [1]}\n"
    assert "no arm uses it" in problems(load, text)[0]


def test_asha_refuses_cells_of_different_length_in_an_arm(load):
    arms = GOOD.replace("optimiser: sgd", "optimiser: sgd, epochs: 8") + "scheduler: asha\n"
    assert {r.epochs for _, r in load(arms).points} == {4, 8}, "each arm has its own rungs"
    text = GOOD.replace("epochs: 4, ", "").replace("grid:\n", "grid:\n  epochs: [4, 8]\n") + "scheduler: asha\n"
    assert "arm fsam's have epochs [4, 8]" in problems(load, text)[0]


EXCEPTIONS = """\
exceptions:
  - {when: {arm: sgd}, set: {epochs: 8}}
  - {when: {gamma: 0.1}, set: {lr: 0.2}}
  - {when: {gamma: 0.1, arm: [fsam, sam]}, set: {batch_size: 32, eta: 3}}
"""


def test_an_exception_stands_above_every_other_section_for_the_cells_that_it_matches(load):
    study = load(GOOD + EXCEPTIONS)
    assert [r.epochs for arm, r in study.points if arm == "sgd"] == [8]
    for arm, recipe in study.points:
        if arm != "sgd":
            assert recipe.epochs == 4
            assert recipe.lr == (0.2 if recipe.gamma == 0.1 else 0.1)
            assert recipe.batch_size == (32 if recipe.gamma == 0.1 else 64)
    assert [r.eta for arm, r in study.points if arm == "fsam" and r.gamma == 0.1] == [3], "its axis has collapsed"
    assert {r.eta for arm, r in study.points if arm == "sam"} == {None}, "which SAM does not use"


@pytest.mark.parametrize(
    ("exception", "words"),
    [
        ("{when: {gamma: 0.3}, set: {lr: 0.2}}", ["exceptions[0].when: matches no cell"]),
        ("{when: {arm: sgd}, set: {gamma: 0.2}}", ["exceptions[0].set.gamma: no cell that it matches uses it"]),
        ("{when: {arm: sgd}, set: {lr: -1}}", ["exceptions[0].set.lr", "-1 is not above 0"]),
        ("{when: {arm: sgd}, set: {learning_rate: 1}}", ["exceptions[0].set", "unknown setting 'learning_rate'"]),
        ("{when: {modl: mlp}, set: {lr: 1}}", ["exceptions[0].when", "'modl'; did you mean model?"]),
        ("{when: {arm: sgd}, sett: {lr: 1}}", ["exceptions[0].sett: unknown; did you mean set?"]),
    ],
)
def test_a_wrong_exception_is_named(load, exception, words):
    found = "\n".join(problems(load, GOOD + f"exceptions:\n  - {exception}\n"))
    for word in words:
        assert word in found, found


SMALL = "small:\n  recipe.epochs: 1\n  seeds: [0]\n  gamma: [0.05]\n  scheduler.name: fifo\n"


def test_small_settings_stand_above_the_files_and_below_set(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + SMALL)
    assert Study.load(file).name == "small"
    assert Study.load(file).seeds == (0, 1)
    small = Study.load(file, small=True)
    assert (small.name, small.seeds, small.grid["gamma"]) == ("small_small", (0,), [0.05])
    assert {r.epochs for _, r in small.points} == {1}
    assert {r.epochs for _, r in Study.load(file, ["epochs=3"], small=True).points} == {3}
    file.write_text(GOOD)
    with pytest.raises(StudyError, match="no `small` settings"):
        Study.load(file, small=True)


def test_a_mistake_in_small_settings_is_named_with_its_line(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + SMALL.replace("recipe.epochs", "recipe.epoks"))
    with pytest.raises(StudyError, match=r"study.yaml:13: recipe.epoks: unknown; did you mean epochs\?"):
        Study.load(file, small=True)


def test_measures_are_checked_at_the_door_and_kept_as_they_resolve(load):
    study = load(GOOD + "measures:\n  perturbation: {alpha: [0.5, 1]}\n  curvature:\n")
    assert study.measures["perturbation"]["random_draws"] == 3
    assert load(GOOD + "measures: {perturbation: {alpha: [0.5, 1.0], random_draws: 3}, curvature: {}}\n").measures == (
        study.measures
    )
    found = problems(load, GOOD + "measures:\n  perturbation: {alpha: [1, 0.5]}\n  curvatur: {}\n")
    assert any("measures.perturbation.alpha" in line and "increas" in line for line in found), found
    assert any("measures.curvatur: unknown measure; did you mean curvature?" in line for line in found), found


SEARCH = GOOD.replace(
    "grid:\n  gamma: [0.01, 0.1]\n  eta: [1e-4, 1, 10]\n",
    """\
search:
  space:
    gamma: {low: 0.01, high: 1.0, log: true}
    eta: {low: 1e-4, high: 10, log: true}
    lr: {low: 0.01, high: 0.2}
  cells: 6
""",
)


def test_each_arm_searches_the_axes_that_it_uses(load):
    study = load(SEARCH)
    assert {arm: list(study.searched(arm).space) for arm in study.design.arms} == {
        "fsam": ["gamma", "eta", "lr"], "sam": ["gamma", "lr"], "sgd": ["lr"],
    }  # fmt: skip
    assert study.points == []
    assert study.sampled("sam", {"gamma": 0.2, "lr": 0.1}).gamma == 0.2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cells: 6", "cells: 6\ngrid: {momentum: [0.8, 0.9]}", "grid: a study has a grid or a search"),
        ("epochs: 4", "epochs: 4, lr: 0.1", "search.space.lr: is given in recipe too"),
        ("lr: {low", "momentums: {low", "search.space.momentums: unknown; did you mean momentum?"),
        ("lr: {low: 0.01", "lr: {low: -0.01", "search.space.lr.low: -0.01 is not above 0"),
        ("lr: {low: 0.01", "cutout_size: {low: 2", "search.space.cutout_size"),
        ("cells: 6", "cells: 6\n  objectives: [test_accuracy]", "nothing is chosen by the test set"),
        ("cells: 6", "cells: 6\n  sampler: nsga2\nscheduler: {name: asha, grace_period: 1}", "search.sampler"),
        ("cells: 6", "sells: 6", "search.sells: unknown; did you mean cells?"),
    ],
)
def test_a_wrong_search_is_named(load, old, new, words):
    assert old in SEARCH
    found = "\n".join(problems(load, SEARCH.replace(old, new, 1)))
    assert words in found, found


def test_a_study_may_be_narrowed_to_cells_that_no_exception_is_about(load):
    text = GOOD + "exceptions:\n  - {when: {gamma: 0.1}, set: {lr: 0.2}}\n  - {when: {arm: sgd}, set: {epochs: 8}}\n"
    assert {r.gamma for _, r in load(text, "gamma=[0.01]").points} == {0.01, None}
    assert load(text, "arms={sam: {optimiser: sam}}", "grid={gamma: [0.1]}").points
    assert "matches no cell" in problems(load, text.replace("gamma: 0.1}", "gamma: 0.2}"))[0]


def test_an_exception_can_be_about_a_list(load):
    text = GOOD.replace("optimiser: sgd", "optimiser: sgd, augmentation: [flip]")
    study = load(text + "exceptions:\n  - {when: {augmentation: [flip]}, set: {epochs: 5}}\n")
    assert {(arm, r.epochs) for arm, r in study.points} == {("fsam", 4), ("sam", 4), ("sgd", 5)}


def test_how_many_cells_have_an_exception_is_counted(load):
    assert load(GOOD + EXCEPTIONS).design.excepted() == {"epochs": 1, "lr": 2, "batch_size": 2, "eta": 1}
    assert load(GOOD).design.excepted() == {}


def test_small_settings_are_checked_with_the_file(load):
    found = problems(load, GOOD + "small: {recipe.modle: mlp}\n")
    assert found == [found[0]]
    assert "recipe.modle: unknown; did you mean model?" in found[0]
    assert "(with --small)" in found[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exceptions: {when: {arm: sgd}}\n", "exceptions"),
        ("exceptions: [sgd]\n", "exceptions[0]: 'sgd' is not a mapping"),
    ],
)
def test_sections_of_another_shape_are_said_in_words(load, text, words):
    found = problems(load, GOOD + text)
    assert words in found[0]
    assert "valid" not in found[0]


def test_a_shared_setting_that_every_arm_replaces_is_read_by_nobody_unless_the_arms_were_narrowed(load):
    text = GOOD.replace("epochs: 4", "epochs: 4, lr: 0.1").replace("optimiser: sgd", "optimiser: sgd, lr: 0.3")
    assert load(text).points
    every = text.replace("optimiser: sam", "optimiser: sam, lr: 0.2").replace(
        "optimiser: fsam", "optimiser: fsam, lr: 1"
    )
    assert "recipe.lr: every arm that uses it sets its own (fsam, sam, sgd)" in problems(load, every)[0]
    assert load(text, "arms={sgd: {optimiser: sgd, lr: 0.3}}", "grid={}").points[0][1].lr == 0.3
