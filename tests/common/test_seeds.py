"""Seeds and keys have fixed values: with other values a resumed training would see other data."""

from __future__ import annotations

import numpy as np

from pipeline.common.seeds import derive_keys, fold_key, fold_seed


def test_seeds_and_keys_keep_their_values() -> None:
    assert [fold_seed(0), fold_seed(1, 2, 3), fold_seed(2**40, 7)] == [1, 2000015000031, 1099514926311883339]
    keys = [16294208416658607535, 7702586659592502839, 7485121835981390325]
    assert [fold_key(0), fold_key(1, 2, 3), fold_key(5, -1)] == keys
    assert derive_keys(fold_key(3), np.arange(2)).tolist() == [13604808898340030615, 13592992832856903821]
