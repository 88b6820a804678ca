"""What a GPU has to show, in one command and a given time: `python -m benchmarks.gpu --minutes 8`.

First that what it computes is right (captured against eager, the device against the CPU, side by side against in turn,
bf16 against float32, resume), then the rows of the benchmark that need one, then as much of a real study as the time
allows. It needs torch, torchvision, numpy, pandas, scikit-learn and pydantic, and no Ray: rows that do are named and
left to `python -m benchmarks`. On a CPU it runs whole too, with everything small and a tape in the place of CUDA
graphs: what it prints there says only that nothing breaks.

suite        results, the time that is left, and how a device is timed
correctness  the checks
speed        the rows
study        a study of real images, without Ray
"""
