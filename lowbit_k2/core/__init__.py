"""What training, files and the runtime must agree on, without torch: grids of codes, encodings, settings, shapes.

Reading order: config (validated dataclasses), grids (which integers a precision has, who shares a step), encodings
(codes to bytes on disk, and how many), features, models.
"""
