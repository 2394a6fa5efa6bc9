"""Formats: how models of other people are built and stored, and how each becomes plain tensors.

- `decoders`: blocks, residual stream and head of any decoder, found by structure
- `packed_tensors`, `packed_folders`: weights in few bits, by the library that packed them, and the plain folder they become
- `gguf_files`: an update that llama.cpp serves, on the names of its base
- `fused_experts`: a mixture of experts as it is stored, and as it is loaded
"""
