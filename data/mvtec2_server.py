"""What the evaluation server of MVTec AD 2 takes: the parts of the dataset whose labels it alone has, and how many
images each class has there (Heckler-Kram et al., 2025, and the check that comes with the dataset)."""

PARTS = {"test_private": "regular", "test_private_mixed": "mixed"}  # part -> the light in the names of its images
# Class -> images, in each of the two parts.
COUNTS = {"can": 321, "fabric": 314, "fruit_jelly": 255, "rice": 277, "sheet_metal": 142, "vial": 276,
          "wallplugs": 232, "walnuts": 228}  # fmt: skip


def names(part: str, count: int) -> list[str]:
    """The names of the images of a part, without their suffix."""
    return [f"{number:03}_{PARTS[part]}" for number in range(count)]
