"""Documents -> tokens -> shards -> batches."""

SHARD_TOKENS = 100_000_000  # of a shard, unless told otherwise: the lecture's
