"""Pictures of result files: each as PNG and SVG, for light pages and for dark ones."""

from pinstream_cli.benchmark.plots.draw import check_matplotlib, draw, why_nothing

__all__ = ["check_matplotlib", "draw", "why_nothing"]
