"""One suite runs over a kernel and its reference: each fixture is first the one module, then the other."""

from importlib import import_module

import pytest


def _both(name):
    @pytest.fixture(scope="session", name=name, params=["kernels", "kernels.reference"])
    def implementation(request):
        return import_module(f"recserve.{request.param}.{name}")

    return implementation


ids = _both("ids")
vectors = _both("vectors")
filters = _both("filters")
bitmaps = _both("bitmaps")
ivf = _both("ivf")
