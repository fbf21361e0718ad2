"""One engine for several instances: a process of its own runs it, the instances gather and answer.

Triton runs every model instance as a process. An engine in each of them means a CUDA context and a copy of the weights
each, GPU time sliced between processes, and batches no larger than what one instance was handed. Here one process
(process.py) owns the engine (server.py), forms batches across all instances (forming.py), and copies straight from
memory it shares with them (memory.py). To an instance it is an Engine like any other (client.py, slot.py). They speak
JSON over a Unix socket (wire.py); tensors never cross it. Nothing here knows CUDA or Triton.
"""
