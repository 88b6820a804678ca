"""Exit codes, as `study --help` lists them."""

OK, FAILED_TRIALS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
