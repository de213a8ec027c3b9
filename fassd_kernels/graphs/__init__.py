"""Any network's graph on the fused operators: ``torch.compile(model, backend="fassd_kernels")``.

Dynamo captures the graph, guards what it has assumed (shapes, settings, attributes, globals), and
runs what it cannot capture as it stands. It was taken rather than ``torch.fx.symbolic_trace``,
which guards nothing: a flag that changes later, or a branch on a size, would go unnoticed there.

`compile_graph` makes the graph functional (:mod:`mutation`), finds what the operators compute
(:mod:`patterns`), and puts steps in its place (:mod:`fusing`), whose weights are packed once and
again when one has changed (:mod:`steps`). All else stays PyTorch's.
"""
