"""What things cost, beside what people use now. `python -m benchmarks --help` lists them.

measure          interleaved timing; medians, and ratios of neighbouring samples
record           a result as a table and as a JSON record that names its machine
davda54          the loop that SAM is usually run with, written from its published interface
operations       tensor operations that an optimiser issues
steps            one optimiser step: ours beside davda54's
augmentation     AutoAugment, crop, flip and Cutout: ours beside torchvision on PIL
control_plane    a study beside the training in it
studies          a study that was run for real, as a record
records/         committed measurements
"""
