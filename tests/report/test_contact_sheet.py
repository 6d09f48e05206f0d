"""The picture sheet can be drawn, whatever was chosen."""

from PIL import Image

from report.contact_sheet import Section, draw_sheet


def row(cls_name: str, anomaly: int, score: float) -> dict:
    path = f"{cls_name}/test/{score}.png"
    return {"img_path": path, "cls_name": cls_name, "specie_name": "", "anomaly": str(anomaly), "score": str(score)}


ROWS = [
    row("nut", 1, 0.2), row("nut", 0, 0.6), row("nut", 1, 0.9), row("nut", 1, 0.95), row("nut", 1, 0.97),
    row("bolt", 0, 0.1), row("bolt", 1, 0.3), row("bolt", 0, 0.7), row("bolt", 1, 1e-5),
]  # fmt: skip


def test_a_sheet_leaves_out_empty_sections():
    panels = [Image.new("RGB", (384, 200), colour) for colour in ("red", "green", "blue")]
    entry = (row("a class name that is far too long for its place on the sheet " * 2, 1, 0.5), panels)
    one = draw_sheet("title", "note", [Section("hits", [entry] * 3)])
    assert draw_sheet("title", "note", [Section("hits", [entry] * 3), Section("misses", [])]).size == one.size
    assert draw_sheet("title", "note", [Section("hits", [entry])]).height < one.height
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= {colour for _, colour in one.getcolors(1 << 20)}
