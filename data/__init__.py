"""From folders of webdataset shards to packed rows: stores, index, plan, decoding, encoding, loading.

Imports nothing of the other packages and never `torch.distributed`; it knows only (dp_rank, dp_size).
"""
