"""Tests that need an NVIDIA GPU and a TensorRT; `make test-gpu`."""
