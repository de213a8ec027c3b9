import pytest

from fassd.training.recipe import Recipe, RecipeError, list_presets, load_recipe, recipe_of_run


def test_presets():
    names = ["demo", "membrane", "paper", "paper-l1", "paper-l2", "streets"]
    assert list_presets() == names


def test_the_papers_preset_is_the_papers_recipe():
    recipe = load_recipe("paper")
    assert recipe == Recipe()
    assert (recipe.model, recipe.encoder) == ("fassd_net", "imagenet")
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("sgd", 0.02, 0.9)
    assert (recipe.weight_decay, recipe.power, recipe.steps, recipe.batch) == (5e-4, 0.9, 90000, 16)
    assert (recipe.crop, recipe.scale, recipe.flip) == ((1024, 1024), (0.5, 2.0), 0.5)
    assert (recipe.loss, recipe.min_pixels, recipe.threshold) == ("bootstrapped", 4096, 0.3)
    assert (recipe.init, recipe.pad, recipe.val_every) == ("xavier", "black", 500)
    assert not recipe.sync_bn and recipe.jitter == 0 and recipe.warmup == 0 and recipe.clip is None


@pytest.mark.parametrize(
    ("preset", "model"), [("paper-l1", "fassd_net_l1"), ("paper-l2", "fassd_net_l2")]
)
def test_the_light_presets_differ_in_the_network_alone(preset, model):
    assert load_recipe(preset) == load_recipe("paper").replace(model=model)


def test_demo_starts_and_pads_as_the_shipped_weights_did():
    recipe = load_recipe("demo")
    assert (recipe.init, recipe.pad) == ("kaiming", "mean")


def test_the_recipe_of_a_run_from_before_these_settings(tmp_path):
    path = tmp_path / "recipe.yaml"
    lines = load_recipe("paper").to_yaml().splitlines()
    path.write_text("\n".join(x for x in lines if not x.startswith(("init:", "pad:"))))
    assert recipe_of_run(path) == load_recipe("paper").replace(init="kaiming", pad="mean")
    path.write_text(load_recipe("paper").to_yaml())
    assert recipe_of_run(path) == load_recipe("paper")


def test_yaml_round_trip(tmp_path):
    changes = {"stages": [[5, [48, 80]], [9, [64, 96]]], "shares": [1, 2.5]}
    recipe = load_recipe("demo").replace(crop=[96, 160], ema=None, clip=1, seed=7, **changes)
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


def test_a_file_may_build_on_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: demo\nsteps: 7\nwarmup: 0\nweight_decay: 5e-4\n")
    assert load_recipe(path) == load_recipe("demo").replace(steps=7, warmup=0, weight_decay=5e-4)


def test_a_presets_warmup_is_shortened_with_a_note_one_that_is_given_is_not(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: demo\nsteps: 3\n")
    with pytest.warns(UserWarning, match="warmup shortened from 50 to 2 steps, as there are 3"):
        assert load_recipe(path).warmup == 2
    with pytest.warns(UserWarning, match="warmup shortened from 50 to 0 steps, as there are 1"):
        assert load_recipe("demo").replace(steps=1).warmup == 0
    assert load_recipe("demo").replace(steps=51).warmup == 50
    with pytest.raises(RecipeError, match=r"warmup must be below steps \(3\), got 7"):
        load_recipe("demo").replace(steps=3, warmup=7)


def test_an_empty_file_is_the_paper(tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert load_recipe(tmp_path / "mine.yaml") == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 5", "unknown setting 'stepz'; did you mean 'steps'"),
        ("class_weights: [1, 2]", "unknown setting 'class_weights'; known are model, alpha,"),
        ("threads: 0", "threads must be greater than or equal to 1, got 0"),
        ("steps: 0", "steps must be greater than or equal to 1, got 0"),
        ("steps: ten", "steps must be a valid integer, got 'ten'"),
        ("steps: true", "steps must be a valid integer, got True"),
        ("crop: [64]", "crop must be a list of 2"),
        ("crop: 64", "crop must be a list of 2"),
        ("crop: [64, a]", "crop[1] must be a valid integer, got 'a'"),
        ("flip: true", "flip must be a valid number, got True"),
        ("scale: [2.0, 0.5]", "scale must be two factors"),
        ("loss: focal", "loss must be 'bootstrapped' or 'cross_entropy', got 'focal'"),
        ("batch: 6\naccumulate: 4", "batch must be a multiple of accumulate"),
        ("learning_rate: .nan", "learning_rate must be a finite number, got nan"),
        ("learning_rate: fast", "learning_rate must be a valid number, got 'fast'"),
        ("stages: [[5, [64, 64]], [3, [96, 96]]]", "stages must be pairs of a step and a crop, st"),
        ("stages: [[5, 64]]", "stages[0][1] must be a list of 2"),
        ("stages: [5, [64, 64]]", "stages[0] must be a list of 2"),
        ("statistics: 5", "statistics must be 0 without ema, got 5"),
        ("focus: 2", "focus must be less than or equal to 1, got 2"),
        ("gamma: -1", "gamma must be greater than or equal to 0, got -1"),
        ("ema: 1.5", "ema must be less than 1, got 1.5"),
        ("warmup: 90000", "warmup must be below steps"),
        ("model: unet", "unknown model 'unet'"),
        ("preset: papper", "preset must be one of demo, membrane, paper"),
        ("- a", "must hold settings"),
        ("a: [", "is no YAML"),
    ],
)
def test_errors_name_setting_and_file(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as raised:
        load_recipe(path)
    if "unknown model" not in message:
        assert isinstance(raised.value, RecipeError)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"steps: [{LONG}]", "steps must be a valid integer, got"),
        (f"steps: {LONG}", "steps must be a valid integer, got"),
        (f"steps: {{a: {60 * '['}{60 * ']'}}}", "steps must be a valid integer, got"),
        (f"loss: [{LONG}]", "loss must be 'bootstrapped' or 'cross_entropy'"),
        ("loss: {a: b}", "loss must be 'bootstrapped' or 'cross_entropy'"),
        (f"model: {LONG}", "model must have at most 1000 characters"),
        (f"preset: [{LONG}]", "preset must be one of"),
        (f"? {LONG[:1000]}\n: 1", "unknown setting"),
        ("steps: 1\nsteps: 2", "the key 'steps' stands twice"),
        ("!!timestamp x", "is no YAML"),
        ("steps: !!int x", "is no YAML: invalid literal for int"),
        ("crop: &a [1, 2]\nstages: [*a]", r"is no YAML: aliases such as \*a are not read"),
        ("[" * 10_000, "is no YAML"),
        ("workers: 1000000", "workers must be less than or equal to 1024, got 1000000"),
        ("learning_rate: 1e999", "learning_rate must be a finite number, got inf"),
        ("clip: 0x" + 1000 * "f", "a number has 1,002 characters"),
        ("é".encode("latin-1"), "can't decode byte"),
        (b"#" * (1 << 20) + b" ", "must have at most 1,048,576 bytes"),
    ],
)
def test_recipes_of_others_give_an_error_of_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(path)
    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


def test_no_such_preset():
    names = "demo, membrane, paper, paper-l1, paper-l2, streets"
    with pytest.raises(RecipeError, match=f"a preset \\({names}\\)"):
        load_recipe("fast")
