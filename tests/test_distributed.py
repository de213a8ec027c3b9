"""In one process; test_evaluation has two."""

import pytest
import torch
import torch.distributed as dist

from fassd.distributed import (
    all_gather,
    in_main,
    is_main,
    process_group,
    rank,
    sum_over_ranks,
    world_size,
)


@pytest.mark.parametrize("size", [None, "1"])
def test_alone_nothing_is_joined(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        assert all_gather({"any": "thing"}) == [{"any": "thing"}]
        assert in_main(lambda: 5) == 5
        with pytest.raises(KeyError, match="lost"):
            in_main(lambda: {}["lost"])
        assert sum_over_ranks(torch.tensor([3, 4])).tolist() == [3, 4]


def test_the_group_ends_with_the_block_and_an_outer_one_stays(monkeypatch, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with process_group("cpu"):
            assert world_size() == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_device_that_is_not_there():
    with (
        pytest.raises(ValueError, match="device 'abacus' cannot be used here"),
        process_group("abacus"),
    ):
        pass


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("fassd.distributed.pick_device", torch.device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(ValueError, match="process 2 of this machine has no GPU, there are 2"),
        process_group("cuda"),
    ):
        pass
