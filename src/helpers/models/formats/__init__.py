"""Formats: how models of other people are built and stored, and how each becomes plain tensors.

- `decoders`: blocks, residual stream and head of any decoder, found by structure
- `fused_experts`: a mixture of experts as it is stored, and as it is loaded
"""
