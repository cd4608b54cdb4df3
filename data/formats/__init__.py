"""Data that others wrote, in our form: members of foreign tars, conversations in JSON, and packing them into shards."""
