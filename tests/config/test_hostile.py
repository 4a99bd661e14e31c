"""Configurations that are out to stop the program: one line that says what is wrong and where, in bounded time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from evo_core.config import TrainConfig, load_config, load_yaml
from evo_core.config.errors import ConfigErrors
from evo_core.config.expressions import evaluate
from evo_core.config.fields import leaves
from evo_core.errors import ConfigError
from tests.config.jobs import MODEL

SECONDS = 10.0


def refused(path: Path, *overrides: str) -> str:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert time.monotonic() - began < SECONDS
    return str(caught.value)


def laughs(names: int, of: str = "[{}]") -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} {of.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, names)]
    return "\n".join(lines)


def doubling(form: str, first: str = "x") -> str:
    lines = [f"  a0: {first}", *(f"  a{i}: {form.replace('N', str(i - 1))}" for i in range(1, 30))]
    return 'job_name: "${vars.a29}"\nvars:\n' + "\n".join(lines)


MESSAGES = {
    "billion laughs": (laughs(12), "more than 100000 values"),
    "laughs by merge": ("a0: &a0 {x: 1}\n" + "\n".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)), "more than 100000 values"),
    "an anchor in itself": ("a: &x [*x]", ":1: this anchor holds itself"),
    "an anchor merged into itself": ("a: &x\n  <<: *x", "this anchor holds itself"),
    "500 lists": ("a: " + "[" * 500 + "]" * 500, ":1: .*100 levels deep"),
    "500 maps": ("\n".join(" " * i + "a:" for i in range(500)), "100 levels deep"),
    "a million brackets": ("a: " + "[" * 1_000_000, "100 levels deep"),
    "texts that double": (doubling('"${vars.aN}${vars.aN}"'), r"vars.a\d+: its references come to more than"),
    "relative ones": (doubling('"${.aN}${.aN}"'), r"vars.a\d+: its references come to more than"),
    "in brackets": (doubling('"${vars[aN]}${vars[aN]}"'), r"vars.a\d+: its references come to more than"),
    "names by value": (doubling('"${vars.${vars.nN}}${vars.${vars.nN}}"') + "\n" +
        "\n".join(f"  n{i}: a{i}" for i in range(30)), r"vars.a\d+: its references come to more than"),
    "blocks that double": (doubling('{x: "${vars.aN}", y: "${vars.aN}"}', "{z: 1}"), "references come to more than"),
    "escapes that double": (doubling('"\\\\${x}${vars.aN}${vars.aN}"'), "references come to more than"),
    "a reference to itself": ('job_name: "${job_name}"', 'c.yaml:1: job_name: .* refers to itself'),
    "a circle": ('vars: {a: "${vars.b}", b: "${vars.a}"}\njob_name: "${vars.a}"', "refers to itself"),
    "a reference to its own block": ('vars: {a: {b: "${vars.a}"}}', "c.yaml:1: "),
    "references in references": ('job_name: "' + "${" * 2000 + '"', "c.yaml:1: job_name: holds more than 100 ref"),
    "a long text of references": ('job_name: "' + "${vars.a}" * 20_000 + '"', "job_name: is a text of 180000 char"),
    "no variable": ('job_name: "${oc.env:}"', r"c.yaml:1: job_name: \$\{oc.env:NAME\} names no variable"),
    "an empty name": ('job_name: "${oc.env: }"', r"job_name: "),
    "two defaults": ('job_name: "${oc.env:A,b,c}"', "job_name: .*takes one default"),
    "a NUL": ("job_name: a\0b", "c.yaml:1: holds a NUL"),
    "a NUL by escape": ('data: {train_folder: "a\\0b"}', "c.yaml:1: data.train_folder: holds a NUL"),
    "half a pair": ('job_name: "\\ud83d"', "c.yaml:1: job_name: holds half a surrogate pair"),
    "a whole number for a key": ("3: 4", "c.yaml:1: the key 3 is no text"),
    "true for a key": ("model: {true: 4}", "c.yaml:1: model: the key true is no text"),
    "nothing for a key": ("model: {~: 4}", "c.yaml:1: model: the key ~ is no text"),
    "a list for a key": ("? [a]\n: 1", "c.yaml:1: .*this key is no text"),
    "a tag of Python": ("job_name: !!python/object/apply:os.system [true]", "c.yaml:1: not valid YAML"),
    "a set": ("job_name: !!set {a}", "c.yaml:1: not valid YAML"),
    "a text tagged as a number": ("seed: !!int abc", 'c.yaml:1: seed: "abc" is no number'),
    "a key twice": ("seed: 1\nseed: 2", "c.yaml:2: seed: this key is here twice"),
    "a tab": ("model:\n\tseed: 1", "c.yaml:2: not valid YAML"),
    "two documents": ("seed: 1\n---\nseed: 2", "c.yaml:2: not valid YAML"),
    "a list": ("- seed", "c.yaml: a configuration is a map of keys"),
    "a based circle": ("base: c.yaml", "c.yaml:1: base: c.yaml is based on this file"),
    "a base that is no file": ("base: /dev/zero", "c.yaml:1: base: there is no file"),
    "a base of a long name": (f"base: {'x' * 5000}.yaml", "c.yaml:1: base: there is no file"),
    "a base that is a number": ("base: 5", "c.yaml:1: base: must be a file"),
    "a misspelt alias": ("a: *b", "c.yaml:1: not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("what", MESSAGES)
def test_a_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    text, says = MESSAGES[what]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    told = refused(path)
    assert len(told) < 1000
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_a_base_that_is_read_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text("seed: 1")
    for i in range(1, 30):
        (tmp_path / f"{i}.yaml").write_text(f"base: [{i - 1}.yaml, {i - 1}.yaml]")
    assert "base: more than 100 files are read" in refused(tmp_path / "29.yaml")


@pytest.mark.parametrize("ending", [".yaml", ".py"])
def test_what_is_no_regular_file_is_not_read(ending: str, tmp_path: Path) -> None:
    fifo, zero, loop, folder = (tmp_path / f"{name}{ending}" for name in ("fifo", "zero", "loop", "folder"))
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    folder.mkdir()
    for path, says in ((fifo, "is no regular file"), (zero, "is no regular file"), (folder, "is a folder")):
        assert refused(path).startswith(f"{path}: {says}")
    assert refused(loop).startswith(f"{loop}: ")
    assert refused(tmp_path / f"{'x' * 5000}{ending}").endswith("cannot be read: File name too long")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("ending", [".yaml", ".py"])
def test_another_encoding_is_told(encoding: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{ending}"
    path.write_bytes("job_name = 'é'\n".encode(encoding))
    assert refused(path).startswith(f"{path}:")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_windows_files_are_read(mark: str, tmp_path: Path) -> None:
    for name, text in (
        ("c.yaml", f"model: {MODEL}\r\njob_name: a\r\n"),
        ("c.py", f"model = {MODEL}\r\nJOB_NAME = 'a'\r\n"),
    ):
        (tmp_path / name).write_text(mark + text, newline="")
        assert load_config(tmp_path / name).job_name == "a"


def test_a_pair_of_surrogates_is_the_character_it_spells(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(r'a: "\ud83d\ude00"')
    assert load_yaml(tmp_path / "c.yaml") == {"a": "😀"}


LARGE = "9" * 5000
NUMBERS = [
    LARGE,
    f'"{LARGE}"',
    "1e999",
    '"2**1000*2**1000"',
    '"9**9**9"',
    '"1/0"',
    "-.inf",
    ".nan",
    '"10**30"',
    "[" + LARGE + "]",
]


def message_of(errors: ConfigError, key: str) -> str:
    """What an error says of one key; empty where it says nothing of it."""
    found = errors.errors if isinstance(errors, ConfigErrors) else [errors]
    return next((str(one) for one in found if (one.key or "").startswith(key.partition(".")[0])), "")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:20])
def test_every_setting_names_its_key_for_a_number_it_cannot_hold(number: str, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"model: {MODEL}\n")
    path = tmp_path / "c.yaml"
    for leaf in leaves(TrainConfig):
        *blocks, name = leaf.key.split(".")
        lines = ["base: base.yaml", *(f"{'  ' * depth}{block}:" for depth, block in enumerate(blocks))]
        path.write_text("\n".join([*lines, f"{'  ' * len(blocks)}{name}: {number}"]))
        try:
            load_config(path)
        except ConfigError as error:
            assert message_of(error, leaf.key).startswith(f"{path}:"), leaf.key
        else:
            assert number != LARGE, leaf.key


PYTHON = {
    "a lock": ("import threading\nlock = threading.Lock()", "c.py:2: lock: is a _thread.lock"),
    "a generator": ("data = dict(seq_len=(i for i in range(3)))", "c.py:1: data.seq_len: is a builtins.generator"),
    "a function": ("data = dict(seq_len=len)", "c.py:1: data.seq_len: is a builtins.builtin_function"),
    "a class": ("data = dict(seq_len=dict)", "c.py:1: data.seq_len: is a builtins.type"),
    "a list in itself": ("data = []\ndata.append(data)", "c.py:1: data.*100 levels deep"),
    "lists of lists": ("data = [0]\nfor _ in range(30): data = [data, data]", "holds more than 100000 values"),
    "a number for a key": ("data = {3: 4}", "c.py:1: data: the key 3 is no text"),
    "the end": ("raise SystemExit(0)", "c.py:1: SystemExit: 0"),
    "another end": ("raise GeneratorExit", "c.py:1: GeneratorExit"),
    "lines of an error": ("raise ValueError('a\\nb')", "c.py:1: ValueError: a$"),
    "no such module": ("import no_such_module_at_all", "c.py:1: ModuleNotFoundError"),
    "no Python": ("data = dict(", "c.py:1: not valid Python"),
    "deep Python": ("data = " + "(" * 500 + ")" * 500, "c.py.* not valid Python"),
    "a large number": ("SEQ_LEN = 10**30\ndata = dict(seq_len=SEQ_LEN)", "c.py:2: data.seq_len: must be at most"),
    "a larger one": ("data = dict(seq_len=10**5000)", "c.py:1: data.seq_len: is a number of more than 400 digits"),
    "a NUL": ("tensorboard_folder = 'a\\0b'", "c.py:1: tensorboard_folder: holds a NUL"),
}  # fmt: skip


@pytest.mark.parametrize("what", PYTHON)
def test_a_python_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    text, says = PYTHON[what]
    path = tmp_path / "c.py"
    path.write_text(text)
    refused(path)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


@pytest.mark.parametrize(
    "override", [".".join("a" * 500) + "=1", "a=" + "[" * 500, "a=" + LARGE, 'tensorboard_folder="\\0"', "a=*b"]
)
def test_an_override_is_refused_in_one_line(override: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {MODEL}")
    assert len(refused(tmp_path / "c.yaml", override)) < 1000


@pytest.mark.parametrize(
    "text", ["2**1000*2**1000", "9**9**9", "1/0", "0**-1", "(-8)**0.5", "1e308*10", "(" * 300, "1<<3", "\0", "1,2", ""]
)
def test_an_expression_without_a_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        evaluate(text)
