"""The picture sheet: what is chosen, and that it can be drawn."""

from PIL import Image

from utils import sheet


def row(cls_name: str, anomaly: int, score: float) -> dict:
    path = f"{cls_name}/test/{score}.png"
    return {"img_path": path, "cls_name": cls_name, "specie_name": "", "anomaly": str(anomaly), "score": str(score)}


ROWS = [
    row("nut", 1, 0.2), row("nut", 0, 0.6), row("nut", 1, 0.9), row("nut", 1, 0.95), row("nut", 1, 0.97),
    row("bolt", 0, 0.1), row("bolt", 1, 0.3), row("bolt", 0, 0.7), row("bolt", 1, 1e-5),
]  # fmt: skip


def scores(rows) -> list[float]:
    return [float(one["score"]) for one in rows]


def test_hits_have_the_highest_scores_and_misses_the_lowest():
    chosen = sheet.choose(ROWS, hits=3, misses=2, per_class=9)
    assert scores(chosen.hits) == [0.97, 0.95, 0.9]
    assert scores(chosen.missed) == [1e-5, 0.2]
    assert scores(chosen.alarms) == [0.7, 0.6]
    assert all(one["anomaly"] == "1" for one in chosen.hits + chosen.missed)


def test_no_class_takes_the_whole_sheet():
    chosen = sheet.choose(ROWS, hits=3, misses=2, per_class=1)
    assert scores(chosen.hits) == [0.97, 0.3] and scores(chosen.missed) == [1e-5, 0.2]


def test_what_is_not_there_is_not_chosen():
    assert sheet.choose([]) == ([], [], [])
    assert sheet.choose(ROWS[:1]) == (ROWS[:1], ROWS[:1], [])


def test_a_sheet_leaves_out_empty_sections():
    panels = [Image.new("RGB", (384, 200), colour) for colour in ("red", "green", "blue")]
    entry = (row("a class name that is far too long for its place on the sheet " * 2, 1, 0.5), panels)
    one = sheet.draw("title", "note", [sheet.Section("hits", [entry] * 3)])
    assert (
        sheet.draw("title", "note", [sheet.Section("hits", [entry] * 3), sheet.Section("misses", [])]).size == one.size
    )
    assert sheet.draw("title", "note", [sheet.Section("hits", [entry])]).height < one.height
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= {colour for _, colour in one.getcolors(1 << 20)}
