"""What the adapters' manifests and their installed states say, as plain entries for the routing table."""

from __future__ import annotations

from mlx_router.config import Config
from mlx_router.gateway.routes import AdapterEntry
from mlx_router.lora.registry import Registry, routes_from_manifests


def adapter_entries(config: Config) -> list[AdapterEntry]:
    """Every adapter that has a manifest, by name, with the domains that it answers.

    Those are the ones that it claims, less those that another stands in for while its own weights are not there.
    """
    records = Registry(config.home).records()
    answers: dict[str, list[str]] = {item.name: [] for item in records}
    routes = routes_from_manifests(records)
    for item in records:  # its own first: they name it where a request does not
        answers[item.name] += [domain for domain in item.domains if routes[domain].adapter == item.name]
    for domain, route in routes.items():
        if domain not in answers[route.adapter]:
            answers[route.adapter].append(domain)
    return [
        AdapterEntry(
            name=item.name,
            domains=tuple(answers[item.name]),
            specialist=item.specialist,
            status=item.status,
            reason=item.reason,
            title=item.title,
        )
        for item in records
    ]
