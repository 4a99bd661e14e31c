"""The resolver: YAML, bases, overrides, references, and where each error is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import line_of, load_yaml
from evo_core.config.resolve import merge, read_document
from evo_core.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str, *overrides: str) -> dict[str, Any]:
    return load_yaml(write(tmp_path, "c.yaml", text), overrides)


def error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        ("1.5_0", 1.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("0x10", 16),
        ("1_000", 1000),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30:00", "12:30:00"),
        ("2026-11-20", "2026-11-20"),
        ("010", "010"),
        ("48h", "48h"),
        ("1.2.3", "1.2.3"),
        ("~", None),
        ("", None),
        ('"8/3"', "8/3"),
    ],
)
def test_plain_values_mean_what_they_say(tmp_path: Path, text: str, value: object) -> None:
    loaded = load(tmp_path, f"a: {text}\n")["a"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_bases_are_laid_under_the_file_and_each_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "shape.yaml", "model: {layers: 4, heads: 2}\nlist: [1, 2]\n")
    write(tmp_path / "sub", "job.yaml", "base: ../shape.yaml\nmodel: {heads: 8}\nadam: {lr: 1}\n")
    write(tmp_path, "speed.yaml", "adam: {lr: 2, beta: 3}\n")
    top = write(tmp_path, "top.yaml", "base: [sub/job.yaml, speed.yaml]\nlist: [3]\nadam: {beta: 4}\n")
    assert load_yaml(top) == {"model": {"layers": 4, "heads": 8}, "list": [3], "adam": {"lr": 2, "beta": 4}}


def test_a_key_is_placed_in_the_file_that_set_it_last(tmp_path: Path) -> None:
    under = write(tmp_path, "under.yaml", "a:\n  x: 1\n  y: 2\n")
    over = write(tmp_path, "over.yaml", "base: under.yaml\n\na:\n  y: 3\n")
    document = read_document(over, ["b.c=1"])
    assert document.place("a.x") == (under, 2)
    assert document.place("a.y") == (over, 4)
    assert document.place("a.z") == (over, 3)
    assert document.place("b.c")[0] == "--set b.c"


def test_overrides(tmp_path: Path) -> None:
    text = "a: {b: 1, l: [1, {x: 2}]}\nn:\n"
    loaded = load(tmp_path, text, "a.b=2e-4", "a.l.1.x=[3, 4]", "new.deep.key=true", "n.m=", "s='8/3'", "e=a=b")
    assert loaded == {
        "a": {"b": 2e-4, "l": [1, {"x": [3, 4]}]},
        "n": {"m": None},
        "new": {"deep": {"key": True}},
        "s": "8/3",
        "e": "a=b",
    }


def test_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    text = """
vars: {n: 4, block: {x: 1}, name: v}
a: {n: "${vars.n}", block: "${vars.block}", relative: "${.n}", nested: "${vars.${vars.name}}", text: "n=${vars.n}"}
p: ["${oc.env:PLACE}/x", "${oc.env:NOT_SET,${vars.n}}", "${oc.env:NOT_SET,null}"]
"""
    loaded = load(tmp_path, text, "vars.v=${vars.n}")
    assert loaded["a"] == {"n": 4, "block": {"x": 1}, "relative": 4, "nested": 4, "text": "n=4"}
    assert loaded["p"] == ["/data/x", 4, None]
    assert load_yaml(tmp_path / "c.yaml", resolve=False)["a"]["n"] == "${vars.n}"


def test_values_of_the_environment_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush")
    text = "vars: {t: '${oc.env:TOKEN}'}\na: x-${vars.t}\nb: ${oc.env:TOKEN,'it\\'s'}\n"
    path = write(tmp_path, "c.yaml", text)
    document = read_document(path)
    assert document.values()["a"] == "x-hush"
    assert document.written() == {
        "vars": {"t": "${oc.env:TOKEN}"},
        "a": "x-${oc.env:TOKEN}",
        "b": "${oc.env:TOKEN,'it\\'s'}",
    }
    assert load_yaml(path, environment=False) == document.written()
    assert document.environment()["a"] == "x-${oc.env:TOKEN}"


def test_what_is_written_reads_back_to_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.setenv("A", "1")
    text = """
