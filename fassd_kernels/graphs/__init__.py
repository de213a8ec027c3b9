"""Graphs of networks, in which operations are fused with those before and behind them.

A graph comes in one of two ways, and is fused by the same patterns (:mod:`patterns`,
:mod:`fusing`):

* Dynamo captures that of any network, ``torch.compile(model, backend="fassd_kernels")``, guards its
  assumptions (shapes, settings, attributes, globals), and runs code that it cannot capture
  unchanged. It is used instead of ``torch.fx.symbolic_trace``, which guards nothing: a flag that
  changes later, or a branch on a size, would go unnoticed.
* A network of :mod:`fassd.models`, with fused modules as its nodes, is recorded from its own code
  (:mod:`recorded`), which is known to depend on nothing but the modules: in milliseconds, for all
  sizes, and traceable by exporters.

`compile_graph` makes Dynamo's graph functional (:mod:`mutation`), finds the patterns, and replaces
them by steps, whose weights are packed once, and again after a change (:mod:`steps`). Everything
else runs on PyTorch's operators. After a calibration (:mod:`ranges`), steps can compute in bytes
(:mod:`quantizing`).
"""
