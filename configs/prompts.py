"""The text prompts that are shipped, with their CLIP token ids.

`PROMPTS` has the sets of LMGait's Table 6: "correct" describes the moving body in our
words, as the paper prints none; "wrong" is the paper's (section 4.3); "random" are six
neutral captions of ours. `TOKEN_IDS` holds the ids of each prompt with start and end
token, without padding (CLIPTokenizer of transformers 4.57.6, OpenAI's vocabulary).
These prompts need no vocabulary file, any other prompt does
(gaitjax/parts/clip_tokenizer.py).
"""

PROMPTS = {
    "correct": (
        "Attention is given to the walker, such as the swinging arms, the "
        "striding legs, and the moving torso.",
    ),
    "wrong": (
        "Attention is given to environmental details such as the blue sky, the "
        "clean ground, and the clear windows.",
    ),
    "random": (
        "A bowl of fruit on a wooden table.",
        "A red bus stops at the corner.",
        "Two cups of coffee and a newspaper.",
        "A small boat on a quiet lake.",
        "A clock hangs on a white wall.",
        "Fresh bread in a paper bag.",
    ),
}

# fmt: off
_IDS = (
        (49406, 4936, 533, 4302, 531, 518, 6150, 267, 2046, 601, 518, 26760, 5706, 267,
     518, 1493, 796, 7072, 267, 537, 518, 3584, 937, 706, 269, 49407),
        (49406, 4936, 533, 4302, 531, 7831, 2353, 2046, 601, 518, 1746, 2390, 267, 518,
     3772, 2461, 267, 537, 518, 3143, 5437, 269, 49407),
        (49406, 320, 3814, 539, 5190, 525, 320, 9057, 2175, 269, 49407),
        (49406, 320, 736, 2840, 9822, 536, 518, 5253, 269, 49407),
        (49406, 1237, 11463, 539, 2453, 537, 320, 8786, 269, 49407),
        (49406, 320, 2442, 4440, 525, 320, 7557, 2553, 269, 49407),
        (49406, 320, 6716, 21785, 525, 320, 1579, 2569, 269, 49407),
        (49406, 2975, 5066, 530, 320, 2802, 3365, 269, 49407),
)
# fmt: on

TOKEN_IDS = dict(
    zip(
        (prompt for prompts in PROMPTS.values() for prompt in prompts),
        _IDS,
        strict=True,
    )
)
