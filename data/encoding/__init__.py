"""From the JSON of a sample to tokens, targets and positions."""
