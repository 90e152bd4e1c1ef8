"""How presets, files, options and ``key=value`` become the settings of a run."""

from dataclasses import asdict

import pytest
import yaml

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl_cli.config import parse_overrides, read_config_file, resolve
from methods.csp.config import CSPConfig
from methods.presets import load_presets


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("epochs=5", "epochs", 5),
        ("lr=1e-4", "lr", "1e-4"),  # YAML 1.1 reads a text; resolve() knows that lr is a number
        ("lr=1.0e-4", "lr", 1e-4),
        ("augment=false", "augment", False),
        ("data=my own data", "data", "my own data"),
        ("model.attr_dropout=0.1", "attr_dropout", 0.1),
        ("pdl_terms=[1, 0.5]", "pdl_terms", [1, 0.5]),
        ("preset=", "preset", None),
        ("clip_weights=null", "clip_weights", None),
        ("data='7'", "data", "7"),
        ("data=a=b", "data", "a=b"),
        ("data=__import__('os').getcwd()", "data", "__import__('os').getcwd()"),
        ("background=#102030", "background", "#102030"),
    ],
)
def test_overrides_follow_the_rules_of_yaml(text, key, value):
    assert parse_overrides([text]) == {key: value}


@pytest.mark.parametrize("text", ["epochs", "=5", "", "data=[", "data=!!python/object/apply:os.getcwd []"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(UsageError):
        parse_overrides([text])


def test_the_last_override_wins():
    assert parse_overrides(["epochs=1", "epochs=2"]) == {"epochs": 2}


@pytest.fixture
def file(tmp_path):
    def write(**content):
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_later_sources_win(file):
    """The method's defaults, its preset, its recipe, the file, the options, key=value."""
    presets = load_presets("clusPro")
    released, mit = presets["presets"]["released"], presets["recipes"]["mit-states"]
    base = {"method": "clus-pro", "preset": "released", "recipe": "mit-states"}
    config = resolve(base)
    assert config.model["solver"] == released["solver"] != resolve({}).model["solver"]
    assert config.epochs == mit["epochs"]
    assert config.lr_steps_per_epoch == released["lr_steps_per_epoch"]
    path = file(epochs=7, batch=8, lr=0.5, seed=3, solver="log")
    config = resolve({**base, "batch": 9, "lr": 0.25, "seed": None}, ["lr=0.125"], path)
    assert (config.epochs, config.batch, config.lr, config.seed, config.model["solver"]) == (7, 9, 0.125, 3, "log")
    assert (config.method, config.preset, config.recipe) == ("clusPro", "released", "mit-states")


def test_the_default_preset_is_named_where_there_is_one():
    assert resolve({}).preset == "default"
    assert resolve({"method": "csp"}).preset is None
    assert resolve({"method": "csp", "data": "mine"}) == RunConfig(method="csp", data="mine", model=asdict(CSPConfig()))


def test_the_toy_takes_its_own_recipe_or_that_of_small_data_and_a_users_data_none():
    assert resolve({}).recipe == "toy"
    assert resolve({"method": "csp"}).recipe == "toy"
    assert resolve({"method": "csp"}).epochs == 20
    assert resolve({"data": "mine"}).recipe is None
    assert resolve({"method": "zero-shot"}).recipe is None
    assert resolve({"recipe": "ut-zappos"}).recipe == "ut-zappos"


def test_a_runs_own_config_file_resolves_to_itself(tmp_path):
    first = resolve({"method": "clusPro", "preset": "released"}, ["lr=3e-4", "data=x"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(first.to_dict(), sort_keys=False))
    assert resolve({}, (), path) == first


@pytest.mark.parametrize(
    ("override", "value"), [("lr=1e-4", 1e-4), ("lr=1", 1.0), ("weight_decay=0", 0.0), ("attr_dropout=5e-1", 0.5)]
)
def test_numbers_become_floats(override, value):
    config = resolve({"method": "csp"}, [override])
    found = {**config.to_dict(), **config.model}[override.split("=")[0]]
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("epochs=five", "expected int"),
        ("epochs=1.5", "expected int"),
        ("epochs=true", "expected int"),
        ("lr=true", "expected float"),
        ("lr=fast", "expected float"),
        ("lr=", "expected float"),
        ("augment=1", "expected bool"),
        ("data=5", "expected str"),
        ("data=[a, b]", "expected str"),
        ("clip_weights=5", "expected str or nothing"),
        ("names=refrence", "choose one of: clean, reference"),
        ("pdl_terms=[a, b]", "expected float, float"),
        ("pdl_terms=[1]", "expected float, float"),
        ("pdl_terms=3", "expected tuple"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override, wanted):
    with pytest.raises(UsageError) as error:
        resolve({}, [override])
    assert wanted in str(error.value)
    assert override.split("=")[0] in error.value.what


def test_a_pair_of_numbers_may_hold_integers():
    assert resolve({}, ["pdl_terms=[1, 0.5]"]).model["pdl_terms"] == (1.0, 0.5)


@pytest.mark.parametrize(
    ("given", "overrides", "named"),
    [
        ({"method": "clupsro"}, [], "'clusPro'"),
        ({"method": None}, ["method=cps"], "'csp'"),
        ({"preset": "relaesed"}, [], "'released'"),
        ({"recipe": "mit_states"}, [], "'mit-states'"),
        ({"method": "zero-shot", "preset": "default"}, [], "zero-shot has no presets"),
        ({}, ["epcohs=3"], "'epochs'"),
        ({}, ["num_prototype=3"], "'num_prototypes'"),
        ({"method": "csp"}, ["num_prototypes=3"], "unknown setting 'num_prototypes'"),  # another method's field
        ({"method": "csp"}, ["train_mode=reference"], "csp does not have it, troika and msci do: only their public loops"),
        ({}, ["traction_layers=2"], "clusPro does not have it, troika does"),
        ({}, ["model={lr: 1}"], "unknown setting 'model'"),
    ],
)
def test_unknown_names_give_the_nearest(given, overrides, named):
    with pytest.raises(UsageError) as error:
        resolve(given, overrides)
    assert named in str(error.value)


def test_unknown_keys_of_a_file_are_refused_too(file):
    with pytest.raises(UsageError, match=r"'weight_dacay'(.|\n)*'weight_decay'"):
        resolve({}, (), file(weight_dacay=0.1))


def test_a_file_is_flat_or_has_a_model_section(file):
    assert read_config_file(file(lr=0.1, attr_dropout=0.2)) == {"lr": 0.1, "attr_dropout": 0.2}
    assert read_config_file(file(lr=0.1, model={"attr_dropout": 0.2})) == {"lr": 0.1, "attr_dropout": 0.2}
    assert read_config_file(file(lr=0.1, model=None)) == {"lr": 0.1}


@pytest.mark.parametrize("content", [b"", b"- a", b"lr: [", b"\xff\xfe\x00", b"model: 5", b"!!python/object/apply:os.getcwd []"])
def test_a_file_without_settings_is_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UsageError):
        read_config_file(tmp_path / "c.yaml")
