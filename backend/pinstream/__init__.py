"""The pinstream backend plugin for Triton Inference Server."""
