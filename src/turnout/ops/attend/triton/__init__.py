"""Triton kernels of the attention operator; nothing here is imported before a kernel is asked for."""
