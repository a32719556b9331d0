"""What answers are worth: the recall of both indexes on the same users, and how alike the final lists are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from google.protobuf.json_format import MessageToJson

from recserve.loadtest.baselines.data import load_data
from recserve.loadtest.baselines.index import Choice, choice_of, faiss, save, tuned_index
from recserve.loadtest.baselines.recommender import open_tower, user_vectors
from recserve.loadtest.reference.schema import SPACE
from recserve.loadtest.runs.errors import TargetError
from recserve.loadtest.runs.target import Target
from recserve.server.bundle.files import file_sha256
from recserve.server.bundle.layout import MANIFEST
from recserve.server.bundle.reader import open_bundle
from recserve.server.config import load_settings
from recserve.server.pipeline.search import ExactSearcher, open_searcher
from recserve.v1 import recommender_pb2 as pb
from recserve.v1.recommender_pb2_grpc import RecommenderServiceStub

QUERIES: Final = 400
"""Users whose nearest items both indexes look for."""
SEED: Final = 1
ANSWER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Indexes:
    """The index of the straightforward service, and how well both find what is nearest.

    Attributes:
        path: its file.
        choice: what it is.
        own_recall: of the bundle's index, for the same users and number of answers.
    """

    path: Path
    choice: Choice
    own_recall: float


def indexes(config: Path, folder: Path, tell: Callable[[str], None]) -> Indexes:
    """The straightforward service's index for a server's configuration; made if the folder does not have it.

    Args:
        config: of the server.
        folder: that keeps it.
        tell: told what happens.
    """
    settings = load_settings(file=config)
    bundle = open_bundle(settings.bundles[0].path, verify=False)
    exported = file_sha256(bundle.path / MANIFEST)[:12]
    path = folder / f"{exported}-faiss-{faiss.__version__}.index"
    about = path.with_name(f"{path.stem}.recall.json")
    if about.exists():
        return Indexes(path, choice_of(path), json.loads(about.read_text("utf-8"))["own_recall"])
    tell("an index for the straightforward service, once: training, adding and tuning FAISS's")
    space, data = bundle.space(SPACE), load_data(settings)
    users = np.random.default_rng(SEED).permutation(len(data.users.rows))[:QUERIES]
    queries = user_vectors(open_tower(data), data.users.taste[users])
    k = min(data.placement.candidates, len(space.vectors))
    nearest = np.stack([rows for rows, _ in ExactSearcher(space.vectors).search(queries, k, [None] * len(queries))])
    searcher = open_searcher(space, "cpu")
    found = [searcher.search(query[np.newaxis], k, [None])[0][0] for query in queries]
    own = float(np.mean([np.isin(mine, exact).mean() for mine, exact in zip(found, nearest, strict=True)]))
    index, choice = tuned_index(space.vectors, queries, nearest, own)
    save(path, index, choice)
    about.write_text(json.dumps({"own_recall": own}), "utf-8")
    return Indexes(path, choice, own)


def lists(target: Target, messages: Sequence[pb.RecommendRequest]) -> list[list[str]]:
    """The item ids that a service answers with.

    Raises:
        TargetError: it does not answer a request.
    """
    return _over_http(target, messages) if target.protocol == "http" else _over_grpc(target, messages)


def overlap(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> float:
    """The mean share of our lists' items that their lists have."""
    shares = [len(set(mine) & set(other)) / len(mine) for mine, other in zip(ours, theirs, strict=True)]
    return float(np.mean(shares))


def _over_grpc(target: Target, messages: Sequence[pb.RecommendRequest]) -> list[list[str]]:
    with grpc.insecure_channel(target.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub = RecommenderServiceStub(channel)
        try:
            answers = [stub.Recommend(each, timeout=ANSWER_SECONDS) for each in messages]
        except grpc.RpcError as error:
            raise TargetError(f"{target.address} does not answer: {error.code().name}, {error.details()}") from error
    return [[item.item_id for item in answer.items] for answer in answers]


def _over_http(target: Target, messages: Sequence[pb.RecommendRequest]) -> list[list[str]]:
    connection = HTTPConnection(target.host, target.port, timeout=ANSWER_SECONDS)
    found = []
    for each in messages:
        body = MessageToJson(each, preserving_proto_field_name=True, indent=None)
        connection.request("POST", "/v1/Recommend", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise TargetError(f"{target.address} does not answer: {response.status}, {answer[:200]!r}")
        found.append([item["item_id"] for item in json.loads(answer)["items"]])
    connection.close()
    return found
