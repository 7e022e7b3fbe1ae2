"""Flags are the fields of dataclasses, files of settings have their names, and help loads neither torch nor numpy."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import Preparation, Recipe
from gptclf.cli import parser as parsing
from gptclf.cli.flags import UsageError, field_texts
from gptclf.cli.main import main
from gptclf.cli.parser import names_of, parse
from gptclf.cli.settings import settings_text

TRAIN = ["train", "d.csv", "--out", "m"]
COMMANDS = ["train", "predict", "evaluate", "explain", "summary", "convert", "serve"]

RECIPES = st.builds(
    Recipe,
    epochs=st.integers(1, 9),
    lr=st.floats(0, 1),
    clip=st.none() | st.floats(1e-3, 1e6),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    seed=st.integers(0, 2**64 - 1),
    drop_last=st.booleans(),
    reuse_frozen=st.booleans(),
    head_lr=st.none() | st.floats(0, 1),
    eval_every=st.none() | st.integers(1, 9),
)


def flags_of(recipe: Recipe) -> list[str]:
    found = []
    for field in fields(recipe):
        value, name = getattr(recipe, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found.append(f"--{name}={value}")
    return found


@settings(max_examples=50, deadline=None)
@given(RECIPES)
def test_a_recipe_is_given_by_its_flags(recipe: Recipe) -> None:
    assert parse([*TRAIN, *flags_of(recipe)]).recipe == recipe


@pytest.mark.parametrize("kind", [Recipe, Preparation])
def test_every_field_is_a_flag_with_its_default_and_its_help(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(TRAIN)
    assert (args.recipe, args.preparation) == (Recipe(), Preparation())
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(kind):
        option, said = f"--{field.name.replace('_', '-')}", field_texts(kind)[field.name]
        assert option in shown
        assert said in shown
        if isinstance(field.default, str | int | float) and field.type is not bool:
            assert f"(default: {field.default})" in shown[shown.index(said) :][: len(said) + 30]


@settings(max_examples=30, deadline=None)
@given(RECIPES, st.text(), st.none() | st.floats(0.1, 0.9))
def test_settings_that_were_written_are_read_again(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, text: str, share: float | None
) -> None:
    given_ = [*TRAIN, *flags_of(recipe), f"--text={text}", *([f"--valid-fraction={share}"] if share else [])]
    args = parse(given_)
    path = tmp_path_factory.mktemp("settings") / "train.toml"
    path.write_text(settings_text(args, names_of("train")), encoding="utf-8", newline="")
    again = parse(["train", "--config", str(path)])
    assert {**vars(again), "config": None} == vars(args)


def test_flags_win_over_settings(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('out = "x"\ndata = "y.csv"\nlr = 1\nepochs = 2\nbatch-size = 3\ndrop_last = true\n')
    args = parse(["train", "--config", str(path), "--epochs", "5", "--no-drop-last", "--lr", "5e-05"])
    assert args.recipe == Recipe(batch_size=3)
    assert (args.out, args.data) == ("x", "y.csv")
    assert parse([*TRAIN, "--config", str(path)]).data == "d.csv"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("bach_size = 3", "s.toml: there is no setting 'bach_size'; did you mean batch_size?"),
        ("batch_size = 'x'", "s.toml: batch_size is 'x'; it must be of the kind int"),
        ("batch_size = true", "s.toml: batch_size is True"),
        ("drop_last = 1", "s.toml: drop_last is 1; it must be true or false"),
        ("schedule = 'steps'", "s.toml: schedule is 'steps'; it must be one of constant, linear, cosine"),
        ("[recipe]\nepochs = 3", "s.toml: there is no setting 'recipe'"),
        ("epochs = 0", "epochs is 0"),
        ("epochs", "s.toml is not a TOML file"),
        ("config = 'other.toml'", "there is no setting 'config'"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_file_and_name(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text(content)
    assert main([*TRAIN, "--config", str(tmp_path / "s.toml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name a command: train, predict"),
        (["trian"], "trian"),
        (["train"], "DATA is missing; see gptclf train --help"),
        (["train", "d.csv"], "--out is missing"),
        ([*TRAIN, "--bach-size", "3"], "there is no '--bach-size'; did you mean --batch-size?"),
        ([*TRAIN, "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        ([*TRAIN, "--schedule", "steps"], "invalid choice: 'steps'"),
        ([*TRAIN, "--lr", "-1"], "lr is -1.0"),
        ([*TRAIN, "--max-length", "9", "--pad-to", "8"], "max_length 9 is more than pad_to 8"),
        (["predict"], "MODEL is missing"),
        ([*TRAIN, "--learning-rate", "1"], "did you mean --lr?"),
        (["predict", "m", "--bits", "1"], "there are --"),
        (["predict", "m", "--reject-below", "60"], "--reject-below is 60.0; it must be"),
        (["predict", "m", "--window", "0"], "--window is 0"),
        (["predict", "m", "--encoding", "latin99"], "unknown encoding: latin99"),
        ([*TRAIN, "--valid-fraction", "10"], "--valid-fraction is 10.0"),
        ([*TRAIN, "--measure", "f1"], "invalid choice: 'f1'"),
        (["evaluate", "m", "d.csv", "--quiet", "--window", "3"], "there is no '--window'"),
    ],
)
def test_errors_of_usage(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err
    assert found.err.startswith("gptclf: error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_settings_that_cannot_be_read(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", "no.toml"]) == 2
    assert capsys.readouterr().err == "gptclf: error: --config: no.toml does not exist\n"


def test_flags_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.csv").write_text("text,label\n")
    train = ["train", str(tmp_path / "d.csv"), "--out", str(tmp_path / "m")]
    for more, said in {
        "--valid v.csv --valid-fraction 0.1": "--valid and --valid-fraction",
        "--early-stopping 3": "--early-stopping needs a validation set",
        "--calibrate": "--calibrate needs a validation set",
        "--resume": "--resume needs --checkpoint-dir",
    }.items():
        (tmp_path / "v.csv").touch()
        assert main([*train, *more.replace("v.csv", str(tmp_path / "v.csv")).split()]) == 2
        assert said in capsys.readouterr().err


PROGRAM = """
import resource, sys
from gptclf.cli.main import main
for argv in {argvs!r}:
    try:
        code = main(argv)
    except SystemExit as ended:
        code = ended.code
    print(code, sorted({{"torch", "numpy"}} & set(sys.modules)), file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)
"""


def test_help_and_errors_of_usage_load_neither_torch_nor_numpy() -> None:
    argvs: list[Any] = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    argvs += [["train"], [*TRAIN, "--epochs", "0"], ["predict", "--nothing"]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM.format(argvs=argvs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    *lines, seconds = [line for line in done.stderr.splitlines() if not line.startswith("gptclf")]
    assert lines == ["0 []"] * (2 + len(COMMANDS)) + ["2 []"] * 3
    assert float(seconds) < 1
    assert "usage: gptclf train DATA --out FOLDER [FLAGS]" in done.stdout


def test_every_command_is_a_module_with_run() -> None:
    assert list(parsing._COMMANDS) == COMMANDS


def test_a_recipe_has_no_flag_of_another_name() -> None:
    names = names_of("train")
    assert len(set(names)) == len(names)
    with pytest.raises(UsageError):
        parse([*TRAIN, "--recipe", "x"])
    assert replace(parse(TRAIN).recipe, epochs=1) == Recipe(epochs=1)
