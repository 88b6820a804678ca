"""Exit codes, as `study --help` lists them; UNREAD is a shell's own for whoever is no longer read."""

OK, FAILED_TRIALS, BAD_INPUT, STOPPED_BY_BUDGET, INTERRUPTED, UNREAD = 0, 1, 2, 3, 130, 141
