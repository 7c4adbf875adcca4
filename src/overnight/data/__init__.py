"""Documents -> tokens -> shards -> batches."""
