"""Where models and pictures come from: references, weight files, image files."""
