"""Restart policy and what children are told and tell."""

import pytest

from runtime.children import RestartPolicy, _announced_url, _end_in_words


def test_the_first_crash_is_followed_by_a_start_at_once() -> None:
    assert RestartPolicy().delay_seconds(1, 0.999) == 0.0


@pytest.mark.parametrize(("failures", "ceiling"), [(2, 0.5), (3, 1.0), (4, 2.0), (7, 15.0), (10_000, 15.0)])
def test_wait_doubles_up_to_its_ceiling(failures: int, ceiling: float) -> None:
    policy = RestartPolicy()
    assert policy.delay_seconds(failures, 0.0) == ceiling / 2
    assert ceiling / 2 < policy.delay_seconds(failures, 0.999) < ceiling


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ('{"event": "health_listening", "url": "http://127.0.0.1:1"}', "http://127.0.0.1:1/health"),
        ('{"event": "other", "text": "health_listening", "url": "http://evil"}', None),
        ('{"event": "health_listening", "url": 5}', None),
        ("health_listening", None),
        ("[]", None),
    ],
)
def test_only_a_childs_own_announcement_names_its_health(line: str, url: str | None) -> None:
    assert _announced_url(line) == url


def test_end_is_told_in_words() -> None:
    assert _end_in_words(3) == "it ended with exit code 3"
    assert _end_in_words(-9) == "it was ended by signal SIGKILL"
    assert _end_in_words(-250) == "it was ended by signal 250"
