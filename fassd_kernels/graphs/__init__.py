"""Graphs of any network on the fused operators: ``torch.compile(model, backend="fassd_kernels")``.

Dynamo captures the graph, guards its assumptions (shapes, settings, attributes, globals), and runs
code that it cannot capture unchanged. It is used instead of ``torch.fx.symbolic_trace``, which
guards nothing: a flag that changes later, or a branch on a size, would go unnoticed.

`compile_graph` makes the graph functional (:mod:`mutation`), finds the patterns that the operators
compute (:mod:`patterns`), and replaces them by steps (:mod:`fusing`), whose weights are packed
once, and again after a change (:mod:`steps`). Everything else runs on PyTorch's operators.
"""
