import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress_env.compressed_file import (
    COMPRESSED_FILE,
    load_compressed,
    pack_codes,
    save_compressed,
    unpack_codes,
)
from compress_env.compression import compress
from compress_env.layer_graph import trace
from compress_env.networks import build_network
from compress_env.networks.weights import read_metadata, save_weights
from compress_env.plan import CompressionPlan


def test_packed_codes_by_hand_and_back():
    # 3 bits, plus 4: 1, 7, 4, 0 -> 001 111 100 000, lowest bit first from the right.
    packed = pack_codes(torch.tensor([-3.0, 3.0, 0.0, -4.0]), 3)
    assert packed.tolist() == [0b00111001, 0b0001]
    for bits in range(2, 9):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 13, 3)).float()
        packed = pack_codes(codes, bits)
        assert packed.numel() == -(-codes.numel() * bits // 8)
        assert torch.equal(unpack_codes(packed, bits, codes.shape), codes)
    with pytest.raises(ValueError, match="do not hold"):
        unpack_codes(packed, 7, codes.shape)


def test_long_weights_are_packed_in_pieces(monkeypatch):
    monkeypatch.setattr("compress_env.compressed_file._CHUNK", 16)
    codes = torch.randint(-4, 4, (1003,)).float()
    assert torch.equal(unpack_codes(pack_codes(codes, 3), 3, codes.shape), codes)


def test_wrong_files_are_named(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    with pytest.raises(ValueError, match="there is no compressed network"):
        load_compressed(tmp_path)
    graph = trace(network, (3, 8, 8))
    plan = CompressionPlan.dense(graph, "Sequential", bits=4)
    images = torch.randn(4, 3, 8, 8)
    small = compress(graph, plan, images)
    file = tmp_path / COMPRESSED_FILE
    save_compressed(small, file, plan, num_classes=10, input_shape=(3, 8, 8))
    loaded = load_compressed(tmp_path, network)
    assert torch.equal(loaded(images), small(images))
    with pytest.raises(ValueError, match="network must be given: 'Sequential' is no name"):
        load_compressed(tmp_path)
    with pytest.raises(ValueError, match="it is for another network"):
        load_compressed(tmp_path, build_network("resnet20", 10))
    wider = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    with pytest.raises(ValueError, match=r"compressed.safetensors does not fit it: .* codes of 4"):
        load_compressed(tmp_path, wider)
    read = {**read_metadata(file), "input_shape": "8"}
    save_file(load_file(file), file, read)
    with pytest.raises(ValueError, match=r"^path: .* is damaged: 'int' object"):
        load_compressed(tmp_path, network)
    file.write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"^path: .* does not hold a compressed network: "):
        load_compressed(file)
    save_weights(network, file, {})
    with pytest.raises(ValueError, match="does not hold a compressed network"):
        load_compressed(file)
