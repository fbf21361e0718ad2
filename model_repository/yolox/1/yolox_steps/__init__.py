"""What the steps of the yolox ensemble are made of.

The preprocess and postprocess models hold Triton's side only (their model.py) and import everything else from here:
one place for what both need, under one name that clashes with nothing. Only `replies` knows Triton.
"""
