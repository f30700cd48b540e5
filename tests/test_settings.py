"""Every field of every config has a domain; a value outside is named at once."""

import functools

import pytest
from ml_collections import ConfigDict

from gaitjax import command_line, settings, state
from tests.test_configs import CONFIGS, load

# fields whose values are of several kinds, see `WRONG` below
OPEN = ("sharding", "sharding_rules")


def leaves(tree, path=()):
    for key, value in tree.items():
        if path + (key,) in ((name,) for name in OPEN):
            continue
        if isinstance(value, ConfigDict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def wrong_values(value):
    """Values outside of any domain that `value` may be in, with a word for each."""
    yield "type", {"wrong": "type"}
    yield "none", None
    if isinstance(value, bool):
        yield "number", 2
    elif isinstance(value, int):
        yield "negative", -5
        yield "text", "many"
        yield "fraction", 0.5
    elif isinstance(value, float):
        yield "negative", -0.5
        yield "infinite", float("inf")
        yield "text", "much"
    elif isinstance(value, str):
        yield "number", 3
    elif isinstance(value, tuple):
        yield "number", 3
        yield "of groups", ({},)


@pytest.mark.parametrize("name", [*CONFIGS, "cargait"])
def test_every_field_refuses_what_is_outside_of_its_domain(name):
    config = load(name)
    settings.check(config)
    for path, value in leaves(config):
        field = "config." + ".".join(path)
        *groups, last = path
        group = functools.reduce(lambda tree, key: tree[key], groups, config)
        with config.unlocked():
            for kind, wrong in wrong_values(value):
                del group[last]  # else ml_collections makes a float of an int
                group[last] = wrong
                with pytest.raises(ValueError) as refused:
                    settings.check(config)
                assert field in str(refused.value), (kind, str(refused.value))
            del group[last]
            group[last] = value
    settings.check(config)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("evaluation.frame_multiple", 0, "1 or more; got 0"),
        ("evaluation.batch_size", 0, "1 or more; got 0"),
        ("evaluation.max_frames", -5, "0 or more; got -5"),
        ("evaluation.modalities", ("rgb",), "'rgb'; choose from frames, masks"),
        ("evaluation.protocols", (), "not empty"),
        (
            "evaluation.protocols",
            ("ccpg",),
            "one of ccpg_gait.*own:GALLERY.*got 'ccpg'",
        ),
        ("evaluation.metric", "manhattan", "'manhattan'; choose from euclidean"),
        ("data.silhouette_size", 128, "a tuple of 2 entries.*got 128"),
        ("data.silhouette_size", (64,), "a tuple of 2 entries"),
        ("data.max_damaged", -1, "0 or more; got -1"),
        ("data.num_frames", 0, "1 or more; got 0"),
        ("optimizer.no_decay", ("(",), r"'\(' is no regular expression"),
        ("optimizer.learning_rate", 0.0, "above 0; got 0.0"),
        ("optimizer.learning_rate", -1.0, "above 0; got -1.0"),
        ("optimizer.name", "magic", "'magic'; choose from sgd, adam, adamw, muon"),
        ("optimizer.schedule", "magic", "'magic'; choose from constant"),
        ("optimizer.rise_steps", 400, "must be below config.train.steps=400"),
        ("model.embedding_size", 0, "1 or more; got 0"),
        ("model.channels", ("a", "b"), "an integer"),
        ("model.dtype", "int8", "'int8'; choose from float32, bfloat16"),
        ("seed", -1, "from 0 to"),
        ("frozen", ("[",), r"'\[' is no regular expression"),
        ("train.trainable", "(", r"'\(' is no regular expression"),
        ("train.keep", 0, "1 or more; got 0"),
        ("mesh.data", 0, "-1 .the rest. or 1 or more"),
        ("loss.triplet.margin", -0.1, "0 or more; got -0.1"),
        ("train.accumulate", 3, "accumulate=3 does not divide .*ids_per_batch=8"),
        ("data.ids_per_batch", 1, "compares identities, but .* is 1"),
        ("data.image_size", (10**6, 2), "from 1 to 8192"),
        ("mode", "prepare", "'prepare'; choose from train, evaluate, import"),
        ("train.steps", 99_999_999_999, "does not fit into 32 bits; it must be an int"),
        ("optimizer.milestones", (2**31,), "does not fit into 32 bits"),
        ("optimizer.milestones", (30, 20), "each above the one before; got .30, 20"),
        ("optimizer.milestones", (30, 30), "each above the one before; got .30, 30"),
        ("optimizer.learning_rate", 1e300, "does not fit into 32 bits; it must be a f"),
        ("data.min_frames", 9, "min_frames=9 is above config.data.num_frames=8"),
        ("data.workers", 1_000_000, "from 0 to 1024; got 1000000"),
        ("data.silhouette_size", (10**8, 10**8), "from 1 to 8192"),
        ("name", "../escaped", "printable, no path out of runs/"),
        ("name", "/escaped", "printable, no path out of runs/"),
        ("name", "two\nlines", "printable, no path out of runs/"),
    ],
)
def test_the_domain_of_a_field_is_named(field, value, message):
    config = load("gaitbase")
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=rf"config\.{field}.*{message}|{message}"):
        settings.check(config)


