# SPDX-License-Identifier: MIT
"""hypothesis: each example of a simulated test starts with a fresh network.

The seed of an example's network is a function of the test's seed and a number that hypothesis draws
with the example: it is found again in a replay, and shrinks to the test's own seed.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from pytest_machnet import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_machnet.labs import Lab


def is_hypothesis(item: pytest.Item) -> bool:
    """Whether a test is one with ``@given``."""
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


@contextlib.contextmanager
def fresh_examples(item: Any, lab: Lab) -> Iterator[None]:
    """While a test runs, each of its examples has a lab of its own.

    Args:
        item: A test with ``@given``.
        lab: The lab that its fixtures were made from.
    """
    arguments = frozenset(cases.FIXTURES.intersection(item._fixtureinfo.argnames))  # noqa: SLF001
    _refuse_fixtures_between(item, arguments)
    handle = item.obj.hypothesis
    inner = handle.inner_test
    test = getattr(item.obj, "__func__", item.obj)
    settings = _without_health_check(item, test, arguments)
    seeded = _seed(test, lab.case.seed)
    handle.inner_test = _each_with_its_lab(item, lab, inner, arguments)
    try:
        yield
    finally:
        handle.inner_test = inner
        if seeded:
            test._hypothesis_internal_use_seed = None  # noqa: SLF001
        if settings is not None:
            test._hypothesis_internal_use_settings = settings  # noqa: SLF001


def _seed(test: Any, seed: int) -> bool:
    """Have the examples drawn by the test's seed, so that its replay draws them again anywhere.

    Returns:
        Whether it was done: a seed or ``derandomize`` of the user's own goes before.
    """
    from hypothesis import core
    from hypothesis import settings as Settings  # noqa: N812

    settings: Any = getattr(test, "_hypothesis_internal_use_settings", None) or Settings.default
    given = getattr(test, "_hypothesis_internal_use_seed", None) is not None
    if given or settings.derandomize or core.global_force_seed is not None:
        return False
    test._hypothesis_internal_use_seed = seed  # noqa: SLF001
    return True


def _refuse_fixtures_between(item: Any, arguments: frozenset[str]) -> None:
    """A fixture of the test's own that is built on ours is made once, for all examples."""
    import pytest

    for name, definitions in item._fixtureinfo.name2fixturedefs.items():  # noqa: SLF001
        ours = cases.FIXTURES.intersection(definitions[-1].argnames)
        if ours and name not in cases.FIXTURES:
            pytest.fail(
                f"fixture {name!r} is built on {min(ours)!r}, and would be made once for all "
                "examples of hypothesis, each of which has a fresh network: call a function in "
                "the test instead",
                pytrace=False,
            )
    through = cases.uses_plugin(item) - arguments
    if through and not arguments:
        pytest.fail(
            f"fixture {min(through)!r} is not an argument of the test, and so can't be made for "
            "each example of hypothesis",
            pytrace=False,
        )


def _without_health_check(item: Any, test: Any, arguments: frozenset[str]) -> Any:
    """Hypothesis warns of fixtures that are not reset between examples; ours are.

    Returns:
        The settings to be restored; None: nothing was changed.
    """
    from hypothesis import HealthCheck
    from hypothesis import settings as Settings  # noqa: N812

    for name in item._fixtureinfo.argnames:  # noqa: SLF001
        definitions = item._fixtureinfo.name2fixturedefs.get(name)  # noqa: SLF001
        if name in arguments or not definitions:
            continue
        if definitions[-1].scope == "function" and definitions[-1].baseid is not None:
            if name == "request" or getattr(definitions[-1], "params", None):
                continue
            return None  # a fixture for which the warning is due
    before: Any = getattr(test, "_hypothesis_internal_use_settings", Settings.default)
    test._hypothesis_internal_use_settings = Settings(  # noqa: SLF001
        parent=before,
        suppress_health_check={
            *before.suppress_health_check,
            HealthCheck.function_scoped_fixture,
        },
    )
    return before


def _draw_number() -> int:
    """Which seed an example gets, drawn by hypothesis."""
    from hypothesis import strategies as st
    from hypothesis.control import current_build_context

    data = current_build_context().data
    if getattr(data, "max_choices", None) == 0:
        return 0  # an explicit example: there is nothing to draw from
    return int(data.draw(st.integers(0, 2**32 - 1)))


def _each_with_its_lab(
    item: Any, first: Lab, inner: Callable[..., Any], arguments: frozenset[str]
) -> Callable[..., Any]:
    from hypothesis import note
    from hypothesis.errors import HypothesisException

    from pytest_machnet.labs import open_lab

    def close_current() -> None:
        lab = item.stash.get(cases.LAB, first)
        if lab is not first:
            item.stash[cases.LAB] = first
            lab.close()

    @functools.wraps(inner)
    def example(*args: Any, **kwargs: Any) -> Any:
        close_current()  # of an example that failed before
        number = _draw_number()
        case = first.case.for_example(number)
        lab = open_lab(case)
        item.stash[cases.LAB] = lab
        note(f"machnet: seed {case.seed} (number {number} of the test's {first.case.seed})")
        try:
            for name in arguments.intersection(kwargs):
                kwargs[name] = lab.fixture(name)
            result = inner(*args, **kwargs)
            lab.check_leaks()
        except HypothesisException:
            close_current()
            raise
        close_current()
        return result

    return example
