"""Text to batches: corpus, snapshot, split, tokenizer, shards, loader, in this order."""