WRONG = [  # in place of a group or of a field of several kinds, from a config file
    ("model", 3, "must return an ml_collections.ConfigDict with the field model.name"),
    ("loss", 3, "config.loss must be a group; got 3"),
    ("loss", None, "config.loss must be a group; got None"),
    ("data", (), "config.data must be a group of the fields data_dir"),
    ("warmup", {"steps": 3}, "config.warmup.losses is missing"),
    ("pretrained", 3, "config.pretrained must be a group; got 3"),
    ("pretrained", {"stem": 3}, "config.pretrained.stem must be text; got 3"),
    ("sharding", 3, "config.sharding must be a tuple .*got 3"),
    ("sharding", (3,), r"config.sharding\[0\] must be a tuple of 2 entries; got 3"),
    ("sharding", ((".*", 3),), "3 for '.*' must be 'fsdp' or entries of None"),
    ("sharding", ((".*", ([1],)),), "must be 'fsdp' or entries of None"),
    ("sharding_rules", 3, "config.sharding_rules must be a group; got 3"),
    ("sharding_rules", {"fsdp": (3,)}, r"config.sharding_rules.fsdp\[0\] must be a"),
]


@pytest.mark.parametrize("field, value, message", WRONG)
def test_groups_have_domains_too(field, value, message):
    config = load("gaitbase")
    with config.unlocked(), config.ignore_type():
        if field in config:
            del config[field]
        config[field] = value
    with pytest.raises(ValueError, match=message):
        settings.check(config)


def test_what_could_not_train_anything_is_refused():
    config = load("gaitbase")
    config.loss.triplet.weight = config.loss.cross_entropy.weight = 0.0
    with pytest.raises(ValueError, match="config.loss has no loss of weight above 0"):
        settings.check(config)
    config.mode = "evaluate"
    settings.check(config)
    config = load("lmgait")
    config.warmup.losses = ()
    with pytest.raises(ValueError, match="config.warmup.losses has no loss"):
        settings.check(config)
    config = load("gaitbase")
    config.optimizer.schedule, config.train.steps = "cosine", 0
    with pytest.raises(ValueError, match="'cosine' needs config.train.steps or"):
        settings.check(config)


def test_options_that_leave_nothing_of_a_model_are_refused():
    config = load("gaitpart")
    config.model.squeeze = 1_000
    with pytest.raises(ValueError, match="squeeze=1000 leaves nothing of the"):
        settings.check(config)
    for name in ("gaitgl", "gaitedge"):
        config = load(name)
        config.model.halvings = 1_000_000
        with pytest.raises(ValueError, match="config.model.halvings.*from 0 to 16"):
            settings.check(config)
    config = load("swingait")
    config.model.drop_path = 1.0
    with pytest.raises(ValueError, match="config.model.drop_path.*from 0 to 0.9"):
        settings.check(config)


def test_an_empty_override_of_a_tuple_is_the_empty_tuple():
    config = load("swingait")
    with config.ignore_type():
        config.frozen, config.optimizer.no_decay = ("",), ("",)
    with pytest.raises(ValueError, match="config.optimizer.no_decay.*not empty"):
        settings.check(config)
    command_line.read_empty_tuples(config)
    assert config.frozen == config.optimizer.no_decay == ()
    settings.check(config)


@pytest.mark.parametrize(
    "field, pattern",
    [
        ("frozen", ("dense,frame1",)),
        ("train.trainable", "^nomatch"),
        ("optimizer.no_decay", ("bias", "nothing")),
        ("optimizer.adam_for", ("bias", "nothing")),
        ("optimizer.rates", (("nowhere", 0.1),)),
    ],
)
def test_a_pattern_that_matches_no_parameter_is_named(field, pattern):
    config = load("gaitbase")
    config.update_from_flattened_dict({field: pattern})
    message = rf"config\.{field}: .* matches no parameter .*stem.*\('a','b'\)"
    with pytest.raises(ValueError, match=message):
        state.build(config, state.example_batch(config))


def test_a_config_that_freezes_everything_is_refused():
    config = load("gaitbase")
    config.frozen = (".",)
    with pytest.raises(ValueError, match="matches every parameter: nothing is trained"):
        state.build(config, state.example_batch(config))


def test_a_pattern_may_name_a_part_that_is_switched_off():
    config = load("lmgait")
    config.model.text.enabled = False
    assert "^text_encoder/" in config.frozen
    state.build(config, state.example_batch(config))


@pytest.mark.parametrize("value", [{}, {"model": {"name": "gaitbase"}}, None, []])
def test_a_config_file_that_gives_no_config_is_named(value):
    with pytest.raises(ValueError, match="must return an ml_collections.ConfigDict"):
        settings.check(value)


def test_what_belongs_together_is_checked_together():
    config = load("lmgait")
    config.warmup.losses = ("cross_entropy", "binary_cross_entropy")
    with pytest.raises(ValueError, match="'binary_cross_entropy', config.loss has"):
        settings.check(config)
    config = load("gaitbase")
    config.train.keep_best = "ccpg_gait/CL/rank1"
    with pytest.raises(ValueError, match="set config.evaluation.every_steps"):
        settings.check(config)
    config.evaluation.every_steps, config.train.keep_best = 5, "rank1"
    message = "'rank1' is no protocol/task/metric of .*: ccpg_gait, ccpg_reid"
    with pytest.raises(ValueError, match=message):
        settings.check(config)
    for best in (
        "ccpg_gait/XY/rank1",
        "ccpg_gait/CL/mAP",
        "ccpg_gait/CL",
        "ccpg_gait/",
    ):
        config.train.keep_best = best
        with pytest.raises(
            ValueError, match=f"in config.train.keep_best='{best}'.*choose"
        ):
            settings.check(config)
    for best in ("ccpg_gait/mean/rank1", "ccpg_reid/mean/mAP"):
        config.train.keep_best = best
        settings.check(config)
    config.train.keep_best = ""
    with config.unlocked():
        config.warmup = {"steps": 3}  # of a model without a decoder
    with pytest.raises(ValueError, match="config.warmup"):
        settings.check(config)
    config = load("cargait")
    config.model.num_heads = 3
    with pytest.raises(ValueError, match="hidden_size=64 is no multiple.*num_heads=3"):
        settings.check(config)
