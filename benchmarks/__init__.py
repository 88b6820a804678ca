"""What things cost, beside what people use now. `python -m benchmarks --help` lists them.

measure          interleaved timing; medians, and ratios of neighbouring samples
record           a result as a table and as a JSON record that names its machine
davda54          the loop that SAM is usually run with, written from its published interface
published_loop   the loop that people write around it, given ours' data and memory layout
operations       tensor operations that an optimiser issues
steps            one optimiser step: ours beside davda54's
in_turn          contenders in processes of their own that take turns
epoch            an epoch of ResNet-20: ours beside the published loop
augmentation     AutoAugment, crop, flip and Cutout: ours beside torchvision on PIL
control_plane    a study beside the training in it
ninety           a study of 90 replicates beside its training, and beside plain Ray Tune
resume           a finished experiment asked again: ours beside Tuner.restore
overhead         a trial that does nothing: ours beside Ray Tune's function and class trainables
plain_tune       Ray Tune as its manual has it, with trials that do nothing
tuned_loop       Ray Tune as its manual has it, with the published loop in a function
gpu/             what a GPU has to show: `python -m benchmarks.gpu`
tape             what a CUDA graph does, on a CPU
studies          a study that was run for real, as a record
records/         committed measurements
"""
