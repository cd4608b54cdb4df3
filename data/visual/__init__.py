"""Pictures and clips: how large the model sees them, and their pixels, decoded where a decoder can do no harm."""
