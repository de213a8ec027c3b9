"""The operators as Triton kernels: any GPU that Triton reaches, no compiler at install time.

One file per operator family, as in :mod:`fassd_kernels.reference`. Nothing here is imported before
a call needs it: Triton may be absent.

:mod:`program` holds what a call launches; :mod:`configurations` chooses tile sizes;
:mod:`inspect` compiles everything ahead of time and reports, on a machine without a GPU.
"""
