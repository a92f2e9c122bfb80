"""The page on routing: its example is a configuration that starts, and its numbers are the code's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import create_app
from gateway.routing.choosing import SHOWN_MAX
from gateway.routing.cooldown import ASKED_MIN_S, PROBES, RECENT_MAX, Rules
from gateway.routing.retry import Policy, RetryBudget
from gateway.routing.selectors import EXPLORE, SAMPLES_MIN, SELECTORS, SHARPNESS
from gateway.settings import SettingsError, load_settings
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["docs/routing.md", "README.md"])
def test_the_example_is_a_configuration(tmp_path: Path, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    example = text[text.index("```yaml\nrouting:") :].split("```")[1].removeprefix("yaml\n")
    environ = {
        **{f"{name}_API_KEY": f"sk-{name}" for name in ("OPENAI", "ANTHROPIC", "DEEPSEEK")},
        "SPANBILL_CONFIG": str(tmp_path / "spanbill.yaml"),
        "SPANBILL_JOURNAL__DIRECTORY": str(tmp_path / "journal"),
    }
    (tmp_path / "spanbill.yaml").write_text(example)
    create_app(load_settings(environ), environ=environ)
    (tmp_path / "spanbill.yaml").write_text(example.replace("model: gpt-4.1", "model: no-such-model", 1))
    with pytest.raises(SettingsError, match="no provider serves no-such-model"):
        create_app(load_settings(environ), environ=environ)


def test_the_numbers_are_those_of_the_code() -> None:
    policy, rules = Policy(), Rules()
    for said in (
        f"`attempts_max` ({policy.attempts_max}) calls",
        f"`waited_max_s` ({policy.waited_max_s:.0f} s)",
        f"`pause_s` ({policy.pause_s} s), doubling",
        f"at most {RetryBudget.FEW:.0f} requests at once",
        f"half of ≥ {rules.attempts_min} recent",
        f"`cooldown.recent_s` ({rules.recent_s:.0f} s), and at most {RECENT_MAX} attempts",
        f"`pause_s` ({rules.pause_s:.0f} s); chance",
        f"at least {ASKED_MIN_S:.0f} s: up to a quarter",
        f"`pause_max_s` ({rules.pause_max_s / 60:.0f} minutes)",
        f"{2**PROBES - 1} probes brought an answer",
        f"{EXPLORE:.0%} of the draws".replace("%", " %"),
        f"has {SAMPLES_MIN} attempts in the window",
        f"the {SHOWN_MAX} busiest",
        *[f"| `{selector}` |" for selector in SELECTORS],
    ):
        assert said in PAGE, said
    assert rules.failures == 0.5
    assert RetryBudget.SHARE == 0.2
    assert SHARPNESS == 4
