"""What a study has to find, whatever disturbs it: the same training in a plain loop, without Ray or a store."""

from dataclasses import dataclass

import pandas as pd
import torch

from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder
from trainables.replicate import Replicate

#: Columns that tell when and where, and not what.
ELSEWHERE = ["run", "train_seconds", "device", "steps", "trial"]


@dataclass(frozen=True)
class Tables:
    """The ends of a study's replicates, and their epochs."""

    ends: pd.DataFrame
    epochs: pd.DataFrame

    @classmethod
    def of(cls, uri):
        """As they are stored."""
        reader = open_study(uri)
        return cls(_sorted(reader.replicates(), "cell", "seed"), _sorted(reader.history(), "cell", "seed", "epoch"))

    @classmethod
    def by_a_plain_loop(cls, file, nowhere):
        """As a loop over the plan of a study file trains them; `nowhere` is an empty folder."""
        ends, epochs = [], []
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as a trial has: the last bits of a sum depend on it
        for trial in make_plan(Study.load(file), StudyFolder(str(nowhere))).todo:
            for seed in trial.seeds:
                replicate, where = Replicate(trial.cell.recipe, seed), {"cell": trial.cell.id}
                while replicate.epoch < trial.cell.recipe.epochs:
                    epochs.append({**where, **replicate.train_epoch()})
                last = {key: value for key, value in epochs[-1].items() if key != "lr"}  # there it is the recipe's
                ends.append({**last, **replicate.final(), "status": "complete"})
        torch.set_num_threads(before)
        return cls(_sorted(pd.DataFrame(ends), "cell", "seed"), _sorted(pd.DataFrame(epochs), "cell", "seed", "epoch"))

    def assert_found_in(self, uri):
        """What is stored is this, bit for bit and row for row."""
        found = Tables.of(uri)
        for stored, expected in ((found.ends, self.ends), (found.epochs, self.epochs)):
            columns = [column for column in expected if column != "diverged"]
            pd.testing.assert_frame_equal(stored[columns], expected[columns], check_dtype=False, check_exact=True)

    def assert_has(self, uri):
        """Every epoch that is stored is one of these."""
        found = Tables.of(uri).epochs
        shared = [column for column in found if column in self.epochs and column != "diverged"]
        assert len(found[shared].merge(self.epochs[shared])) == len(found)


def _sorted(frame, *keys):
    frame = frame.drop(columns=[column for column in ELSEWHERE if column in frame])
    return frame.sort_values(list(keys)).reset_index(drop=True) if len(frame) else frame
