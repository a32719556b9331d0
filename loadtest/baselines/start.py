"""How both servers of the straightforward service start."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from recserve.loadtest.baselines.data import load_data
from recserve.loadtest.baselines.index import exact_index, load
from recserve.loadtest.baselines.recommender import Recommender
from recserve.server.config import load_settings


def opened(arguments: Sequence[str] | None = None) -> Recommender:
    """The service that the command line describes, warm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="of recserve serve: bundle, snapshot, placement")
    parser.add_argument("--index", type=Path, help="of baselines.index; left out: exact search")
    options = parser.parse_args(arguments)
    data = load_data(load_settings(file=options.config))
    index = exact_index(data.items.vectors) if options.index is None else load(options.index)[0]
    recommender = Recommender(data, index)
    for user in list(data.users.rows)[:20]:
        recommender.recommend(user, 20)
    gc.collect()
    gc.freeze()  # what is there stays, and need not be looked at again
    return recommender
