"""How much an expression may ask for. Every bound has a unit; reaching one raises EXPRESSION_LIMIT."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """The bounds of one evaluation. A step is one visited node, one visited element or 32 produced characters.

    Parsed expressions are remembered for the very object they were parsed with, so make one and keep it.
    """

    max_source_chars: int = 4096
    max_nodes: int = 400
    max_depth: int = 40
    max_steps: int = 200_000
    max_string_chars: int = 65_536
    max_items: int = 100_000
    max_integer: int = 10**30
    max_result_nodes: int = 1_000_000
    max_result_chars: int = 16 * 1024 * 1024


DEFAULT_LIMITS = Limits()
CONDITION_LIMITS = Limits(max_source_chars=10_000)
"""Conditions may be longer; the setting `max_expression_length` lowers it."""
