"""The condition evaluator as a process. What is true is decided by `orchestration.conditions`.

Every evaluation is bounded by fuel. What needs more than a little runs on a thread, so that the process keeps
answering while a user's logic burns CPU.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import msgspec

from agents.base import Agent
from agents.condition_evaluator.answers import MAX_KEY_CHARACTERS, AnswerCache
from agents.condition_evaluator.syntax import tree_of
from amp import crash
from amp.capability import Incoming, Offer
from amp.errors import AmpError, InvalidParameters
from orchestration import conditions, contracts, templates
from orchestration.conditions import ConditionOutcome, ConditionSettings
from orchestration.contracts import Attempt, TaskResult
from orchestration.expressions import (
    CONDITION_LIMITS,
    ConditionError,
    ExpressionError,
    Limits,
    TemplateError,
    parse,
)
from runtime.lean_prometheus import Counter, Gauge, Histogram
from runtime.settings import ConditionEvaluatorSettings, Settings

THREADS = 2
MAX_IN_FLIGHT = 100
"""More wait at the router, where another evaluator may take them."""
QUICK_STEPS = 2000
"""Steps of an evaluation that are made at once: about two milliseconds."""
LIMIT_REACHED = "EXPRESSION_LIMIT"

Q = TypeVar("Q", bound=contracts.Request)
T = TypeVar("T")


class ConditionEvaluator(Agent):
    """Evaluates conditions, batches, decision trees and rule sets; checks and parses expressions."""

    section_name: ClassVar[str] = "condition_evaluator"

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(settings, **options)
        self.section: ConditionEvaluatorSettings = settings.condition_evaluator
        self.limits = replace(CONDITION_LIMITS, max_source_chars=self.section.max_expression_length)
        self.quick_limits = replace(self.limits, max_steps=QUICK_STEPS)
        self.cache = AnswerCache(self.section.cache_entries, self.section.cache_ttl, self.clock.monotonic)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="condition")
        registry = self.metrics
        self._evaluations = Counter(
            "amp_evaluations",
            "Evaluations, by capability and outcome",
            ["capability", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram("amp_evaluation_seconds", "Time of evaluations", registry=registry)
        self._cache_hits = Counter("amp_condition_cache_hits", "Answers from the cache", registry=registry)
        Gauge("amp_condition_cache_entries", "Answers kept", registry=registry).set_function(
            lambda: float(len(self.cache))
        )

    def offers(self) -> list[Offer]:
        """Return the six capabilities of the condition evaluator."""
        return [
            self.offer(contracts.CONDITION_EVALUATE, self.evaluate_condition, raw=True),
            self.offer(contracts.CONDITION_BATCH_EVALUATE, self.evaluate_batch, raw=True),
            self.offer(contracts.DECISION_TREE, self.walk_tree, raw=True),
            self.offer(contracts.RULE_ENGINE, self.apply_rules, raw=True),
            self.offer(contracts.CONDITION_VALIDATE, self.validate_condition),
            self.offer(contracts.EXPRESSION_PARSE, self.parse_expression),
        ]

    def max_in_flight(self) -> int:
        """Return how many requests are taken at a time."""
        return MAX_IN_FLIGHT

    async def on_stopped(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def health(self) -> dict[str, Any]:
        """Return how much is cached."""
        return {"cache_entries": len(self.cache)}

    # --- what it is asked ------------------------------------------------------------------------------

    async def evaluate_condition(self, incoming: Incoming) -> contracts.ConditionEvaluateReply | TaskResult:
        """Answer `condition-evaluate`. Asked plainly, a condition that fails is an answer; a task's fails the task."""
        crash.reach("condition.evaluate.before")
        asked, attempt = self._question(incoming, contracts.ConditionEvaluateRequest)
        reply = await self._evaluate(asked, attempt, incoming.message.source.agent_id)
        crash.reach("condition.evaluate.after")
        if attempt is None:
            return reply
        if not reply.details["evaluation_successful"]:
            raise AmpError("CONDITION_EVALUATION_FAILED", str(reply.details["error"]), retryable=False)
        return _task_result(reply, reply.result)

    async def evaluate_batch(self, incoming: Incoming) -> contracts.ConditionBatchReply | TaskResult:
        """Answer `condition-batch-evaluate`."""
        asked, attempt = self._question(incoming, contracts.ConditionBatchRequest)
        context, settings = self._scene(asked.context, attempt)
        outcome, milliseconds = await self._timed(
            contracts.CONDITION_BATCH_EVALUATE.id,
            lambda: conditions.batch(asked.conditions, asked.operator, context, settings),
        )
        reply = contracts.ConditionBatchReply(
            overall_result=outcome.overall_result,
            individual_results=outcome.individual_results,
            evaluation_time_ms=milliseconds,
        )
        return reply if attempt is None else _task_result(reply, reply.overall_result)

    async def walk_tree(self, incoming: Incoming) -> contracts.DecisionTreeReply | TaskResult:
        """Answer `decision-tree`."""
        asked, attempt = self._question(incoming, contracts.DecisionTreeRequest)
        context, settings = self._scene(asked.context, attempt)
        outcome, _ = await self._timed(
            contracts.DECISION_TREE.id,
            lambda: conditions.decision_tree(
                asked.tree,
                context,
                settings,
                max_depth=self.section.max_tree_depth,
                max_nodes=self.section.max_tree_nodes,
            ),
        )
        reply = contracts.DecisionTreeReply(
            result=outcome.result, path=outcome.path, evaluations=outcome.evaluations
        )
        return reply if attempt is None else _task_result(reply, reply.result)

    async def apply_rules(self, incoming: Incoming) -> contracts.RuleEngineReply | TaskResult:
        """Answer `rule-engine`."""
        asked, attempt = self._question(incoming, contracts.RuleEngineRequest)
        context, settings = self._scene(asked.context, attempt)
        outcome, milliseconds = await self._timed(
            contracts.RULE_ENGINE.id,
            lambda: conditions.rule_engine(asked.rules, context, asked.execution_mode, settings),
        )
        reply = contracts.RuleEngineReply(
            matched_rules=outcome.matched_rules, actions=outcome.actions, execution_time_ms=milliseconds
        )
        return reply if attempt is None else _task_result(reply, reply.actions)

    async def validate_condition(self, incoming: Incoming) -> contracts.ConditionValidateReply:
        """Answer `condition-validate`: nothing is evaluated."""
        asked: contracts.ConditionValidateRequest = incoming.parameters
        try:
            names, _ = await self._bounded(
                lambda: conditions.check(asked.condition_type, asked.expression, self.limits)
            )
        except ExpressionError as error:
            return contracts.ConditionValidateReply(valid=False, errors=[_problem(error)], names=[])
        return contracts.ConditionValidateReply(valid=True, errors=[], names=sorted(names))

    async def parse_expression(self, incoming: Incoming) -> contracts.ExpressionParseReply:
        """Answer `expression-parse`."""
        asked: contracts.ExpressionParseRequest = incoming.parameters
        try:
            parsed = await self._bounded(lambda: parse(asked.expression, self.limits))
        except ExpressionError as error:
            return contracts.ExpressionParseReply(
                valid=False, tree=None, names=[], functions=[], errors=[_problem(error)]
            )
        return contracts.ExpressionParseReply(
            valid=True,
            tree=tree_of(parsed.body),
            names=sorted(parsed.names),
            functions=sorted(parsed.functions),
            errors=[],
        )

    # --- how it answers --------------------------------------------------------------------------------

    async def _evaluate(
        self, asked: contracts.ConditionEvaluateRequest, attempt: Attempt | None, caller: str
    ) -> contracts.ConditionEvaluateReply:
        """Return the reply, from the cache when the caller gave a key and allows it."""
        if len(asked.cache_key) > MAX_KEY_CHARACTERS:
            raise InvalidParameters(
                f"cache_key may have {MAX_KEY_CHARACTERS} characters", {"path": "$.cache_key"}
            )
        scope = attempt.workflow_id if attempt is not None else ""
        key = (caller, scope, asked.cache_key, asked.condition_type, asked.expression)
        known = self.cache.get(key) if asked.cache_key and asked.use_cache else None
        if known is not None:
            self._cache_hits.inc()
            return msgspec.structs.replace(known, from_cache=True)
        context, settings = self._scene(asked.context, attempt)

        def evaluated(limits: Limits) -> ConditionOutcome:
            bounded = replace(settings, limits=limits)
            return conditions.evaluate(asked.condition_type, asked.expression, context, bounded)

        began = self.clock.monotonic()
        outcome = evaluated(self.quick_limits)
        if outcome.error is not None and outcome.error.code == LIMIT_REACHED:
            outcome = await self._bounded(lambda: evaluated(self.limits))
        seconds = self.clock.monotonic() - began
        self._count(contracts.CONDITION_EVALUATE.id, outcome.successful, seconds)
        reply = contracts.ConditionEvaluateReply(
            result=outcome.result,
            details=outcome.details,
            evaluation_time_ms=round(seconds * 1000, 3),
            from_cache=False,
        )
        if asked.cache_key and asked.use_cache and outcome.successful:
            self.cache.put(key, reply)
        return reply

    async def _timed(self, capability: str, work: Callable[[], T]) -> tuple[T, float]:
        """Return what `work` makes on a thread, and the milliseconds it took.

        Raises: AmpError with the code of what the caller described wrongly.
        """
        began = self.clock.monotonic()
        try:
            outcome = await self._bounded(work)
        except ConditionError as error:
            self._count(capability, False, self.clock.monotonic() - began)
            raise AmpError(error.code, error.message, retryable=False) from None
        seconds = self.clock.monotonic() - began
        self._count(capability, True, seconds)
        return outcome, round(seconds * 1000, 3)

    async def _bounded(self, work: Callable[[], T]) -> T:
        """Return what `work` makes on a thread. Its fuel ends it; the timeout ends the waiting for a thread."""
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            async with asyncio.timeout(self.section.evaluation_timeout):
                return await running
        except TimeoutError:
            raise AmpError(
                "TIMEOUT",
                f"the evaluation was not done within {self.section.evaluation_timeout:g} s: too many wait for it",
                retryable=True,
            ) from None

    def _count(self, capability: str, successful: bool, seconds: float) -> None:
        self._evaluations.labels(capability, "evaluated" if successful else "failed").inc()
        self._seconds.observe(seconds)

    def _question(self, incoming: Incoming, kind: type[Q]) -> tuple[Q, Attempt | None]:
        """Return the parameters as the contract's struct, templates filled when a task attempt asks.

        Raises: InvalidParameters from a stranger's, INVALID_INPUT or the template's error from a task's.
        """
        attempt = attempt_of(incoming)
        if attempt is None:
            try:
                return msgspec.convert(incoming.parameters, kind), None
            except msgspec.ValidationError as problem:
                raise _invalid(problem) from None
        try:
            filled = templates.render(
                incoming.parameters,
                templates.Scope(
                    variables=attempt.variables, declared=frozenset(attempt.declared), now=self.clock.now()
                ),
            )
        except TemplateError as error:
            raise AmpError(error.code, error.message, {"path": error.path}, retryable=False) from None
        try:
            return msgspec.convert(filled, kind, strict=False), attempt
        except msgspec.ValidationError as problem:
            raise AmpError("INVALID_INPUT", str(problem), retryable=False) from None

    def _scene(
        self, context: Mapping[str, Any], attempt: Attempt | None
    ) -> tuple[Mapping[str, Any], ConditionSettings]:
        """Return what the conditions see: the given context, over the variables of the task that asks."""
        declared: frozenset[str] = frozenset()
        if attempt is not None:
            context = {**attempt.variables, **context}
            declared = frozenset(attempt.declared)
        return context, ConditionSettings(declared=declared, now=self.clock.now(), limits=self.limits)


def attempt_of(incoming: Incoming) -> Attempt | None:
    """Return the attempt that a request's context describes, None when the context is none of ours.

    Raises: InvalidParameters when the context has a token but is no whole attempt.
    """
    if incoming.context is None or "token" not in incoming.context:
        return None
    try:
        return msgspec.convert(incoming.context, Attempt)
    except msgspec.ValidationError as problem:
        raise InvalidParameters(f"context: {problem}", {"path": "$.context"}) from None


def _task_result(reply: msgspec.Struct, primary: Any) -> TaskResult:
    return TaskResult(result=msgspec.structs.asdict(reply), primary=primary)


def _problem(error: ExpressionError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "position": error.position}


def _invalid(problem: msgspec.ValidationError) -> InvalidParameters:
    reason, _, place = str(problem).partition(" - at `")
    return InvalidParameters(str(problem), {"path": place.rstrip("`") or "$", "reason": reason})
