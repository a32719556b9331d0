"""Clients that have not got our stubs get the answers that our stubs get."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from recserve.v1 import recommender_pb2 as pb
from recserve.v1 import recommender_pb2_grpc

ROOT = Path(__file__).parents[3]
NODE = Path(__file__).parent / "node"

# RankItems is not among them: it needs a ranker, which the tiny bundle does not have.
REQUESTS = {
    "Recommend": {"user_id": "user-03", "count": 7, "fields": ["price", "category", "in_stock"], "reasons": True},
    "SimilarItems": {"item_ids": ["item-005", "no such item"], "count": 5},
    "BatchRecommend": {"requests": [{"user_id": "user-01", "count": 3}, {"user_id": "nobody"}]},
}
PERSONAL = ("request_id", "recommendation_id", "times")
"""Fields of an answer that differ from one call to the next."""


def same_part(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from call to call, at any depth."""
    return json.loads(
        json.dumps(answer), object_hook=lambda part: {name: v for name, v in part.items() if name not in PERSONAL}
    )


def through_stubs(address: str, method: str) -> dict[str, Any]:
    request = json_format.ParseDict(REQUESTS[method], getattr(pb, f"{method}Request")())
    with grpc.insecure_channel(address) as channel:
        answer = getattr(recommender_pb2_grpc.RecommenderServiceStub(channel), method)(request, timeout=10)
    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


@pytest.mark.parametrize("method", REQUESTS)
def test_a_client_that_knows_only_reflection(address: str, method: str) -> None:
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        found = pool.FindServiceByName("recserve.v1.RecommenderService").methods_by_name[method]
        request_type, response_type = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
        call = channel.unary_unary(
            f"/recserve.v1.RecommenderService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        answer = call(json_format.ParseDict(REQUESTS[method], request_type()), timeout=10)
    found_json = json_format.MessageToDict(answer, preserving_proto_field_name=True, descriptor_pool=pool)
    assert same_part(found_json) == same_part(through_stubs(address, method))
    assert found_json


@pytest.fixture(name="node", scope="session")
def fixture_node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs the Node client."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: the Node client needs it")
    folder = tmp_path_factory.mktemp("node")
    for file in NODE.iterdir():
        shutil.copy(file, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=folder, check=True, timeout=200, capture_output=True)

    def run(address: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        arguments = ["node", "recommend.js", address, str(ROOT / "proto"), method, json.dumps(request)]
        done = subprocess.run(
            arguments, cwd=folder, check=True, timeout=30, capture_output=True, env={**os.environ, "NODE_PATH": ""}
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.mark.parametrize("method", REQUESTS)
def test_a_node_client_gets_the_same_answer(address: str, node: Callable[..., dict[str, Any]], method: str) -> None:
    answer = json_format.ParseDict(node(address, method, REQUESTS[method]), getattr(pb, f"{method}Response")())
    found = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    assert same_part(found) == same_part(through_stubs(address, method))


def test_a_node_client_reads_errors(address: str, node: Callable[..., dict[str, Any]]) -> None:
    error = node(address, "Recommend", {"user_id": "", "count": 0})
    assert error["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "user_id" in error["details"]