a: "${oc.env:A}-${oc.env:NOT_SET,'quo\\\\'te, and }brace'}"
b: "${oc.env:NOT_SET,${oc.env:A}}"
c: 'x\\\\${oc.env:A}, \\${oc.env:A} and \\${vars.n}'
"""
    document = read_document(write(tmp_path, "c.yaml", text))
    written = write(tmp_path, "w.yaml", yaml.safe_dump(document.written()))
    assert load_yaml(written) == document.values()
    assert document.values()["c"] == "x\\1, ${oc.env:A} and ${vars.n}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "c.yaml:4: b.c: this key is here twice (the first is on line 3)"),
        ("a: [{x: 1, x: 2}]", "c.yaml:1: a.0.x: this key is here twice (the first is on line 1)"),
        ("a: 1\nb: [1\nc: 2", "c.yaml:3: not valid YAML"),
        ("a: *nothing", "c.yaml:1: not valid YAML: found undefined alias"),
        ("a: !!python/object/apply:os.system [true]", "c.yaml:1: not valid YAML: could not determine a constructor"),
        ("? [1]\n: 2", "c.yaml:1: not valid YAML"),
        ("- 1", "c.yaml: a configuration is a map of keys"),
        ("x: 1\nbase: none.yaml", "c.yaml:2: base: there is no file none.yaml"),
        ("base: c.yaml", "c.yaml:1: base: c.yaml is based on this file"),
        ("base: 3", "c.yaml:1: base: must be a file or a list of files"),
        ("\na: ${vars.x}", 'c.yaml:2: a: "${vars.x}" refers to a value that is not there'),
        ("a: ${b}\nb: ${a}", 'c.yaml:1: a: "${b}" refers to itself'),
        ("a: ${x y", 'c.yaml:1: a: "${x y" is no reference'),
        ("a: ${oc.env:NOT_SET}", "c.yaml:1: a: the environment variable NOT_SET is not set"),
        ("a: ${oc.env:X,it's}", 'c.yaml:1: a: "${oc.env:X,it\'s}" is no reference'),
        ("a: ${oc.decode:1}", "c.yaml:1: a: ${oc.decode:…} is not known"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    assert error(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b=1", "--set a.b=1: a is a value, not a block of keys"),
        ("l.3=1", "--set l.3=1: l is a list of 1: no item 3"),
        ("l.x.y=1", "--set l.x.y=1: l is a list of 1: no item x"),
        ("a", '"a" is not of the form KEY=VALUE'),
        ("a..b=1", '"a..b=1" is not of the form KEY=VALUE'),
        ("=1", '"=1" is not of the form KEY=VALUE'),
        ("a=[1", "--set a:1: not valid YAML"),
        ("a=${nope}", '--set a: a: "${nope}" refers to a value that is not there'),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert error(tmp_path, "a: 1\nl: [1]", override).startswith(message)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such file"):
        load_yaml(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_yaml(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_yaml(tmp_path / "b.yaml")


def test_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "a:\n  b:\n    - x: 1\n\n    - x: 2\nc: 3\n")
    assert [line_of(path, key) for key in ("a", "a.b", "a.b.1.x", "a.b.1.y", "c", "d")] == [1, 2, 5, 5, 6, None]


def test_an_empty_file_is_an_empty_map(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == {}


def test_merging_leaves_both_sides_alone() -> None:
    under, over = {"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": {"z": 3}}
    assert merge(under, over) == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    assert under == {"a": {"x": 1}, "b": 1}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("vars.amonut=1", r'there is no var \'amonut\'; did you mean "amount"\? \(vars: amount, deep, deep.a, left\)'),
        ("vars={amonut: 1}", r"there is no var 'amonut'"),
        ("vars.deep.b=1", r"there is no var 'deep.b'"),
        ("vars.amount.x=1", r"vars.amount is a value, not a block of keys"),
        ("items.0.x=1", r"items.0 is a value, not a block of keys"),
        ("items.2=1", r"items is a list of 2: no item 2"),
        ("items.=1", r"is not of the form KEY=VALUE"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(override: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("vars: {amount: 1, deep: {a: 1}}\nx: ${vars.left}\nitems: [1, 2]\n")
    with pytest.raises(ConfigError, match=says):
        read_document(path, [override])


def test_a_var_that_the_file_leaves_open_is_given_by_an_override(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("x: ${vars.left}\n")
    assert read_document(path, ["vars.left=3", "vars.left=4"]).values()["x"] == 4
