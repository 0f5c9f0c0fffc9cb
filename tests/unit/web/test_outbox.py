"""What waits for one browser: bounded, latest wins for lists, all or nothing for events."""

import json
from typing import Any

from web.server.outbox import MAX_EVENTS, Outbox


def taken(outbox: Outbox) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in outbox.take()]


def test_patches_of_one_list_are_merged_and_the_latest_wins() -> None:
    outbox = Outbox()
    outbox.patch(1, 5, {"items": {"a": 1, "b": 1}, "total": 1})
    outbox.patch(1, 6, {"items": {"b": 2, "c": None}})
    assert taken(outbox) == [
        {"op": "patch", "id": 1, "seq": 6, "data": {"items": {"a": 1, "b": 2, "c": None}, "total": 1}}
    ]
    assert taken(outbox) == []


def test_events_keep_their_order_in_one_frame() -> None:
    outbox = Outbox()
    assert outbox.events(3, [{"seq": 4}, {"seq": 5}])
    assert outbox.events(3, [{"seq": 6}])
    assert taken(outbox) == [
        {"op": "events", "id": 3, "from": 4, "to": 6, "events": [{"seq": 4}, {"seq": 5}, {"seq": 6}]}
    ]


def test_a_browser_that_reads_too_slowly_is_told_to_begin_anew() -> None:
    outbox = Outbox()
    assert outbox.events(1, [{"seq": n} for n in range(1, MAX_EVENTS + 1)])
    assert not outbox.events(1, [{"seq": MAX_EVENTS + 1}])
    assert taken(outbox) == [{"op": "resync", "id": 1}]
    assert outbox.events(2, [{"seq": 1}])


def test_what_waits_for_an_ended_subscription_is_dropped() -> None:
    outbox = Outbox()
    outbox.patch(1, 1, {"total": 1})
    outbox.events(2, [{"seq": 1}])
    outbox.forget(1)
    outbox.forget(2)
    assert taken(outbox) == []
