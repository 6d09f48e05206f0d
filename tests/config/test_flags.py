"""What a command line is told about flags that do not exist."""

import pytest

from config.flags import predict_parser
from config.flags import test_parser as parser_of_test
from config.resolve import resolve_predict, resolve_test
from utils.errors import MESSAGE_LIMIT
from utils.launch import worker_count


def test_the_published_name_of_an_option_is_the_same_flag():
    parser = parser_of_test()
    assert parser.parse_args(["--sigma", "2"]).smoothing == parser.parse_args(["--smoothing", "2"]).smoothing == 2.0
    assert "sigma" not in vars(parser.parse_args([]))


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


@pytest.mark.parametrize(
    ("words", "count", "source"), [([], None, "auto"), (["auto"], None, "auto"), (["0"], 0, "flag")]
)
def test_as_many_readers_as_cores(words, count, source):
    flags = [*(["--num_workers", *words] if words else []), "--mode", "zero_shot"]
    settings, sources = resolve_test(parser_of_test().parse_args([*flags, "--method", "winclip"]))
    assert (settings.num_workers, sources["num_workers"]) == (worker_count() if count is None else count, source)
    own, sources = resolve_predict(
        predict_parser().parse_intermixed_args(["a.png", "--class_name", "nut", *flags[:-2]])
    )
    assert (own.num_workers, sources["num_workers"]) == (settings.num_workers, source)


def test_workers_that_are_no_number(capsys):
    with pytest.raises(SystemExit):
        parser_of_test().parse_args(["--num_workers", "-1"])
    assert "argument --num_workers: -1: must be 0 or more" in capsys.readouterr().err


def test_a_folder_that_is_named_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        predict_parser().parse_intermixed_args(["a.png", "--references", "a", "--references", "b"])
    assert capsys.readouterr().err.startswith(
        "error: argument --references: given twice; name one folder that holds all of them"
    )
