"""What a person may order about one task now, and why not: asked of the machine itself, which changes nothing here."""

from collections.abc import Mapping
from datetime import datetime

from orchestration import machine
from orchestration import stimuli as st
from orchestration.definition.plan import Plan
from orchestration.errors import IllegalMove
from orchestration.instance import Instance

RETRY, SKIP, COMPLETE = "retry", "skip", "complete"
ORDERS = (RETRY, SKIP, COMPLETE)


def refusals(plan: Plan, instance: Instance, task_id: str, at: datetime) -> Mapping[str, str]:
    """Return each order with the reason why the machine would refuse it now; empty when it would obey."""
    return {order: _refusal(plan, instance, task_id, order, at) for order in ORDERS}


def _refusal(plan: Plan, instance: Instance, task_id: str, order: str, at: datetime) -> str:
    stimulus: st.AnyStimulus
    match order:
        case "retry":
            stimulus = st.RetryOrder(at=at, task_id=task_id)
        case "skip":
            stimulus = st.SkipOrder(at=at, task_id=task_id)
        case _:
            stimulus = st.CompleteOrder(at=at, task_id=task_id)
    try:
        machine.advance(plan, instance, stimulus)
    except IllegalMove as error:
        return str(error)
    return ""
