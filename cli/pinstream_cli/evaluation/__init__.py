"""What `pinstream eval` is made of: annotations in COCO's format, the classes of both sides, precision, the report."""
