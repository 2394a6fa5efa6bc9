"""What every test shares: one thread, no network, a cache of its own, and the tiny model.

Tests marked `real` use the user's own cache and the network, where what they need is fetched on first use.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from support.tiers import FIRST, mark_cases

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

# The shapes in the signatures are checked at every call in the tests, and only there.
SHAPED = (
    "helpers.updates.lora",
    "helpers.projection.alignment_matrix",
    "helpers.projection.subspaces",
    "helpers.models.generation",
    "helpers.models.encoding",
    "helpers.models.activations",
    "helpers.monitors.readouts",
    "helpers.monitors.probes",
    "helpers.neurons.neuron_scores",
    "helpers.neurons.interventions",
    "helpers.projection.safelora",
    "helpers.projection.restorations",
    "helpers.neurons.hybrid_precision",
)
install_import_hook(SHAPED, "beartype.beartype")
CACHE = "AFTER_UPDATE_CACHE"
COMPUTE = "AFTER_UPDATE_COMPUTE"
USERS_CACHE = os.environ.get(CACHE)
LOOPBACK = {"127.0.0.1", "::1", "localhost", ""}
COLLECTED = pytest.StashKey[list[pytest.Item]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items) -> None:
    """The dearest files first, and the cases that are slow; all is kept for test_tiers before anything is deselected."""
    mark_cases(items)
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    config.stash[COLLECTED] = list(items)


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory) -> Iterator[Path]:
    """An empty cache for the session, so that nothing passes because of what a user has there."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE, str(folder))
        if COMPUTE not in os.environ:  # many tests compare bits that were rounded to bf16; test_compute tries both
            patch.setenv(COMPUTE, "bf16")
        yield folder


def use_real_cache(patch: pytest.MonkeyPatch) -> None:
    """Points the cache back to the user's own, as it was before the session."""
    if USERS_CACHE is None:
        patch.delenv(CACHE, raising=False)
    else:
        patch.setenv(CACHE, USERS_CACHE)


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch) -> None:
    """Only loopback can be reached, except in tests marked `real` (which also get the user's cache) or `network`."""
    if request.node.get_closest_marker("real"):
        use_real_cache(monkeypatch)
        return
    if request.node.get_closest_marker("network"):
        return

    def guarded(real, host_of):
        def call(*args, **kwargs):
            host = host_of(args)
            if host is not None and str(host) not in LOOPBACK:
                raise OSError(f"a test tried to reach {host}; only loopback is allowed")
            return real(*args, **kwargs)

        return call

    def peer(args) -> object:
        return None if args[0].family == socket.AF_UNIX else args[1][0]

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect, peer))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, peer))
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda args: args[0] if args else None))


@pytest.fixture(scope="session")
def tiny(isolated_cache) -> Path:
    """Folder of the tiny random model."""
    from helpers.models import loading

    return loading.tiny()


@pytest.fixture
def tiny_model(tiny):
    """The tiny model in float32, fresh for each test: training and quantizing change what they are given."""
    from helpers.models import loading

    return loading.load(tiny, "fp32")


@pytest.fixture(scope="session")
def embedded() -> Path:
    """Folder of the embedded base model in the user's cache; only for tests marked `real`."""
    from helpers.models import loading

    with pytest.MonkeyPatch.context() as patch:
        use_real_cache(patch)
        return loading.embedded()
