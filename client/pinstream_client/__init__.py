"""A thin client of the YOLOX detection service."""
