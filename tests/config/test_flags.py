"""What a command line is told about flags that do not exist."""

import pytest

from config.flags import test_parser as parser_of_test
from utils.errors import MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["--k_shots", "4"], "unrecognized arguments: --k_shots 4; did you mean --k_shot?"),
        (["--frobnicate", "--savepath", "x", "--datapath=y"], "; did you mean --save_path, --data_path?"),
        (["--lr", "0.1"], "unrecognized arguments: --lr 0.1; --help lists the flags"),
        (["--mode", "--seed"], "argument --mode: expected one argument; --help lists the flags"),
    ],
)
def test_unknown_flags_get_the_near_ones_as_hints(words, end, capsys):
    with pytest.raises(SystemExit) as ended:
        parser_of_test().parse_args(words)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.startswith("error: ") and line.endswith(end + "\n"), line


def test_many_unknown_flags_are_one_short_line(capsys):
    with pytest.raises(SystemExit):
        parser_of_test().parse_args([f"--unknown_{number}\x1b" for number in range(100)])
    line = capsys.readouterr().err
    assert len(line) == MESSAGE_LIMIT + 1 and line[:-1].isprintable() and line.endswith("; --help lists the flags\n")
