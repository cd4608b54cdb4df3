"""Sizes of pictures and clips that were worked out by hand from the written rules."""

SMALL, LARGE = (56 * 56, 28 * 28 * 1280), (4 * 784, 16384 * 784)

# (height, width), (min_pixels, max_pixels) -> resized, patches, visual tokens. Sides go to the nearest multiple of 28
# (halves to the even one), then both are scaled into the limits: rounded down from above, up from below.
GOLDEN_SIZES = [
    ((224, 224), SMALL, (224, 224), 256, 64),
    ((480, 640), SMALL, (476, 644), 1564, 391),
    ((1080, 1920), SMALL, (728, 1316), 4888, 1222),
    ((1080, 1920), LARGE, (1092, 1932), 10764, 2691),
    ((2160, 3840), LARGE, (2156, 3836), 42196, 10549),
    ((14, 14), SMALL, (56, 56), 16, 4),
    ((28, 28), SMALL, (56, 56), 16, 4),
    ((42, 42), SMALL, (56, 56), 16, 4),
    ((70, 70), SMALL, (56, 56), 16, 4),  # 70 / 28 = 2.5 goes to the even 2
    ((40, 2000), SMALL, (28, 1988), 284, 71),
    ((30, 5000), SMALL, (28, 5012), 716, 179),
]

# Derived by hand, for 30 frames a second and the defaults (2 a second, 768 frames, 768 tokens a temporal patch before
# the cap, 16384 tokens a clip). A token is 28 x 28 pixels of a temporal patch, which is two frames.
#
# 720 x 1280 (25.7 x 45.7 tokens). Uncapped, 768 tokens: sides times sqrt(768 / (25.714 * 45.714)) = 0.80829 are
# 20.78 x 36.95, so 20 x 36. Capped at c tokens: sqrt(c * 9 / 16) x sqrt(c * 16 / 9), rounded down.
# 40 x 8000 (an aspect of 200): 1.43 x 285.7 tokens round to 1 x 286; capped, one row of c.
GOLDEN_CLIPS = [
    # frames, at most, height, width -> taken, (temporal, height, width) of the grid in tokens
    (1, 768, 720, 1280, 2, (1, 20, 36)),  # the one frame twice
    (60, 768, 720, 1280, 4, (2, 20, 36)),  # 2 s: 4 frames
    (3840, 768, 720, 1280, 256, (128, 8, 15)),  # 128 s: 128 patches, c = 128: 8.49 x 15.08; 15360 tokens
    (3870, 768, 720, 1280, 258, (129, 8, 15)),  # 129 s: c = 16384 // 129 = 127: 8.45 x 15.03; 15480 tokens
    (45000, 768, 720, 1280, 768, (384, 4, 8)),  # 25 min: 3000 wanted, 768 allowed; c = 42: 4.86 x 8.64; 12288 tokens
    (324000, 768, 720, 1280, 768, (384, 4, 8)),  # 3 h: the same
    (45000, None, 720, 1280, 3000, (1500, 2, 4)),  # c = 10: 2.37 x 4.22; 12000 tokens
    # 3 h without a limit: 21600 frames are 10800 patches and c = 1, below 4. Thinned to 16384 / 4 = 4096 patches of 4
    # tokens: 1.5 x 2.67 would round down to 2 tokens, so the shape of 4 nearest to 9:16, 2 x 2; 16384 tokens.
    (324000, None, 720, 1280, 8192, (4096, 2, 2)),
    (1, 768, 40, 8000, 2, (1, 1, 286)),
    (60, 768, 40, 8000, 4, (2, 1, 286)),
    (3840, 768, 40, 8000, 256, (128, 1, 128)),  # 16384 tokens
    (3870, 768, 40, 8000, 258, (129, 1, 127)),
    (45000, 768, 40, 8000, 768, (384, 1, 42)),
    (324000, 768, 40, 8000, 768, (384, 1, 42)),
    (324000, None, 40, 8000, 8192, (4096, 1, 4)),
]
