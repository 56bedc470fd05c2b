"""What the configuration makes of a decision, from files alone: the gateway's own policy, without a gateway."""

from __future__ import annotations

from dataclasses import replace

import click

from mlx_router.config import Config
from mlx_router.errors import AdapterError, ConfigError
from mlx_router.gateway import policy
from mlx_router.gateway.catalog import adapter_entries
from mlx_router.gateway.routes import Routes, build_routes
from mlx_router.head.decision import Decision, Target


class Targets:
    """Minimum scores, and the table of manifests and `[routes]`; where that cannot be made, a warning says why."""

    def __init__(self, config: Config) -> None:
        self._policy = config.policy
        self._routes: Routes | None = None
        try:
            self._routes = build_routes(config, adapter_entries(config))
        except (AdapterError, ConfigError) as error:
            click.echo(f"warning: no targets: {error.message}", err=True)

    def of(self, decision: Decision) -> Decision:
        """The decision as the gateway would take it, with who answers while every server is up.

        Without a specialist or upstream the target is None; `unavailable` says that it is not the domain's own.
        """
        decision = policy.limit_selections(decision, self._policy.max_active)
        decision = policy.apply_min_scores(decision, self._policy)
        if self._routes is None or not self._routes.pools:
            return decision
        plan = policy.plan_auto(decision, self._routes)
        if plan.note or not plan.steps:
            decision = policy.substituted(decision)
        step = plan.steps[0] if plan.steps else None
        return replace(decision, target=Target(step.pools[0], step.adapter) if step else None)
