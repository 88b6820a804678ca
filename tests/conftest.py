"""What every test shares."""

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors of tests are tiny: more threads only wait, and the last bits depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
