"""Tests: unit/ mirrors the packages, server/ talks to a real tritonserver, gpu/ needs a GPU."""
