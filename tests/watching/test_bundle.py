"""Bundles: when one is kept, what is in it, that it is whole or not there, and that a damaged one is refused."""

import hashlib
import json
import math
import platform
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.cli import main
from levada.runs import bundles
from levada.runs.bundles import checksum_of
from levada.watching.show.lines import summary
from levada.watching.verdict.bundle import Bundle, read_bundle, write_bundle
from levada.watching.verdict.keeper import Keeper
from levada.watching.watch import watch


def train(keep, steps=60, spoil=lambda step, model, inputs: inputs, **options):
    """Train a small model that is watched; return the judge and the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watching = watch(model, optimizer, every=10, max_overhead=math.inf)
    judge = watching.judge
    judge.keeper = Keeper(watching, keep, **options)
    weights = {}
    with watching:
        for step in range(steps):
            inputs, targets = torch.randn(4, 6), torch.randint(3, (4,))
            inputs = spoil(step, model, inputs)
            watching.note(indices=[step], targets=targets, checkpoint="checkpoints/5.pt")
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            weights[step] = {name: t.clone() for name, t in model.state_dict().items()}
            optimizer.step()
    return judge, model, weights


def at(step, factor):
    return lambda now, model, inputs: inputs * factor if now == step else inputs


def test_the_first_nan_is_kept_before_it_is_spread(tmp_path):
    judge, _, weights = train(tmp_path, spoil=at(33, math.nan))
    (folder,) = judge.keeper.folders
    assert folder == tmp_path / "bundles" / "step-000033-numerical_overflow"
    kept = read_bundle(folder)
    assert (kept.step, kept.rule, math.isnan(kept.loss)) == (33, "numerical_overflow", True)
    assert kept.checkpoint == "checkpoints/5.pt"
    assert kept.values["indices"] == [33]
    assert kept.values["targets"].dtype == torch.int64
    assert bool(kept.values["args"][0].isnan().all())
    for name, value in weights[33].items():
        assert torch.equal(kept.values["weights"][name], value)
    assert bool(all(t.isfinite().all() for t in kept.values["weights"].values()))
    assert kept.values["optimizer"][0]["state"][0]["exp_avg"].shape == (8, 6)
    assert kept.values["output_gradient"].shape == (4, 3)
    assert set(kept.values["random_state"]) == {"cpu"}
    assert kept.training == {"": True}
    assert kept.facts["versions"]["torch"] == str(torch.__version__)
    assert kept.facts["versions"]["python"] == platform.python_version()
    assert kept.missing == {}


def test_a_spike_is_kept_at_once(tmp_path):
    judge, _, _ = train(tmp_path, spoil=at(47, 300.0))
    assert [folder.name for folder in judge.keeper.folders] == ["step-000047-loss_spike"]
    assert "The loss of step 47 is" in read_bundle(judge.keeper.folders[0]).reason


def test_a_calm_run_keeps_nothing(tmp_path):
    judge, _, _ = train(tmp_path)
    assert judge.keeper.folders == []
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_kept_at_the_next_update_with_its_finding(tmp_path):
    def bind(step, model, inputs):
        if step == 30:
            model[0].bias.data -= 100.0
        return inputs

    judge, _, _ = train(tmp_path, steps=150, spoil=bind)
    (finding,) = (f for f in judge.findings if f.rule == "dead_units")
    kept = read_bundle(next(f for f in judge.keeper.folders if "dead_units" in f.name))
    assert kept.finding["rule"] == "dead_units"
    assert kept.step > finding.evidence["told_at"]
    assert kept.step - finding.evidence["told_at"] <= 100


def test_at_most_so_many_in_a_run_that_goes_on_too(tmp_path):
    spoil = at(47, 300.0)
    judge, _, _ = train(tmp_path, spoil=spoil, most=1)
    assert len(judge.keeper.folders) == 1
    again, _, _ = train(tmp_path, spoil=at(33, math.nan), most=1)
    assert again.keeper.folders == []
    assert len(list((tmp_path / "bundles").iterdir())) == 1


def test_a_run_that_goes_on_and_breaks_at_the_same_step_keeps_it_beside_the_other(tmp_path):
    for number, name in enumerate(("", "-2", "-3"), 1):
        judge, _, _ = train(tmp_path, spoil=at(33, math.nan), most=4)
        assert [path.name for path in judge.keeper.folders] == [f"step-000033-numerical_overflow{name}"]
        assert read_bundle(judge.keeper.folders[0]).step == 33
        assert len(list((tmp_path / "bundles").iterdir())) == number


def test_a_bundle_of_the_first_steps_leaves_room_in_a_run_that_goes_on_too(tmp_path):
    write_bundle(tmp_path, Bundle(3, "learning_rate_too_high", "why"))
    judge, _, _ = train(tmp_path, spoil=at(33, math.nan), most=1)
    assert [path.name for path in judge.keeper.folders] == ["step-000033-numerical_overflow"]


def test_weights_above_the_cap_leave_the_checkpoints_name(tmp_path):
    judge, _, _ = train(tmp_path, spoil=at(33, math.nan), cap=100)
    kept = read_bundle(judge.keeper.folders[0])
    assert "weights" not in kept.values
    assert "above the cap of 100" in kept.missing["weights"]
    assert kept.checkpoint == "checkpoints/5.pt"


def test_weights_that_an_update_has_broken_are_not_kept(tmp_path):
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    last = SimpleNamespace(step=4, args=(torch.ones(1, 2),), kwargs={}, output_gradient=None, random_state={})
    keeper = Keeper(SimpleNamespace(model=model, optimizers=(), last_pass=last), tmp_path)
    keeper.before_update(4, torch.tensor(math.nan))
    kept = read_bundle(keeper.folders[0])
    assert kept.missing["weights"] == "an update has made every parameter NaN or Inf"


def test_a_scaler_that_skips_a_step_keeps_nothing(tmp_path):
    keeper = Keeper(SimpleNamespace(), tmp_path)
    for step in range(2):
        keeper.before_update(step, torch.tensor(math.inf), scaled=True)
    keeper.before_update(2, torch.tensor(1.0), scaled=True)
    assert keeper.folders == []
    for step in range(3, 6):
        keeper.before_update(step, torch.tensor(math.inf), scaled=True)
    assert [folder.name for folder in keeper.folders] == ["step-000005-numerical_overflow"]


def test_a_full_disk_ends_keeping_and_not_training(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("levada.watching.verdict.bundle.torch.save", full)
    with pytest.warns(UserWarning, match="the bundle of step 33 could not be written"):
        judge, _, _ = train(tmp_path, spoil=at(33, math.nan))
    assert judge.keeper.folders == []
    assert list((tmp_path / "bundles").iterdir()) == []  # no half of one


def test_what_no_safe_format_holds_is_left_out_with_its_reason(tmp_path):
    values = {"args": (torch.ones(2), object()), "kwargs": {"scale": 2.0}}
    kept = read_bundle(write_bundle(tmp_path, Bundle(1, "loss_spike", "why", values=values)))
    assert kept.values == {"kwargs": {"scale": 2.0}}
    assert kept.missing["args"].startswith("args.1 is a object, and only tensors")


def test_values_come_back_as_they_were(tmp_path):
    values = {
        "args": (torch.arange(3), [1, None, "text", True], {"inner": (math.inf, torch.ones(2).bfloat16())}),
        "optimizer": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}],
    }
    kept = read_bundle(write_bundle(tmp_path, Bundle(1, "loss_spike", "why", values=values)))
    args = kept.values["args"]
    assert torch.equal(args[0], torch.arange(3))
    assert args[1] == [1, None, "text", True]
    assert args[2]["inner"][0] == math.inf
    assert args[2]["inner"][1].dtype == torch.bfloat16
    assert kept.values["optimizer"][0]["state"][0]["step"] == 3.0
    assert kept.values["optimizer"][0]["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99)}]


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path, Bundle(1, "loss_spike", "why", values={"args": (torch.arange(1000),)}))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a bundle is a folder with a bundle\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_tensors_are_refused(folder, damage):
    file = folder / "tensors.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"is damaged: .*tensors\.pt.* comes to step \d+ again"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "edit",
    [lambda t: t.pop("values"), lambda t: t["values"].update(args={"tensor": "x"}), lambda t: t.update(step="a")],
)
def test_a_damaged_table_is_refused(folder, edit):
    table = json.loads((folder / "bundle.json").read_text())
    edit(table)
    (folder / "bundle.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"is damaged: bundle\.json is damaged: its checksum differs"):
        read_bundle(folder)
    table.pop("crc32")  # as bundles were written before they had one
    (folder / "bundle.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match="is damaged"):
        read_bundle(folder)


def test_a_table_that_is_too_long_is_not_read_into_memory(folder, monkeypatch):
    size = (folder / "bundle.json").stat().st_size
    monkeypatch.setattr(bundles, "_MAX_TABLE", size)
    read_bundle(folder)
    monkeypatch.setattr(bundles, "_MAX_TABLE", size - 1)
    with pytest.raises(UsageError, match=rf"bundle\.json is longer than {size - 1:,} bytes"):
        read_bundle(folder)


def test_a_bundle_without_a_checksum_of_its_table_is_read_and_one_flipped_number_refused(folder, capsys):
    path = folder / "bundle.json"
    written = path.read_text()
    assert written.count('"step": 1,') == 1
    path.write_text(written.replace('"step": 1,', '"step": 3,'))
    with pytest.raises(UsageError, match="its checksum differs"):
        read_bundle(folder)
    assert main(["replay", str(folder), "--model", "net.py:Net"]) == 2
    assert "is damaged: bundle.json is damaged: its checksum differs" in " ".join(capsys.readouterr().err.split())
    table = json.loads(written)
    path.write_text(json.dumps(table, sort_keys=True))  # laid out as other text, it is the same
    assert read_bundle(folder).step == 1
    del table["crc32"]
    path.write_text(json.dumps(table))
    assert torch.equal(read_bundle(folder).values["args"][0], torch.arange(1000))


def test_the_command_compares_the_bytes_of_a_bundle_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(6, 3)\n")
    values = {"args": (torch.ones(4, 6),), "kwargs": {}, "weights": dict(nn.Linear(6, 3).state_dict())}
    folder = write_bundle(tmp_path, Bundle(1, "loss_spike", "why", values=values))
    read, plain = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *of: read.append(of) or plain(*of))
    assert main(["replay", str(folder), "--model", f"{tmp_path}/net.py:build"]) == 0, capsys.readouterr().err
    assert len(read) == 1


def test_a_later_schema_is_refused(folder):
    table = json.loads((folder / "bundle.json").read_text())
    table = {key: value for key, value in table.items() if key != "crc32"} | {"schema": 2}
    (folder / "bundle.json").write_text(json.dumps(table | {"crc32": checksum_of(table)}))
    with pytest.raises(UsageError, match="reads bundles of schema 1, got 2"):
        read_bundle(folder)


def test_tensors_that_would_run_code_are_refused(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    import hashlib

    torch.save({"args.0": Evil()}, folder / "tensors.pt")
    table = json.loads((folder / "bundle.json").read_text())
    table["sha256"] = hashlib.sha256((folder / "tensors.pt").read_bytes()).hexdigest()
    table["crc32"] = checksum_of(table)
    (folder / "bundle.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match="is damaged"):
        read_bundle(folder)
    assert not (tmp_path / "ran").exists()


def test_notes_are_the_three_that_are_known(tmp_path):
    with pytest.raises(UsageError, match="what can be noted is indices, targets, checkpoint, got 'epoch'"):
        Keeper(SimpleNamespace(), tmp_path).note(epoch=3)


def test_a_loss_on_an_accelerator_is_read_when_it_has_come_and_the_bundle_says_so(tmp_path, monkeypatch):
    waiting, losses = [], {3: math.nan}

    def send(loss):
        step = len(waiting)
        waiting.append(step)
        return torch.tensor(losses.get(step, 1.0)), lambda: len(waiting) > step + 2  # two steps later

    monkeypatch.setattr("levada.watching.verdict.keeper._send", send)
    model = nn.Linear(2, 2)
    source = SimpleNamespace(model=model, optimizers=(), last_pass=None)
    keeper = Keeper(source, tmp_path)
    for step in range(8):
        inputs = (torch.full((1, 2), float(step)),)
        source.last_pass = SimpleNamespace(
            step=step, args=inputs, kwargs={}, output_gradient=None, random_state={}, autocast={}
        )
        keeper.before_update(step, torch.empty((), device="meta"))
        assert len(keeper.folders) == (step >= 5)
    kept = read_bundle(keeper.folders[0])
    assert kept.step == 5
    assert kept.reason == "The loss of step 3 is NaN. It was known at step 5 only, whose pass this is."
    assert kept.values["args"][0].tolist() == [[5.0, 5.0]]


def test_another_process_keeps_its_own_beside_the_first(tmp_path, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        keeper = Keeper(SimpleNamespace(), tmp_path, most=1)
        keeper.before_update(4, torch.tensor(math.nan))
        assert len(keeper.folders) == 1
    names = {path.name for path in (tmp_path / "bundles").iterdir()}
    assert names == {"step-000004-numerical_overflow", "step-000004-numerical_overflow-rank-00001"}
    assert read_bundle(keeper.folders[0]).facts["rank"] == 1


def test_a_compiled_model_is_kept_under_the_names_that_it_is_built_with(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 1), backend="eager"))
    model[1].eval()
    model[0].weight.data[0, 0] = math.nan
    keeper = Keeper(SimpleNamespace(model=torch.compile(model, backend="eager"), optimizers=()), tmp_path)
    keeper.before_update(4, torch.tensor(math.nan))
    kept = read_bundle(keeper.folders[0])
    assert set(kept.values["weights"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert kept.training == {"": True, "1": False}


def test_of_what_is_sharded_no_state_dict_is_asked_for(tmp_path):
    """One process may be alone to see a NaN, and would wait for the others."""

    class Waiting(nn.Linear):
        def state_dict(self, *args, **kwargs):
            raise AssertionError("waits")

    model = Waiting(2, 1)
    model.weight.placements = ()
    keeper = Keeper(SimpleNamespace(model=model, optimizers=()), tmp_path)
    keeper.before_update(4, torch.tensor(math.nan))
    (folder,) = keeper.folders
    kept = read_bundle(folder)
    assert "weights" not in kept.values
    assert kept.missing["weights"] == "weights.weight is a tensor that is sharded, sparse, or holds no values"


@pytest.mark.parametrize("run", [None, "run"])
def test_a_note_of_something_else_is_refused_with_and_without_a_run(tmp_path, run):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, run=run and tmp_path / run) as watching:
        watching.note(indices=[1])
        with pytest.raises(UsageError, match="what can be noted is indices, targets, checkpoint, got 'epoch'"):
            watching.note(epoch=3)


@pytest.mark.parametrize(("factor", "alarmed"), [(300.0, False), (math.nan, True)])
def test_where_no_alarm_holds_it_is_said_that_a_kept_step_is_none(factor, alarmed, tmp_path):
    torch.manual_seed(0)
    model, folder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), tmp_path / "run"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with watch(model, optimizer, run=folder, every=5, max_overhead=math.inf) as watching:
        for step in range(60):
            optimizer.zero_grad()
            (model(torch.randn(16, 6)) * (factor if step == 50 else 1.0)).square().mean().backward()
            optimizer.step()
    assert len(watching.judge.keeper.folders) == 1
    assert watching.standing.alarmed == alarmed
    (told,) = (note for note in watching.report().notes if note.startswith("Kept"))
    assert ("A step that is kept is no finding." in told) != alarmed
    lines = ["".join(words for words, _ in line) for line in summary(watching)]
    kept = "1 step is kept" if alarmed else "1 step is kept, which is no finding"
    assert any(line.startswith(f"  {kept}; run it again") for line in lines)


def test_the_highest_loss_is_the_finite_one_of_those_that_this_update_brings(tmp_path, monkeypatch):
    keeper, arrived = Keeper(SimpleNamespace(), tmp_path, most=0), iter(())
    monkeypatch.setattr(keeper, "_arrived", lambda step, loss: iter(next(arrived)))
    brought = (
        [(1, -2.0)],
        [(2, 0.5), (3, 5.0), (4, math.inf), (5, math.nan), (6, 3.0)],
        [(7, math.nan)],
        [(8, -9.0)],
        [],
    )
    arrived = iter(brought)
    told = []
    for step in range(len(brought)):
        keeper.before_update(step, None, scaled=False)
        told.append(keeper.highest)
    assert told == [-2.0, 5.0, -math.inf, -9.0, -math.inf]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("noted", [False, True])
def test_where_an_update_broke_the_weights_the_batch_of_that_update_is_kept_too(tmp_path, noted, parts):
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 16, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with watch(net, optimizer, run=tmp_path / "run") as watching:
        for step in range(7):
            if noted:
                watching.note(indices=[step])
            optimizer.zero_grad()
            for part in range(parts):
                outputs = net(batches[step] + part)
                odd = (outputs * 0).abs().sqrt().sum() if step == 5 else 0  # 0, and its gradient is not finite
                (outputs.square().mean() + odd).backward()
            optimizer.step()
    (folder,) = watching.judge.keeper.folders
    bundle = read_bundle(folder)
    assert bundle.step == 6
    assert "weights" not in bundle.values  # all of them are NaN
    earlier = bundle.values["earlier"]
    assert earlier["step"] == 5
    assert torch.equal(earlier["args"][0], batches[5] + (parts - 1))  # the last one of that step
    assert torch.equal(bundle.values["args"][0], batches[6] + (parts - 1))
    assert "cpu" in earlier["random_state"]
    assert earlier.get("indices") == ([5] if noted else None)


def test_where_the_weights_are_finite_no_earlier_batch_is_kept(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with watch(net, optimizer, run=tmp_path / "run") as watching:
        for step in range(4):
            optimizer.zero_grad()
            net(torch.randn(16, 4) * (math.nan if step == 3 else 1)).square().mean().backward()
            optimizer.step()
    (folder,) = watching.judge.keeper.folders
    assert "earlier" not in {**read_bundle(folder).values, **read_bundle(folder).missing}


def test_notes_are_of_their_own_step_and_a_checkpoint_of_all_later_ones(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=10, run=tmp_path / "run") as watching:
        for step in range(8):
            if step < 6:
                watching.note(indices=[step], targets=torch.full((1,), float(step)), checkpoint="5.pt")
            optimizer.zero_grad()
            (model(torch.ones(1, 2)).sum() * (math.nan if step == 7 else 1.0)).backward()
            optimizer.step()
    (folder,) = watching.judge.keeper.folders
    kept = read_bundle(folder)
    assert (kept.step, kept.checkpoint) == (7, "5.pt")
    assert not {"indices", "targets"} & kept.values.keys()
    assert kept.missing["targets"] == "it was noted for step 5 last, and has to be noted in each step"


def test_of_a_step_that_is_left_before_its_update_the_notes_are_kept(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=10, run=tmp_path / "run") as watching:
        for step in range(4):
            watching.note(indices=[step], targets=torch.full((1,), math.nan if step == 3 else 0.0))
            outputs = model(torch.ones(1, 2))
            if step == 3:
                break
            optimizer.zero_grad()
            outputs.sum().backward()
            optimizer.step()
    (folder,) = watching.judge.keeper.folders
    assert read_bundle(folder).values["indices"] == [3]
