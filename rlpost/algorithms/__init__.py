"""The mathematics of the algorithms as pure functions: tensors in, (value, metrics) out.

Shapes: B episodes, T token positions of the longest episode, N sampled tokens (flat). Denominators are
arguments, so a loss summed over micro-batches and ranks is the loss of the whole batch. Metrics of a loss are
contributions to the batch's mean (they add up); those named `*_max` are reduced by the maximum.
"""
