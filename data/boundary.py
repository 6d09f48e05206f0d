"""Which paths of a dataset stay inside its root, links followed."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

_LONGEST = 4096  # bytes of a path, more than Linux takes


def boundary(root: Path, follow_links: bool) -> Callable[[str], bool]:
    """Return path -> whether it stays under root; each folder is looked at once.

    It raises ValueError for links that lead out of the root and are not accepted.
    """
    top = os.path.realpath(root)

    def stays_inside(path: str) -> bool:
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:  # a lone surrogate
            return False
        parts = path.split("/")
        if b"\0" in encoded or len(encoded) > _LONGEST or ".." in parts or re.match("/|[A-Za-z]:", path):
            return False
        for end in range(len(parts)):
            check_link("/".join(parts[: end + 1]))
        return True

    @functools.cache
    def check_link(path: str) -> None:
        place = os.path.join(top, path)
        if not os.path.islink(place) or Path(target := os.path.realpath(place)).is_relative_to(top):
            return
        if not follow_links:
            advice = "copy it there, or accept the links that the root's owner made with --follow_links"
            raise ValueError(f"{root / path} is a link to {target}, outside of the root; {advice}")
        if os.lstat(place).st_uid != os.stat(top).st_uid:
            raise ValueError(
                f"{root / path} is a link to {target}, outside of the root, that somebody else than the root's owner "
                "made; remove it, or copy what is meant"
            )

    return stays_inside
