"""What `pinstream bench` is made of: loads, bare loops, the interleaved run, and the report."""
