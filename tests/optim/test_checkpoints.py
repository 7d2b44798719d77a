"""Saving and loading: round trips, other routes, older files, copies, torch's own optimizers."""

import copy
import io
import pickle

import pytest
import torch
from optim_db import (
    TRANSFORMS,
    assert_same,
    each,
    each_variant,
    numbers,
    small_model,
    train,
)

import gradwise as gw


def trained(entry, options=None, dtype=torch.float64, **given):
    model = small_model(dtype)
    options = options or {}
    optimizer = entry.cls(model.named_parameters(), **{"lr": entry.lr, **options, **given})
    train(model, optimizer, 3)
    return model, optimizer


def saved(*objects):
    """Through a file, loaded as an untrusted one is."""
    file = io.BytesIO()
    torch.save([o.state_dict() for o in objects], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(entry, checkpoint, dtype=torch.float64, **given):
    model = small_model(dtype)
    optimizer = entry.cls(model.named_parameters(), **{"lr": 3.0, **given})
    model.load_state_dict(checkpoint[0])
    optimizer.load_state_dict(checkpoint[1])
    return model, optimizer


def go_on(*pairs, steps=3):
    """Train all further; the first is what the others have to equal."""
    for model, optimizer in pairs:
        train(model, optimizer, steps, first=50)
    for pair in pairs[1:]:
        assert_same(numbers(*pair), numbers(*pairs[0]))


@each_variant
def test_a_fresh_optimizer_goes_on_from_a_file(entry, options):
    pair = trained(entry, options)
    go_on(pair, resumed(entry, saved(*pair)))


@each
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_state_of_a_transform_is_in_the_file(entry, transform):
    pair = trained(entry, transform=transform())
    go_on(pair, resumed(entry, saved(*pair), transform=transform()))


@each
def test_an_attached_transform_and_the_argument_are_one(entry):
    pair = trained(entry, transform=gw.transforms.Autoscale())
    model, optimizer = resumed(entry, saved(*pair))
    gw.autoscale(optimizer)
    go_on(pair, (model, optimizer))


@each
@pytest.mark.parametrize("before", [{"foreach": True}, {"foreach": False, "fused": False}, {}])
@pytest.mark.parametrize("after", [{"foreach": True}, {"foreach": False, "fused": False}, {}])
def test_routes_may_change(entry, before, after):
    """The options are in the file; who wants another way sets it after loading."""
    pair = trained(entry, **before)
    checkpoint = saved(*pair)
    for group in checkpoint[1]["param_groups"]:
        group.update({"foreach": None, "fused": None, **after})
    model, optimizer = resumed(entry, checkpoint)
    train(*pair, 2, first=50)
    train(model, optimizer, 2, first=50)
    assert_same(numbers(model, optimizer), numbers(*pair), rtol=1e-11, atol=1e-13)


@each
def test_what_was_loaded_is_a_copy(entry):
    pair = trained(entry)
    other = resumed(entry, [m.state_dict() for m in pair])
    before = numbers(*pair)
    train(*other, 2)
    assert_same(numbers(*pair), before)


@each
@pytest.mark.parametrize("copies", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("transform", [None, *TRANSFORMS])
def test_copies_go_on_alike(entry, copies, transform):
    """A deep copy or pickle bears its transforms and their state, and is independent."""
    transform = None if transform is None else transform()
    pair = trained(entry, transform=transform)
    twin = copies(pair)
    assert twin[1].param_groups[0]["params"][0] is next(twin[0].parameters())
    before = numbers(*pair)
    train(*copies(pair), 2)
    assert_same(numbers(*pair), before)
    go_on(pair, twin)
    if transform is not None:
        mine, theirs = (gw.attach.__globals__["attachment_of"](o) for o in (pair[1], twin[1]))
        assert mine is not theirs
        assert mine.names == theirs.names
        assert mine.skipped == theirs.skipped


@each
def test_a_copy_before_the_first_step(entry):
    model = small_model()
    optimizer = entry.cls(model.parameters(), lr=entry.lr, transform=gw.transforms.Autoscale())
    twin = copy.deepcopy((model, optimizer))
    go_on((model, optimizer), twin)


@each
def test_older_files(entry):
    """Of a version that did not know an option, or counted steps in plain numbers."""
    pair = trained(entry)
    checkpoint = saved(*pair)
    for group in checkpoint[1]["param_groups"]:
        for option in ("foreach", "maximize", "capturable", "differentiable", "fused"):
            del group[option]
    for state in checkpoint[1]["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])
    go_on(pair, resumed(entry, checkpoint))


@each
def test_files_with_and_without_names(entry):
    pair = trained(entry)
    model = small_model()
    model.load_state_dict(pair[0].state_dict())
    optimizer = entry.cls(model.parameters(), lr=3.0)  # not named
    optimizer.load_state_dict(pair[1].state_dict())
    go_on(pair, (model, optimizer))


@each
def test_the_state_of_narrow_parameters_stays_wide(entry):
    pair = trained(entry, dtype=torch.bfloat16)
    other = resumed(entry, saved(*pair), dtype=torch.bfloat16)
    wide = torch.float32 if entry.wide else torch.bfloat16
    tensors = [
        v for s in other[1].state.values() for k, v in s.items() if k not in ("step", "alignment")
    ]
    assert len(tensors) == entry.states * 5
    assert all(v.dtype == wide for v in tensors)
    go_on(pair, other)


@each
def test_user_hooks_on_loading(entry):
    pair = trained(entry)
    checkpoint = saved(*pair)
    model = small_model()
    model.load_state_dict(checkpoint[0])
    optimizer = entry.cls(model.named_parameters(), lr=3.0)
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("post"))
    optimizer.load_state_dict(checkpoint[1])
    assert seen == ["pre", "post"]
    go_on(pair, (model, optimizer))


@each
def test_a_file_of_other_parameters_is_refused(entry):
    pair = trained(entry)
    other = entry.cls([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(ValueError, match="size of optimizer's group"):
        other.load_state_dict(pair[1].state_dict())


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (gw.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
        (gw.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
        (gw.optim.SGD, torch.optim.SGD, {"lr": 0.05}),
        (gw.optim.AdamW, torch.optim.AdamW, {"lr": 0.05}),
        (gw.optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
    ],
    ids=["momentum", "dampening", "sgd", "adamw", "amsgrad"],
)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("back", [False, True])
def test_files_of_torchs_own(ours, theirs, options, steps, back):
    """Begin with torch's and go on with gradwise's, or the other way round."""
    first, second = (ours, theirs) if back else (theirs, ours)
    plain = {"foreach": False, "fused": False}
    model = small_model()
    optimizer = first(model.parameters(), **options, **plain)
    train(model, optimizer, steps)
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    other = second(twin.parameters(), lr=1.0, **plain)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch goes on in its tensors
    train(model, optimizer, 3, first=50)
    train(twin, other, 3, first=50)
    assert_same(numbers(twin, other), numbers(model, optimizer))
