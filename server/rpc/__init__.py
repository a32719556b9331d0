"""The way of a request from bytes to bytes.

app          a service on the network: a front, health, reflection, drain
fronts       what speaks gRPC: grpcio, pygrpc-native
servicer     the methods, whatever front brings the bytes
convert      request -> query: validate (sizes, ranges), placements (defaults), resolve (names in a bundle)
admission    lets in what can be served in time
batcher      micro-batches for the compute threads
answers      result -> response
status       error -> status: one table
"""

from __future__ import annotations

from recserve.server.address import ListenError
from recserve.server.rpc.app import RpcServer
from recserve.server.rpc.errors import FrontError, PlacementError
from recserve.server.rpc.placements import check_placements
from recserve.server.rpc.servicer import RecommenderService

__all__ = ["FrontError", "ListenError", "PlacementError", "RecommenderService", "RpcServer", "check_placements"]
