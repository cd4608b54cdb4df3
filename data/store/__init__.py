"""Where shards lie: one interface, with local folders and object storage behind it."""
