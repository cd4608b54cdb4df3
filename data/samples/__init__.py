"""The sample data set of the quickstart, made from real material that ships inside Python packages.

Run `python -m data.samples --out DIR`. Handwritten scans and two photographs come from scikit-learn, the other
photographs from scikit-image, fonts from matplotlib; nothing is downloaded. Reading order: `splits` (what is held out),
`digits`, `scenes`, `words`, `clips` (material), `phrases`, `items`, `pictures`, `tasks`, `text` (samples), `tokenizer`,
`write`, `recipe`, `__main__`. `kinds` and `steps` make a sample of each kind of data for docs and tests.
"""
