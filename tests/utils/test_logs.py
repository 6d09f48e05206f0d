"""The log on the screen and in log.txt, and a screen that is closed or knows few characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from utils.errors import run_script
from utils.files import NotWrittenError
from utils.logs import LOG, Lines, log_to

TALKS = """
import sys
from pathlib import Path
from utils.errors import run_script
from utils.logs import LOG, log_to

def main():
    log_to(Path(sys.argv[1]))
    for number in range(3000):
        LOG.info("Gehäuse %d: 50.0 ± 1.0", number)
    print("the end, \\N{EM DASH} and bytes \\udc80")
    print("also here \\N{EM DASH}", file=sys.stderr)
    (Path(sys.argv[1]) / "done").touch()

run_script(main)
"""


def messages(folder) -> list[str]:
    return [line.split(" ", 2)[2] for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]


def talk(folder, stdout, **environment: str) -> subprocess.Popen:
    command, env = [sys.executable, "-c", TALKS, folder], {**os.environ, **environment}
    return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, env=env)


def test_log_holds_what_was_said_before_its_file_was_known(tmp_path, capsys):
    def main():
        LOG.warning("early")
        log_to(tmp_path)
        LOG.info("late")

    run_script(main)
    assert capsys.readouterr().out.splitlines() == ["early", "late"]
    assert messages(tmp_path) == ["WARNING early", "INFO late"]


def test_a_log_starts_anew_or_goes_on(tmp_path):
    for append, expected in ((False, ["a"]), (True, ["a", "b"]), (False, ["c"])):
        log_to(tmp_path, append=append)
        LOG.info(expected[-1])
        assert messages(tmp_path) == [f"INFO {text}" for text in expected]


def test_names_cannot_forge_lines_of_the_log(tmp_path, capsys):
    """Control characters of any argument are escaped, and line ends but those of a table."""
    name = "screw\n2026-01-01 00:00:00 INFO accuracy 100%\x1b[2J\u202e\udc80"
    escaped = r"screw\x0a2026-01-01 00:00:00 INFO accuracy 100%\x1b[2J\u202e\udc80"

    def main():
        log_to(tmp_path)
        LOG.info("class %s of %d, %.1f%%", name, 3, 0.5)
        LOG.info("%(name)s", {"name": name})
        LOG.warning("skipped %s: %s", Path(name), ValueError(name))
        LOG.info("some of %s", ["a\n\x1b"])
        LOG.info(f"\x1b[2J {3}")
        LOG.info("\n%s\n\nresults are in %s", Lines("| a |\n| \x1b |"), tmp_path)

    run_script(main)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"class {escaped} of 3, 0.5%", escaped, f"skipped {escaped}: {escaped}", r"some of ['a\n\x1b']", r"\x1b[2J 3",
        "", "| a |", r"| \x1b |", "", f"results are in {tmp_path}",
    ]  # fmt: skip
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "\x1b" not in log and len(log.splitlines()) == 10


def test_a_log_that_leads_elsewhere_is_not_written(tmp_path):
    (tmp_path / "precious").write_text("kept")
    log = tmp_path / "log.txt"
    log.symlink_to("precious")
    with pytest.raises(ValueError, match="log.txt: is a link, which is not followed; remove it"):
        log_to(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(ValueError, match="log.txt: is a FIFO"):
        log_to(tmp_path)
    with pytest.raises(NotWrittenError, match=r"gone/log.txt is not written \(No such file or directory\)$"):
        log_to(tmp_path / "gone")


def test_a_screen_that_lacks_characters_shows_escapes(tmp_path):
    process = talk(tmp_path, subprocess.PIPE, PYTHONIOENCODING="ascii")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == b"also here \\u2014\n"
    lines = out.decode("ascii").splitlines()
    assert lines[0] == r"Geh\xe4use 0: 50.0 \xb1 1.0" and lines[-1] == r"the end, \u2014 and bytes \udc80"
    assert len(lines) == 3001 and messages(tmp_path)[-1] == "INFO Gehäuse 2999: 50.0 ± 1.0"


def test_a_closed_pipe_ends_the_lines_and_not_the_run(tmp_path):
    process = talk(tmp_path, subprocess.PIPE, PYTHONIOENCODING="utf-8")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0 and errors == "also here \N{EM DASH}\n"
    assert len(messages(tmp_path)) == 3000 and (tmp_path / "done").exists()
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a full disk of Linux")
def test_a_screen_on_a_full_disk_does_not_end_the_run(tmp_path):
    with open("/dev/full", "wb") as full:
        process = talk(tmp_path, full)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Error" not in errors and len(messages(tmp_path)) == 3000


def test_no_screen_at_all(tmp_path):
    """As of a job that was started with its standard output and error closed."""
    command = 'exec "$0" -c "$1" "$2" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, TALKS, tmp_path], cwd=ROOT).returncode == 0
    assert len(messages(tmp_path)) == 3000 and (tmp_path / "done").exists()


def test_lines_are_written_at_once_where_python_is_unbuffered():
    code = "import os; from utils.logs import safe_streams; safe_streams(); print('said'); os._exit(0)"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout == "said\n"
