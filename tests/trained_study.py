"""A small study that is really trained, here in the process and without Ray, into a folder as a run leaves it."""

from __future__ import annotations

from study.measured import tags
from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder
from trainables.measures import check, run
from trainables.replicate import Replicate

RUN = "20261125T080000-test"

SENSITIVITY = {
    "name": "small_sensitivity",
    "question": "How sensitive is <Fisher SAM> to gamma & eta?",
    "recipe": {"dataset": "digits", "model": "mlp", "train_size": 128, "epochs": 3, "batch_size": 32},
    "arms": {"fsam": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.5], "eta": [0.01, 1.0]},
    "seeds": [0, 1],
    "scheduler": "fifo",
}

LABEL_NOISE = {
    **SENSITIVITY,
    "name": "small_noise",
    "question": "Which optimiser keeps its accuracy when training labels are wrong?",
    "recipe": {
        **SENSITIVITY["recipe"],
        "model": "digits_cnn",  # for its BatchNorm
        "validation_labels": "clean",
        "label_noise_kind": "symmetric",
    },
    "arms": {
        "sgd": {"optimiser": "sgd"},
        "sam": {"optimiser": "sam", "gamma": 0.1},
        "fsam": {"optimiser": "fsam", "gamma": 0.1, "eta": 1.0},
    },
    "grid": {"label_noise": [0.0, 0.5]},
    "measures": {"perturbation": {"alpha": [0.5, 2.0], "random_draws": 1, "batch_norm": ["kept", "recomputed"]}},
}


def trained(content, uri, missing=()):
    """Train the study's cells, but for those whose numbers in the plan's order are `missing`; its reader."""
    study, folder = Study.of(content), StudyFolder(str(uri))
    plan = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", plan.rows())
    recording = folder.recording(RUN)
    measures = tags(study.model_dump(mode="json").get("measures") or {})
    for number, trial in enumerate(plan.todo):
        if number in missing:
            continue
        ends, measured = [], {tag: [] for tag in measures}
        for seed in trial.seeds:
            replicate = Replicate(trial.cell.recipe, seed)
            rows = [replicate.train_epoch() for _ in range(trial.cell.recipe.epochs)]
            recording.history(trial.id, [{"cell": trial.cell.id, **row} for row in rows])
            last = {k: v for k, v in rows[-1].items() if k != "diverged"} | replicate.final()
            end = {"cell": trial.cell.id, "run": RUN, "scheduler": None, "status": "complete", "reason": None}
            ends.append({**end, **last, "label_hash": replicate.label_hash, "device": "CPU"})
            for tag, (name, settings) in measures.items():
                found = run(name, replicate.subject(), check({name: settings})[name])
                measured[tag] += [{"cell": trial.cell.id, "seed": seed, **row} for row in found]
        recording.end(trial.id, ends)
        for tag, rows in measured.items():
            folder.save_measure(trial.id, tag, rows)
    recording.flush()
    folder.save_run(RUN, {"run": RUN, "started": "2026-11-25T08:00:00.000+00:00", "seconds": 30.0})
    return open_study(str(uri))
