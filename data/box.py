"""A part of a picture. Needs no PyTorch, so that processes which draw begin soon."""

Box = tuple[float, float, float, float]  # left, top, right, bottom, as parts of a picture's width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
