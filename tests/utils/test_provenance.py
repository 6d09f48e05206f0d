"""What a result says it was made with."""

from utils.provenance import VERSION, provenance


def test_provenance_names_versions():
    facts = provenance()
    assert facts["vand_kit"] == VERSION and facts["torch"] and facts["open_clip_torch"]
