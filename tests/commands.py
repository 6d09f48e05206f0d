"""Commands in documents: finding them, and what their flags mean."""

import re

import config.flags
import config.resolve


def resolve_predict(args):
    """As predict.py: with --onnx the file says what the detector is, here WinCLIP for screws."""
    known = {"method": "winclip", "class_name": "screw", "image_size": 240}
    return config.resolve.resolve_predict(args) if args.onnx is None else config.resolve.resolve_onnx(args, known)


PARSERS = {
    "predict.py": (config.flags.predict_parser, resolve_predict),
    "export.py": (config.flags.export_parser, config.resolve.resolve_export),
    "app.py": (config.flags.app_parser, config.resolve.resolve_app),
    "train.py": (config.flags.train_parser, config.resolve.resolve_train),
    "test.py": (config.flags.test_parser, config.resolve.resolve_test),
}
PROGRAMS = r"(?:python|sh|pip|torchrun|tensorboard)"


def commands_of(page: str) -> list[str]:
    """The lines of its shell blocks, and what stands in a sentence as `python ...` or the like."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    lines = [*blocks.splitlines(), *re.findall(rf"`({PROGRAMS} [^`]+)`", prose)]
    commands = [line.partition("  #")[0].strip() for line in lines]
    return [command for command in commands if command and not command.startswith("#")]


def settings_of(script: str, flags: list[str]):
    parser, resolve = PARSERS[script]
    return resolve(parser().parse_args(flags))[0]
