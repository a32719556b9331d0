"""From validated queries to answers: synchronous, over arrays, without I/O.

types       what goes in and out: Query, UserState, Result
pipeline    the stages in their order
towers      embed: user vectors from ONNX networks; cache keeps them
sources     retrieve: who proposes candidates; search finds neighbours, filters decide who passes,
candidates merges the proposals
assemble    rank: the features' inputs; ranker runs the forests
similar     items like given items
scoring     rerank: from margins to the score; reasons say why
golden      requests that every bundle must answer as it did at export
"""
