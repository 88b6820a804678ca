"""Studies as jobs of a Ray cluster: submitted after a look at every node, listed, read, started again."""
