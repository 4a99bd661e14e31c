"""What is refused of the monitor block, by its key and without an address; and where an address is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.config import dump_yaml, load_config, load_saved_config, save_config
from evo_core.config.addresses import NOT_SHOWN, shown_override, written_out
from evo_core.errors import ConfigError
from tests.config.jobs import MODEL, at, job, refusal

SECRET = "b00c-5ecret"
HOOK = f"https://chat.example/hook/{SECRET}"
ALERT = "monitor.alert"
LIMITS = ("stuck_after", "start_timeout")
FEISHU, HEARTBEATS = f"{ALERT}.feishu_alert_address", f"{ALERT}.light_monitor_address"


@pytest.mark.parametrize(
    ("key", "value", "at_key"),
    [
        (f"{ALERT}.enable_feishu_alert", True, FEISHU),
        (ALERT, {"enable_feishu_alert": True, "feishu_alert_address": SECRET}, FEISHU),
        (FEISHU, {"url": HOOK}, FEISHU),
        (HEARTBEATS, [HOOK], HEARTBEATS),
        *(
            (HEARTBEATS, wrong, HEARTBEATS)
            for wrong in (
                f"ftp://chat.example/{SECRET}",
                f"https:///{SECRET}",
                f"https://chat.example:{SECRET}/",
                f"https://[{SECRET}/",
                f"https://user:{SECRET}@chat.example/",
                f"https://chat.example/ {SECRET}",
                f"https://chat.example/\n{SECRET}",
                f"https://chat.example/\x7f{SECRET}",
                f"https://chät.example/{SECRET}",
                NOT_SHOWN,
            )
        ),
        (f"{ALERT}.webhooks", HOOK, f"{ALERT}.webhooks"),
        (f"{ALERT}.webhooks", [HOOK, SECRET], f"{ALERT}.webhooks.1"),
        (f"{ALERT}.webhooks", [HOOK, ""], f"{ALERT}.webhooks.1"),
        (f"{ALERT}.webhooks", [{"url": HOOK}], f"{ALERT}.webhooks"),
        (ALERT, HOOK, ALERT),
        ("monitor", HOOK, "monitor"),
        (f"{ALERT}.loss_spike", 1, f"{ALERT}.loss_spike"),
        *((f"monitor.{name}", wrong, f"monitor.{name}") for name in LIMITS for wrong in (0, -1, True)),
        ("monitor.profile.steps", [7, 7], "monitor.profile.steps"),
        ("monitor.profile.steps", [50_000], "monitor.profile.steps"),
        ("monitor.profile.steps", [], "monitor.profile.steps"),
    ],
)
def test_refused_by_key_without_the_address(key: str, value: Any, at_key: str) -> None:
    said = refusal(at(key, value))
    assert said.startswith(f"{at_key}: ") and len(said.splitlines()) == 1
    assert SECRET not in said


def test_what_is_taken() -> None:
    steps = at("monitor.profile.steps", [0, 49_999])["monitor"]
    config = job({"monitor": steps | {"alert": {"webhooks": [HOOK], "light_monitor_address": "http://[::1]:80/x?y=1"}}})
    assert config.monitor.alert.addresses == {f"{ALERT}.webhooks.0": HOOK}
    job(at(FEISHU, "not looked at"))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with addresses written out, from the environment, and by its defaults."""
    monkeypatch.setenv("HOOK", HOOK)
    hooks = ["${oc.env:HOOK}", HOOK, f"${{oc.env:NOT_SET,'{HOOK}'}}"]
    alert = {"enable_feishu_alert": True, "feishu_alert_address": HOOK, "webhooks": hooks}
    path = tmp_path / "job.yaml"
    path.write_text(dump_yaml({"model": MODEL, "monitor": {"alert": alert}}))
    return path


def test_a_saved_configuration_holds_no_address_and_is_read(written: Path, tmp_path: Path) -> None:
    config = load_config(written)
    assert written_out(config) == [FEISHU, f"{ALERT}.webhooks.1", f"{ALERT}.webhooks.2"]
    save_config(config, tmp_path / "saved.yaml")
    assert SECRET not in (tmp_path / "saved.yaml").read_text()
    saved = load_saved_config(tmp_path / "saved.yaml")
    assert saved.monitor.alert.feishu_alert_address == NOT_SHOWN
    assert saved.monitor.alert.webhooks == (HOOK, NOT_SHOWN, NOT_SHOWN)
    assert saved.identity(1) == config.identity(1)
    load_config(tmp_path / "saved.yaml", inference=True)
    with pytest.raises(ConfigError, match="was left out of this file"):
        load_config(tmp_path / "saved.yaml")


def test_without_the_variable_it_is_read_too(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(load_config(written), tmp_path / "saved.yaml")
    monkeypatch.delenv("HOOK")
    load_saved_config(tmp_path / "saved.yaml")
    load_config(tmp_path / "saved.yaml", inference=True)


def test_an_override_is_shown_without_its_address() -> None:
    for key in (FEISHU, f"steps.model.params.{ALERT}.webhooks", f"{ALERT}.webhooks.0"):
        assert shown_override(f"{key}={HOOK}") == f"{key}={NOT_SHOWN}"
    assert SECRET not in shown_override(f"steps.model.params={{monitor: {{alert: {{webhooks: [{HOOK}]}}}}}}")
    for shown in ("adam.lr=3e-4", f"{FEISHU}=${{oc.env:HOOK}}", "monitor.stuck_after=1h", "--verbose"):
        assert shown_override(shown) == shown
